"""Which of a detector's boxes are its answer: cut by score, suppressed within a class, the best kept.

As in detectron2. `heads.soft_nms` is what ViTDet's system-level results use in place of suppression (Bodla et al.
2017): a box that overlaps a better one of its class stays, with a lower score. Off in every published recipe here.
"""

# N box, P picked

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from mimbench.det.config import Heads

LEAST = 0.001  # a score that soft suppression brought below is dropped, as in its authors' code
SIGMA = 0.5  # of the Gaussian, in squared overlap; its authors' value


def keep_best(boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor, options: Heads) -> tuple[Tensor, Tensor]:
    """Indices (P,) of the boxes kept, best first, and their scores; `options` are `nms`, `soft_nms`, `detections`.

    All boxes given score above the threshold. With soft_nms=linear, `nms` is the overlap from which a box loses score.
    """
    if options.soft_nms == "off":
        keep_P = batched_nms(boxes_N4, scores_N.float(), label_N, options.nms)[: options.detections]
        return keep_P, scores_N[keep_P]
    return _softly(boxes_N4, scores_N, label_N, options)


def _softly(boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor, options: Heads) -> tuple[Tensor, Tensor]:
    """One after another the best of what is left, the scores of its class lowered by their overlap with it.

    Scores only fall, so that they are picked in descending order and `options.detections` picks are enough.
    """
    left_N, picked, scores = scores_N.clone(), [], []
    for _ in range(min(options.detections, len(scores_N))):
        best, at = left_N.max(0)
        picked.append(at)
        scores.append(best)
        overlap_N = box_iou(boxes_N4[at][None], boxes_N4)[0].to(left_N.dtype)
        left_N = left_N * torch.where(label_N == label_N[at], _decay(overlap_N, options), 1)
        left_N[at] = -1
    if not picked:
        return label_N, scores_N
    score_P = torch.stack(scores)
    return torch.stack(picked)[score_P > LEAST], score_P[score_P > LEAST]


def _decay(overlap_N: Tensor, options: Heads) -> Tensor:
    if options.soft_nms == "gaussian":
        return torch.exp(-(overlap_N**2) / SIGMA)
    return torch.where(overlap_N > options.nms, 1 - overlap_N, 1)

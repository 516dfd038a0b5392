"""Selection of a detector's final boxes: score threshold, NMS within a class, and the best boxes.

As in detectron2. ViTDet's system-level results use `heads.soft_nms` instead of NMS (Bodla et al. 2017): a box that
overlaps a better one of its class is kept with a lower score. It is off in every published recipe here.
"""

# N box, P selected

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from mimbench.det.config import Heads

LEAST = 0.001  # soft NMS drops boxes with lower scores, as in its authors' code
SIGMA = 0.5  # of the Gaussian, in squared overlap; its authors' value


def keep_best(boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor, options: Heads) -> tuple[Tensor, Tensor]:
    """Return indices (P,) of the kept boxes, best first, and their scores; uses `nms`, `soft_nms` and `detections`.

    All input boxes must exceed the score threshold. With soft_nms=linear, scores are lowered from an IoU of `nms` on.
    """
    if options.soft_nms == "off":
        keep_P = batched_nms(boxes_N4, scores_N.float(), label_N, options.nms)[: options.detections]
        return keep_P, scores_N[keep_P]
    return _softly(boxes_N4, scores_N, label_N, options)


def _softly(boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor, options: Heads) -> tuple[Tensor, Tensor]:
    """Repeatedly select the best remaining box and lower the scores of its class by their overlap with it.

    Scores only decrease, so boxes are selected in descending order, and `options.detections` selections are enough.
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

"""Which of a detector's boxes are its answer: cut by score, suppressed within a class, the best kept.

As in detectron2. `soft` is what ViTDet's system-level results use in place of suppression (Bodla et al. 2017): a box
that overlaps a better one of its class stays, with a lower score. Off in every published recipe here.
"""

# N box, P picked

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

Soft = Literal["off", "linear", "gaussian"]

LEAST = 0.001  # a score that soft suppression brought below is dropped, as in its authors' code
SIGMA = 0.5  # of the Gaussian, in squared overlap; its authors' value


@dataclass
class Selection:
    """What is kept; see the top of the file."""

    score_threshold: float = 0.05  # boxes must score above it before suppression
    nms: float = 0.5  # overlap from which a box is suppressed; of "linear", from which it loses score
    top: int = 100
    soft: Soft = "off"

    def __call__(self, boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (P,) of what is kept, best first, and their scores; all given score above the threshold."""
        if self.soft == "off":
            keep_P = batched_nms(boxes_N4, scores_N.float(), label_N, self.nms)[: self.top]
            return keep_P, scores_N[keep_P]
        return self._softly(boxes_N4, scores_N, label_N)

    def _softly(self, boxes_N4: Tensor, scores_N: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """One after another the best of what is left, the scores of its class lowered by their overlap with it.

        Scores only fall, so that they are picked in descending order and `top` picks are enough.
        """
        left_N, picked, scores = scores_N.clone(), [], []
        for _ in range(min(self.top, len(scores_N))):
            best, at = left_N.max(0)
            picked.append(at)
            scores.append(best)
            overlap_N = box_iou(boxes_N4[at][None], boxes_N4)[0].to(left_N.dtype)
            left_N = left_N * torch.where(label_N == label_N[at], self._decay(overlap_N), 1)
            left_N[at] = -1
        if not picked:
            return label_N, scores_N
        score_P = torch.stack(scores)
        return torch.stack(picked)[score_P > LEAST], score_P[score_P > LEAST]

    def _decay(self, overlap_N: Tensor) -> Tensor:
        if self.soft == "gaussian":
            return torch.exp(-(overlap_N**2) / SIGMA)
        return torch.where(overlap_N > self.nms, 1 - overlap_N, 1)

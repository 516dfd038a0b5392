"""Cascade R-CNN's heads: three box heads in a row, each made for the boxes of the one before it.

detectron2's `CascadeROIHeads` (parameter names `box_head.N.*`, `box_predictor.N.*`), as ViTDet has it: boxes that
overlap an object by .5, .6 and .7 show it in turn, codes are finer from stage to stage and the same for all classes,
scores are averaged and boxes are the last stage's. The mask head sees the first stage's regions.

Gradients reach the pyramid from each stage divided by their number, which leaves the heads' own as they are.
"""

# R region of interest, K class

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mimbench.det.config import Heads
from mimbench.det.model.box_head import BoxHead, BoxPredictor
from mimbench.det.model.boxes import Weights, image_corners, nonempty
from mimbench.det.model.pooling import with_image
from mimbench.det.model.regions import Regions
from mimbench.det.model.roi_heads import OVERLAP, Maps, RoIHeads, Scored, Sizes, Targets, matched_regions


class Stage(NamedTuple):
    """One of the heads."""

    overlap: float  # with an object, from which a box shows it
    weights: Weights  # of the box code


STAGES = (
    Stage(OVERLAP, (10.0, 10.0, 5.0, 5.0)),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0)),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0)),
)


class CascadeHeads(RoIHeads):
    """Cascade Mask R-CNN's."""

    def __init__(
        self,
        classes: int,
        options: Heads,
        *,
        box_heads: Sequence[BoxHead],
        box_predictors: Sequence[BoxPredictor],
        overlaps: Sequence[float],
        **parts: Any,
    ) -> None:
        """A head, a predictor (one code for all classes) and an overlap for each stage; `parts` as of `RoIHeads`."""
        super().__init__(classes, options, **parts)
        self.box_head, self.box_predictor = nn.ModuleList(box_heads), nn.ModuleList(box_predictors)
        self.overlaps = tuple(overlaps)

    def _stages(self) -> Iterator[tuple[BoxHead, BoxPredictor]]:
        return zip(self.box_head, self.box_predictor, strict=True)  # type: ignore[arg-type]

    def box_losses(self, maps: Maps, chosen: Regions, targets: Targets, sizes: Sizes) -> dict[str, Tensor]:
        """loss_cls_stageN and loss_box_reg_stageN, N from 0."""
        losses: dict[str, Tensor] = {}
        for number, (head, predictor) in enumerate(self._stages()):
            pooled = self.box_pooler(maps, chosen.regions)
            if pooled.requires_grad:
                pooled.register_hook(self._divided)
            logits, codes = predictor(head(pooled))
            found = predictor.losses(logits, codes, chosen, self.loss_weights)
            losses |= {f"{name}_stage{number}": value for name, value in found.items()}
            if number + 1 < len(self.overlaps):
                counts = chosen.regions[:, 0].long().bincount(minlength=chosen.images).tolist()
                boxes = moved(predictor, codes, chosen.boxes.split(counts), sizes)
                boxes = [boxes_R4[nonempty(boxes_R4)] for boxes_R4 in boxes]
                chosen = matched_regions(boxes, targets, self.overlaps[number + 1], self.classes)
        return losses

    def _divided(self, gradient: Tensor) -> Tensor:
        return gradient * (1 / len(self.overlaps))

    def scored(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> Scored:
        """The mean of all stages' scores, and the last stage's boxes; empty ones stay, for scores to be of the same."""
        regions, scores, last = list(proposals), [], len(self.overlaps) - 1
        for number, (head, predictor) in enumerate(self._stages()):
            logits_RK, codes_R14 = predictor(head(self.box_pooler(maps, with_image(regions))))
            scores.append(predictor.scores(logits_RK))
            if number < last:
                regions = moved(predictor, codes_R14, regions, sizes)
        return Scored(regions, torch.stack(scores).sum(0) * (1 / len(scores)), codes_R14, predictor)


@torch.no_grad()
def moved(predictor: BoxPredictor, codes_R14: Tensor, regions: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """Each image's regions (R, 4) moved by their codes, which are of all images, and clipped to the image."""
    together_R4 = torch.cat(list(regions))
    every_R = torch.arange(len(together_R4), device=together_R4.device)
    boxes_R4 = predictor.boxes(codes_R14, together_R4, every_R, every_R)
    parts = zip(boxes_R4.split([len(one) for one in regions]), image_corners(sizes, boxes_R4), strict=True)
    return [boxes.clamp(min=0).minimum(corner) for boxes, corner in parts]

"""Cascade R-CNN's heads: three consecutive box heads, each trained on the boxes of the head before it.

detectron2's `CascadeROIHeads` (parameter names `box_head.N.*`, `box_predictor.N.*`), as in ViTDet: the stages count
boxes as positive from an IoU of .5, .6 and .7, box codes get finer from stage to stage and are class-agnostic, scores
are averaged, and boxes come from the last stage. The mask head uses the first stage's regions.

Each stage's gradient to the pyramid is divided by the number of stages; the gradients of the heads are unchanged.
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
from mimbench.det.model.host import places, read
from mimbench.det.model.pooling import with_image
from mimbench.det.model.regions import Regions
from mimbench.det.model.roi_heads import OVERLAP, Maps, RoIHeads, Scored, Sizes, Targets, matched_boxes


class Stage(NamedTuple):
    """Settings of one stage."""

    overlap: float  # IoU with an object from which a box is positive
    weights: Weights  # of the box code


STAGES = (
    Stage(OVERLAP, (10.0, 10.0, 5.0, 5.0)),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0)),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0)),
)


class CascadeHeads(RoIHeads):
    """The heads of Cascade Mask R-CNN."""

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
        """Take a head, a predictor (class-agnostic codes) and an IoU per stage; `parts` as for `RoIHeads`."""
        super().__init__(classes, options, **parts)
        self.box_head, self.box_predictor = nn.ModuleList(box_heads), nn.ModuleList(box_predictors)
        self.overlaps = tuple(overlaps)

    def _stages(self) -> Iterator[tuple[BoxHead, BoxPredictor]]:
        return zip(self.box_head, self.box_predictor, strict=True)  # type: ignore[arg-type]

    def box_losses(self, maps: Maps, chosen: Regions, targets: Targets, sizes: Sizes) -> dict[str, Tensor]:
        """Return loss_cls_stageN and loss_box_reg_stageN, N from 0."""
        losses: dict[str, Tensor] = {}
        for number, (head, predictor) in enumerate(self._stages()):
            pooled = self.box_pooler(maps, chosen.regions, chosen.levels)
            if pooled.requires_grad:
                pooled.register_hook(self._divided)
            logits, codes = predictor(head(pooled))
            found = predictor.losses(logits, codes, chosen, self.loss_weights)
            losses |= {f"{name}_stage{number}": value for name, value in found.items()}
            if number + 1 < len(self.overlaps):
                boxes = moved(predictor, codes, chosen.boxes.split(list(chosen.counts)), sizes)
                chosen = self._rematched(boxes, targets, self.overlaps[number + 1])
        return losses

    @torch.no_grad()
    def _rematched(self, boxes: Sequence[Tensor], targets: Targets, overlap: float) -> Regions:
        """Return the boxes of each image that are not empty, matched again; reads from the device once."""
        matches = [
            matched_boxes(boxes_R4, target, overlap, self.classes)
            for boxes_R4, target in zip(boxes, targets, strict=True)
        ]
        label_R, target_R4, object_R = (torch.cat(of) for of in zip(*matches, strict=True))
        regions_R5 = with_image(boxes)
        valid_R = nonempty(regions_R5[:, 1:])
        level_R = torch.where(valid_R, self.box_pooler.levels(regions_R5[:, 1:]), -1)
        of_images = [valid.sum() for valid in valid_R.split([len(one) for one in boxes])]
        shown_R = valid_R & (label_R < self.classes)
        shown, *found = read([shown_R.sum(), *of_images, *self.box_pooler.counts(level_R)])
        counts, levels = found[: len(boxes)], found[len(boxes) :]
        kept = places(valid_R, sum(counts))
        chosen = regions_R5[kept], label_R[kept], target_R4[kept], object_R[kept]
        return Regions(*chosen, counts=counts, shown=places(shown_R[kept], shown), levels=levels)

    def _divided(self, gradient: Tensor) -> Tensor:
        return gradient * (1 / len(self.overlaps))

    def scored(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> Scored:
        """Return the mean scores of all stages and the last stage's boxes; empty boxes stay to match the scores."""
        regions, scores, last = list(proposals), [], len(self.overlaps) - 1
        for number, (head, predictor) in enumerate(self._stages()):
            logits_RK, codes_R14 = predictor(head(self.box_pooler(maps, with_image(regions))))
            scores.append(predictor.scores(logits_RK))
            if number < last:
                regions = moved(predictor, codes_R14, regions, sizes)
        return Scored(regions, torch.stack(scores).sum(0) * (1 / len(scores)), codes_R14, predictor)


@torch.no_grad()
def moved(predictor: BoxPredictor, codes_R14: Tensor, regions: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """Return each image's regions (R, 4) after applying the codes (of all images), clipped to the image."""
    together_R4 = torch.cat(list(regions))
    every_R = torch.arange(len(together_R4), device=together_R4.device)
    boxes_R4 = predictor.boxes(codes_R14, together_R4, every_R, every_R)
    parts = zip(boxes_R4.split([len(one) for one in regions]), image_corners(sizes, boxes_R4), strict=True)
    return [boxes.clamp(min=0).minimum(corner) for boxes, corner in parts]

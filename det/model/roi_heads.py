"""RoI heads: sampling of regions for training, box and mask losses, and detections.

detectron2's `StandardROIHeads` (parameter names `box_head.*`, `box_predictor.*`, `mask_head.*`). In training the
objects' boxes are added to the proposals; the mask head uses only positive regions. At inference the mask head runs
on the final detections.
"""

# B image, T object, R region, N detection, K class, J code (one per class, or one for all), M side of a mask

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from mimbench.det.config import Heads, LossWeights
from mimbench.det.model.box_head import BoxHead, BoxPredictor
from mimbench.det.model.boxes import image_corners, nonempty
from mimbench.det.model.mask_head import MaskHead, mask_loss
from mimbench.det.model.matching import BACKGROUND, FOREGROUND, match, sample
from mimbench.det.model.nms import keep_best
from mimbench.det.model.pooling import RegionPooler, with_image
from mimbench.det.model.regions import Regions

OVERLAP = 0.5  # IoU with an object from which a region is positive
POSITIVE = 0.25  # largest share of positive regions in the sample

Maps = Sequence[Tensor]  # pyramid levels (B, C, h, w)
Targets = Sequence[dict[str, Any]]  # of each image, as in `det.model.mask_rcnn`
Sizes = Sequence[tuple[int, int]]  # true (h, w) of each image


class Detections(NamedTuple):
    """The detections of one image, best first."""

    boxes: Tensor  # (N, 4) x0 y0 x1 y1
    scores: Tensor  # (N,) in 0..1
    labels: Tensor  # (N,) int64
    masks: Tensor  # (N, M, M) probabilities on a grid over the box; M is 0 without a mask head

    def rescaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
        """Return the detections in an image of another (h, w); boxes are clipped to it and empty boxes are dropped."""
        factor = self.boxes.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]] * 2)
        boxes = (self.boxes * factor).clamp(min=0).minimum(image_corners([to_size], self.boxes)[0])
        keep = nonempty(boxes)
        return Detections(boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep])


class Found(NamedTuple):
    """The detected boxes of one image, best first."""

    boxes: Tensor  # (N, 4)
    scores: Tensor  # (N,)
    labels: Tensor  # (N,)


class Scored(NamedTuple):
    """The outputs of the box heads for a batch's proposals."""

    regions: list[Tensor]  # (R, 4) of each image
    scores: Tensor  # (R, K + 1) of all images
    codes: Tensor  # (R, J, 4) of all images, decoded to boxes by `predictor`
    predictor: BoxPredictor


class RoIHeads(nn.Module, ABC):
    """Base of all RoI heads: sampling of regions, mask head, and selection of detections."""

    def __init__(
        self,
        classes: int,
        options: Heads,
        *,
        box_pooler: RegionPooler,
        mask_pooler: RegionPooler,
        mask_head: MaskHead | None,
        loss_weights: LossWeights,
    ) -> None:
        """`loss_weights` selects the weighting of regions; without a mask head only boxes are trained and detected."""
        super().__init__()
        self.classes, self.options = classes, options
        self.box_pooler, self.mask_pooler, self.mask_head = box_pooler, mask_pooler, mask_head
        self.loss_weights: LossWeights = loss_weights

    @abstractmethod
    def box_losses(self, maps: Maps, chosen: Regions, targets: Targets, sizes: Sizes) -> dict[str, Tensor]:
        """Return the losses of the box heads on the chosen regions."""

    @abstractmethod
    def scored(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> Scored:
        """Scores and boxes for every proposal."""

    def losses(self, maps: Maps, proposals: Sequence[Tensor], targets: Targets, sizes: Sizes) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with a mask head, loss_mask; `targets` as in `det.model.mask_rcnn`."""
        chosen = self._sampled(proposals, targets)
        return self.box_losses(maps, chosen, targets, sizes) | self._mask_losses(maps, chosen, targets)

    def _mask_losses(self, maps: Maps, chosen: Regions, targets: Targets) -> dict[str, Tensor]:
        """Return loss_mask on positive regions; empty without a mask head."""
        if self.mask_head is None:
            return {}
        shown = chosen.some((chosen.labels < self.classes).nonzero()[:, 0])
        masks = self.mask_head(self.mask_pooler(maps, shown.regions), shown.labels)
        wanted = _mask_targets(shown, targets, masks.shape[-1])
        return {"loss_mask": mask_loss(masks, wanted, shown.loss_weights(self.loss_weights))}

    @torch.no_grad()
    def _sampled(self, proposals: Sequence[Tensor], targets: Targets) -> Regions:
        candidates = [torch.cat([boxes, target["boxes"]]) for boxes, target in zip(proposals, targets, strict=True)]
        matched = matched_regions(candidates, targets, OVERLAP, self.classes)
        places, before = [], 0
        for candidates_R4, label_R in zip(candidates, matched.labels.split([len(c) for c in candidates]), strict=True):
            shown_R = torch.where(label_R < self.classes, FOREGROUND, BACKGROUND)
            places.append(torch.cat(sample(shown_R, self.options.samples, POSITIVE)) + before)
            before += len(candidates_R4)
        return matched.some(torch.cat(places))

    def detect(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> list[Detections]:
        """Return the detections of each image of true size (h, w), in pixels of the network's input."""
        return self.with_masks(maps, self.find(maps, proposals, sizes))

    def find(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> list[Found]:
        """Return the detections of each image without masks."""
        regions, scores, codes, predictor = self.scored(maps, proposals, sizes)
        counts = [len(one) for one in regions]
        each = zip(regions, scores.split(counts), codes.split(counts), sizes, strict=True)
        return [self._best(predictor, *one) for one in each]

    def with_masks(self, maps: Maps, found: Sequence[Found]) -> list[Detections]:
        """Return `found` with masks (N, M, M); M is 0 without a mask head."""
        regions_N5, label_N = with_image([one.boxes for one in found]), torch.cat([one.labels for one in found])
        masks_NMM = regions_N5.new_zeros(len(regions_N5), 0, 0)
        if self.mask_head is not None:
            masks_NMM = self.mask_head(self.mask_pooler(maps, regions_N5), label_N).sigmoid()
        masks_of = masks_NMM.split([len(one.scores) for one in found])
        return [Detections(*one, masks) for one, masks in zip(found, masks_of, strict=True)]

    def _best(
        self, predictor: BoxPredictor, regions_R4: Tensor, scores_RK: Tensor, codes_RJ4: Tensor, size: tuple[int, int]
    ) -> Found:
        """Return boxes, scores and labels of one image after score threshold, NMS within a class, and top k."""
        region_N, label_N = (scores_RK[:, : self.classes] > self.options.score_threshold).nonzero(as_tuple=True)
        boxes_N4 = predictor.boxes(codes_RJ4, regions_R4, region_N, label_N)
        boxes_N4 = boxes_N4.clamp(min=0).minimum(image_corners([size], boxes_N4)[0])
        keep, scores = keep_best(boxes_N4, scores_RK[region_N, label_N], label_N, self.options)
        return Found(boxes_N4[keep], scores, label_N[keep])


class StandardHeads(RoIHeads):
    """Mask R-CNN's heads, with one box head."""

    def __init__(
        self, classes: int, options: Heads, *, box_head: BoxHead, box_predictor: BoxPredictor, **parts: Any
    ) -> None:
        """`parts` as for `RoIHeads`."""
        super().__init__(classes, options, **parts)
        self.box_head, self.box_predictor = box_head, box_predictor

    def box_losses(self, maps: Maps, chosen: Regions, targets: Targets, sizes: Sizes) -> dict[str, Tensor]:
        """Return loss_cls and loss_box_reg."""
        logits_RK, codes_RJ4 = self.box_predictor(self.box_head(self.box_pooler(maps, chosen.regions)))
        return self.box_predictor.losses(logits_RK, codes_RJ4, chosen, self.loss_weights)

    def scored(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> Scored:
        """Scores and boxes for every proposal."""
        logits_RK, codes_RJ4 = self.box_predictor(self.box_head(self.box_pooler(maps, with_image(proposals))))
        return Scored(list(proposals), self.box_predictor.scores(logits_RK), codes_RJ4, self.box_predictor)


def matched_regions(boxes: Sequence[Tensor], targets: Targets, overlap: float, classes: int) -> Regions:
    """Match every box (R, 4) of each image to the object it overlaps most; background if below `overlap`."""
    labels, wanted, objects = [], [], []
    for boxes_R4, target in zip(boxes, targets, strict=True):
        object_R, shown_R = match(box_iou(target["boxes"], boxes_R4), overlap, overlap, keep_best=False)
        label_R = torch.full_like(object_R, classes)
        shown = shown_R == FOREGROUND
        label_R[shown] = target["labels"][object_R[shown]]
        labels.append(label_R)
        objects.append(object_R)
        wanted.append(target["boxes"][object_R] if len(target["boxes"]) else boxes_R4)
    return Regions(with_image(boxes), torch.cat(labels), torch.cat(wanted), torch.cat(objects), len(targets))


def _mask_targets(shown: Regions, targets: Sequence[dict[str, Any]], side: int) -> Tensor:
    """Return the part of each region's object inside the region: bool (R, side, side)."""
    parts = []
    for image, target in enumerate(targets):
        of_image = shown.regions[:, 0] == image
        parts.append(target["masks"].rasterise(shown.objects[of_image], shown.regions[of_image, 1:], side))
    return torch.cat(parts)

"""RoI heads: sampling of regions for training, box and mask losses, and detections.

detectron2's `StandardROIHeads` (parameter names `box_head.*`, `box_predictor.*`, `mask_head.*`). In training the
objects' boxes are added to the proposals; the mask head uses only positive regions. At inference the mask head runs
on the final detections.
"""

# B image, T object, R region, N detection, K class, J code (one per class, or one for all), M side of a mask

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from mimbench.det.config import Heads, LossWeights
from mimbench.det.model.box_head import BoxHead, BoxPredictor
from mimbench.det.model.boxes import at_least_float32, image_corners, nonempty
from mimbench.det.model.host import consecutive, leaving, places, read, uploaded
from mimbench.det.model.loss_weights import loss_weights
from mimbench.det.model.mask_head import MaskHead, mask_loss
from mimbench.det.model.matching import BACKGROUND, FOREGROUND, match, occurrences, sample
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
        return self.scaled(from_size, to_size).without_empty()

    def scaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
        """Return the same with empty boxes, which `without_empty` drops: that waits for the device."""
        factor = uploaded([to_size[1] / from_size[1], to_size[0] / from_size[0]] * 2, self.boxes)
        boxes = (self.boxes * factor).clamp(min=0).minimum(image_corners([to_size], self.boxes)[0])
        return self._replace(boxes=boxes)

    def without_empty(self) -> Detections:
        """Return the detections whose boxes are not empty."""
        keep = nonempty(self.boxes)
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep])


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
        chosen, wanted = self._sampled(proposals, targets)
        losses = self.box_losses(maps, chosen, targets, sizes)  # the device has work while the host draws the masks
        return losses if wanted is None else losses | self._mask_losses(maps, chosen, wanted, targets)

    def _mask_losses(self, maps: Maps, chosen: Regions, wanted: MaskTargets, targets: Targets) -> dict[str, Tensor]:
        """Return loss_mask on positive regions."""
        assert self.mask_head is not None
        drawn = wanted.drawn(targets, self.mask_head.side(self.mask_pooler.side), pinned=maps[0].is_cuda)
        regions_R5, label_R = chosen.regions[chosen.shown], chosen.labels[chosen.shown]
        masks = self.mask_head(self.mask_pooler(maps, regions_R5, wanted.levels), label_R)
        weight_R = loss_weights(regions_R5[:, 0], len(targets), self.loss_weights)
        return {"loss_mask": mask_loss(masks, drawn.to(masks.device, non_blocking=True), weight_R)}

    @torch.no_grad()
    def _sampled(self, proposals: Sequence[Tensor], targets: Targets) -> tuple[Regions, MaskTargets | None]:
        """Return the sampled regions of each image, positive ones first, and what their masks are drawn from."""
        candidates = [torch.cat([boxes, target["boxes"]]) for boxes, target in zip(proposals, targets, strict=True)]
        matches = [
            matched_boxes(one, target, OVERLAP, self.classes) for one, target in zip(candidates, targets, strict=True)
        ]
        labels = [torch.where(one.labels < self.classes, FOREGROUND, BACKGROUND) for one in matches]
        parts, counts, positives = [], [], []
        each = zip(candidates, matches, labels, read([occurrences(label_R) for label_R in labels]), strict=True)
        for image, (boxes_R4, matched, label_R, found) in enumerate(each):
            foreground, background = sample(label_R, self.options.samples, POSITIVE, found)
            place = torch.cat([foreground, background])
            parts.append((F.pad(boxes_R4[place], (1, 0), value=float(image)), *(one[place] for one in matched)))
            positives.append(len(foreground))
            counts.append(len(place))
        regions_R5, label_R, target_R4, object_R = (torch.cat(of) for of in zip(*parts, strict=True))
        starts = [0, *accumulate(counts)][:-1]
        return self._read(regions_R5, label_R, target_R4, object_R, starts, counts, positives)

    def _read(
        self,
        regions_R5: Tensor,
        label_R: Tensor,
        target_R4: Tensor,
        object_R: Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        positives: Sequence[int],
    ) -> tuple[Regions, MaskTargets | None]:
        """Return the sampled regions with what the host must know of them, read in one wait."""
        level_R = self.box_pooler.levels(regions_R5[:, 1:])
        shown = consecutive(starts, positives, label_R)
        columns = [level_R[:, None], object_R[:, None], regions_R5[:, 1:]]
        known_R6 = leaving(torch.cat([column.to(regions_R5.dtype) for column in columns], dim=1))()
        levels = known_R6[:, 0].long()
        maps = len(self.box_pooler.strides)
        chosen = Regions(
            regions_R5, label_R, target_R4, object_R, counts, shown, levels.bincount(minlength=maps).tolist()
        )
        if self.mask_head is None:
            return chosen, None
        rows = [known_R6[start : start + count] for start, count in zip(starts, positives, strict=True)]
        of_shown = torch.cat([row[:, 0] for row in rows]).long().bincount(minlength=maps).tolist()
        return chosen, MaskTargets([row[:, 1].long() for row in rows], [row[:, 2:] for row in rows], of_shown)

    def detect(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> list[Detections]:
        """Return the detections of each image of true size (h, w), in pixels of the network's input."""
        return self.with_masks(maps, self.find(maps, proposals, sizes))

    def find(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> list[Found]:
        """Return the detections of each image without masks."""
        regions, scores, codes, predictor = self.scored(maps, proposals, sizes)
        counts = [len(one) for one in regions]
        high = [score_RK[:, : self.classes] > self.options.score_threshold for score_RK in scores.split(counts)]
        found = read([high_RK.sum() for high_RK in high])
        each = zip(regions, scores.split(counts), codes.split(counts), sizes, high, found, strict=True)
        return [self._best(predictor, *one) for one in each]

    def with_masks(self, maps: Maps, found: Sequence[Found]) -> list[Detections]:
        """Return `found` with masks (N, M, M); M is 0 without a mask head."""
        regions_N5, label_N = with_image([one.boxes for one in found]), torch.cat([one.labels for one in found])
        masks_NMM = regions_N5.new_zeros(len(regions_N5), 0, 0)
        if self.mask_head is not None:
            masks_NMM = at_least_float32(self.mask_head(self.mask_pooler(maps, regions_N5), label_N)).sigmoid()
        masks_of = masks_NMM.split([len(one.scores) for one in found])
        return [Detections(*one, masks) for one, masks in zip(found, masks_of, strict=True)]

    def _best(
        self,
        predictor: BoxPredictor,
        regions_R4: Tensor,
        scores_RK: Tensor,
        codes_RJ4: Tensor,
        size: tuple[int, int],
        high_RK: Tensor,
        count: int,
    ) -> Found:
        """Return boxes, scores and labels of one image after NMS within a class, and top k.

        `high_RK` are the regions and classes above the score threshold, `count` of them.
        """
        place_N = places(high_RK, count)
        region_N, label_N = place_N // self.classes, place_N % self.classes
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
        pooled = self.box_pooler(maps, chosen.regions, chosen.levels)
        logits_RK, codes_RJ4 = self.box_predictor(self.box_head(pooled))
        return self.box_predictor.losses(logits_RK, codes_RJ4, chosen, self.loss_weights)

    def scored(self, maps: Maps, proposals: Sequence[Tensor], sizes: Sizes) -> Scored:
        """Scores and boxes for every proposal."""
        logits_RK, codes_RJ4 = self.box_predictor(self.box_head(self.box_pooler(maps, with_image(proposals))))
        return Scored(list(proposals), self.box_predictor.scores(logits_RK), codes_RJ4, self.box_predictor)


class Matched(NamedTuple):
    """What the boxes (R, 4) of one image are matched to."""

    labels: Tensor  # (R,) 0..K-1, K background
    targets: Tensor  # (R, 4) box of the object; arbitrary for background
    objects: Tensor  # (R,) index of the object


def matched_boxes(boxes_R4: Tensor, target: dict[str, Any], overlap: float, classes: int) -> Matched:
    """Match every box of an image to the object it overlaps most; background if below `overlap`."""
    object_R, shown_R = match(box_iou(target["boxes"], boxes_R4), overlap, overlap, keep_best=False)
    if not len(target["boxes"]):
        return Matched(torch.full_like(object_R, classes), boxes_R4, object_R)
    label_R = torch.where(shown_R == FOREGROUND, target["labels"][object_R], classes)
    return Matched(label_R, target["boxes"][object_R], object_R)


class MaskTargets(NamedTuple):
    """What the masks of the positive regions are drawn from, in main memory."""

    objects: Sequence[Tensor]  # (R,) of each image: index of the object
    boxes: Sequence[Tensor]  # (R, 4) of each image
    levels: Sequence[int]  # positive regions of each pyramid map, for `RegionPooler`

    def drawn(self, targets: Targets, side: int, *, pinned: bool) -> Tensor:
        """Return the part of each region's object inside the region, in main memory: bool (R, side, side)."""
        parts = [
            target["masks"].rasterise(object_R, boxes_R4, side)
            for target, object_R, boxes_R4 in zip(targets, self.objects, self.boxes, strict=True)
        ]
        return torch.cat(parts).pin_memory() if pinned else torch.cat(parts)

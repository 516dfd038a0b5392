"""What is in each proposed region: sampling of regions for training, box and mask losses, and detections.

detectron2's `StandardROIHeads` (parameter names `box_head.*`, `box_predictor.*`, `mask_head.*`). In training the
objects themselves join the proposals; the mask head sees only regions of an object. At inference the mask head runs
on the final detections.
"""

# B image, T object, R region, N detection, K class

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from det.box_head import BoxHead, BoxPredictor
from det.boxes import image_corners, nonempty
from det.mask_head import MaskHead, mask_loss
from det.matching import match, sample
from det.pooling import RegionPooler, with_image


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: Tensor  # (N, 4) x0 y0 x1 y1
    scores: Tensor  # (N,) in 0..1
    labels: Tensor  # (N,) int64
    masks: Tensor  # (N, M, M) probabilities on a grid over the box

    def rescaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
        """The same in an image of another (h, w); boxes are clipped to it and those left empty are dropped."""
        factor = self.boxes.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]] * 2)
        boxes = (self.boxes * factor).clamp(min=0).minimum(image_corners([to_size], self.boxes)[0])
        keep = nonempty(boxes)
        return Detections(boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep])


class _Regions(NamedTuple):
    """The regions of a batch that the heads are trained on, images one after another."""

    regions: Tensor  # (R, 5) index of the image, box
    labels: Tensor  # (R,) 0..K-1, K background
    targets: Tensor  # (R, 4) box of the object
    objects: Tensor  # (R,) index of the object in its image


class RoIHeads(nn.Module):
    """Box head, box predictor and mask head on regions pooled from the pyramid."""

    def __init__(
        self,
        classes: int,
        *,
        box_pooler: RegionPooler,
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        mask_pooler: RegionPooler,
        mask_head: MaskHead,
        samples: int = 512,
        positive: float = 0.25,
        overlap: float = 0.5,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        top: int = 100,
    ) -> None:
        """`samples`, `positive` and `overlap` govern training, the last three inference."""
        super().__init__()
        self.classes = classes
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.mask_pooler, self.mask_head = mask_pooler, mask_head
        self.samples, self.positive, self.overlap = samples, positive, overlap
        self.score_threshold, self.nms, self.top = score_threshold, nms, top

    def losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """loss_cls, loss_box_reg and loss_mask; `targets` as in `det.mask_rcnn`."""
        chosen = self._sampled(proposals, targets)
        boxes_R4 = chosen.regions[:, 1:]
        hidden = self.box_head(self.box_pooler(maps, chosen.regions))
        logits, codes = self.box_predictor(hidden)
        losses = self.box_predictor.losses(logits, codes, boxes_R4, chosen.labels, chosen.targets)
        shown = (chosen.labels < self.classes).nonzero()[:, 0]
        masks = self.mask_head(self.mask_pooler(maps, chosen.regions[shown]), chosen.labels[shown])
        wanted = _mask_targets(_Regions(*(field[shown] for field in chosen)), targets, masks.shape[-1])
        return {**losses, "loss_mask": mask_loss(masks, wanted)}

    @torch.no_grad()
    def _sampled(self, proposals: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> _Regions:
        boxes, labels, wanted, objects = [], [], [], []
        for proposals_R4, target in zip(proposals, targets, strict=True):
            candidates_R4 = torch.cat([proposals_R4, target["boxes"]])
            overlap_TR = box_iou(target["boxes"], candidates_R4)
            object_R, label_R = match(overlap_TR, self.overlap, self.overlap, keep_best=False)
            foreground, background = sample(label_R, self.samples, self.positive)
            chosen = torch.cat([foreground, background])
            label = torch.full_like(chosen, self.classes)
            label[: len(foreground)] = target["labels"][object_R[foreground]]
            boxes.append(candidates_R4[chosen])
            labels.append(label)
            objects.append(object_R[chosen])
            wanted.append(target["boxes"][object_R[chosen]] if len(target["boxes"]) else candidates_R4[chosen])
        return _Regions(with_image(boxes), torch.cat(labels), torch.cat(wanted), torch.cat(objects))

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The best objects of each image of true size (h, w), in pixels of the network's input."""
        logits_RK, codes_RK4 = self.box_predictor(self.box_head(self.box_pooler(maps, with_image(proposals))))
        counts = [len(one) for one in proposals]
        found = [
            self._best(*one)
            for one in zip(proposals, logits_RK.softmax(-1).split(counts), codes_RK4.split(counts), sizes, strict=True)
        ]
        labels = torch.cat([label_N for _, _, label_N in found])
        regions = with_image([boxes_N4 for boxes_N4, _, _ in found])
        masks = self.mask_head(self.mask_pooler(maps, regions), labels).sigmoid()
        masks_of = masks.split([len(scores_N) for _, scores_N, _ in found])
        return [Detections(*one, masks_NMM) for one, masks_NMM in zip(found, masks_of, strict=True)]

    def _best(
        self, proposals_R4: Tensor, scores_RK: Tensor, codes_RK4: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one image: cut by score, suppressed within a class, the best `top` kept."""
        region_N, label_N = (scores_RK[:, : self.classes] > self.score_threshold).nonzero(as_tuple=True)
        boxes_N4 = self.box_predictor.boxes(codes_RK4[region_N, label_N], proposals_R4[region_N])
        boxes_N4 = boxes_N4.clamp(min=0).minimum(image_corners([size], boxes_N4)[0])
        scores_N = scores_RK[region_N, label_N]
        keep = batched_nms(boxes_N4, scores_N.float(), label_N, self.nms)[: self.top]
        return boxes_N4[keep], scores_N[keep], label_N[keep]


def _mask_targets(shown: _Regions, targets: Sequence[dict[str, Any]], side: int) -> Tensor:
    """The part of each region's object inside it: bool (R, side, side)."""
    parts = []
    for image, target in enumerate(targets):
        of_image = shown.regions[:, 0] == image
        parts.append(target["masks"].rasterise(shown.objects[of_image], shown.regions[of_image, 1:], side))
    return torch.cat(parts)

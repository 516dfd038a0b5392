"""Mask R-CNN and Cascade Mask R-CNN on a ViTDet backbone, with detectron2's arithmetic and parameter names.

    model = build_mask_rcnn(classes=80, vit=SIZES["B"], mean=..., std=...)
    losses = model(batch)                                 # training
    detections = model.detect(images, sizes)              # inference, one `Detections` per image

What goes in
    batch["images"]    (B, 3, H, W) RGB, uint8 or float in 0..255, padded at the bottom and the right with anything;
                       H and W at most `image`, the side the model pads to. Padding becomes zero *after* the
                       normalisation, as detectron2 has it.
    batch["sizes"]     B pairs (h, w), the true size of each image inside its padding
    batch["targets"]   B dictionaries: "boxes" float32 (T, 4) x0 y0 x1 y1 in pixels of the true image, none of them
                       empty; "labels" int64 (T,) in 0..classes-1; "masks" `det.model.masks.InstanceMasks` of length T.
                       T may be 0. Crowd regions do not belong here.

What comes out
    training           {"loss", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}, scalars;
                       "loss" is the sum of the others; a cascade has "loss_cls_stageN" and "loss_box_reg_stageN"
    inference          `Detections`, in pixels of the network's input; `Detections.rescaled` takes them to the size
                       of the original image and `det.model.masks.paste` draws their masks there

Sizes, all of them arguments of `build_mask_rcnn`
    vit                         shape of the encoder; its `image` gives the grid of the position table
    mean, std                   of the pixels, as fractions of 255
    image                       side of the square that images are padded to
    window, global_blocks, rel_pos, abs_pos, drop_path      `backbones.vitdet.ViTDet`
    scales, channels            pyramid levels as multiples of the encoder's resolution, finest first, and their width;
                                one level more, of half the last resolution, comes by itself, for proposals alone
    anchor_sizes, aspect_ratios side in pixels of a level's square anchor, one per level (one more than `scales`), and
                                height / width of the anchors at every cell
    rpn_convs, rpn_norm         hidden convolutions of the proposal head, and whether a norm follows each
    rpn_samples                 anchors per image in its loss
    pre_nms, post_nms           proposals kept per level before, and in all after, suppression: (training, inference)
    roi_samples                 regions per image in the losses of the heads
    head_convs, head_channels   convolutions of the box head and of the mask head, and their width
    fc                          width of the box head's hidden linear layer
    canonical_size, canonical_level     a region of this side in pixels is pooled from the level of stride
                                2**canonical_level, one twice as large from the next (equation 1 of FPN)
    normalise                   how regions count in the losses of the heads (`det.model.loss_weights`)
    masks                       whether there is a mask head; without one targets need no "masks", and none are found
    score_threshold, nms, top   detections not above the score are dropped, then suppressed per class, then cut
    soft_nms                    `det.model.nms`
    cascade                     three box heads in a row (`det.model.cascade`)
    class_loss, class_weights, federated    how classes are learned (`det.model.box_head.BoxPredictor`)

A detector that has diverged gives losses that are not finite; nothing in here raises for them, so that the training
loop can say so. Sources: detectron2 02b5c4e2, `configs/common/models/mask_rcnn_vitdet.py` and what it calls.
"""

# B image, T object of an image, R region of interest

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.config import ViT
from mimbench.backbones.pyramid import SimpleFeaturePyramid
from mimbench.backbones.vitdet import ViTDet
from mimbench.det.model.anchors import Anchors
from mimbench.det.model.box_head import BoxHead, BoxPredictor, ClassLoss
from mimbench.det.model.cascade import STAGES, CascadeHeads
from mimbench.det.model.loss_weights import Normalise
from mimbench.det.model.mask_head import MaskHead
from mimbench.det.model.nms import Selection, Soft
from mimbench.det.model.pooling import RegionPooler
from mimbench.det.model.roi_heads import Detections, RoIHeads, StandardHeads
from mimbench.det.model.rpn import RPN

__all__ = ["Detections", "MaskRCNN", "build_mask_rcnn"]


class MaskRCNN(nn.Module):
    """The detector: backbone, region proposals, and heads for boxes and masks."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: SimpleFeaturePyramid,
        proposal_generator: RPN,
        roi_heads: RoIHeads,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image: int,
    ) -> None:
        """`mean` and `std` of the pixels as fractions of 255; `image` is the side of the square padded to."""
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.image = image
        self.register_buffer("pixel_mean", _channels(mean), persistent=False)
        self.register_buffer("pixel_std", _channels(std), persistent=False)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch (form: see the top of the file)."""
        targets, sizes = batch["targets"], batch["sizes"]
        maps = self.features(batch["images"], sizes)
        proposals, losses = self.proposal_generator(maps, sizes, [target["boxes"] for target in targets])
        losses |= self.roi_heads.losses(maps, proposals, targets, sizes)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What is in each image: boxes in pixels of `images`, scores in 0..1, labels and mask probabilities.

        Args:
            images: (B, 3, H, W) as in training.
            sizes: the true (h, w) of each image.
        """
        maps = self.features(images, sizes)
        proposals, _ = self.proposal_generator(maps, sizes, None)
        return self.roi_heads.detect(maps, proposals, sizes)

    def features(self, images: Tensor, sizes: Sequence[tuple[int, int]], side: int | None = None) -> list[Tensor]:
        """The pyramid's maps of images (B, 3, H, W) in 0..255, padded to a square of `side`, by default `image`."""
        maps: list[Tensor] = self.backbone(self.normalised(images, sizes, side))
        return maps

    def normalised(self, images: Tensor, sizes: Sequence[tuple[int, int]], side: int | None = None) -> Tensor:
        """Images (B, 3, H, W) in 0..255 to (B, 3, side, side): normalised, and zero outside the true sizes.

        Raises:
            ValueError: if the batch is larger than the square.
        """
        side = side or self.image
        height, width = images.shape[-2:]
        if max(height, width) > side:
            raise ValueError(f"images of {height}x{width} pixels do not fit the model's square of image={side}")
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean).div_(self.pixel_std)
        for pixels_of_one, (h, w) in zip(pixels, sizes, strict=True):
            pixels_of_one[:, h:] = 0
            pixels_of_one[:, :, w:] = 0
        return F.pad(pixels, (0, side - width, 0, side - height))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor([255 * value for value in values]).view(-1, 1, 1)


def build_mask_rcnn(
    *,
    classes: int,
    vit: ViT,
    mean: Sequence[float],
    std: Sequence[float],
    image: int = 1024,
    window: int = 14,
    global_blocks: Sequence[int] = (2, 5, 8, 11),
    rel_pos: bool = True,
    abs_pos: bool = True,
    drop_path: float = 0.1,
    scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
    channels: int = 256,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rpn_convs: int = 2,
    rpn_norm: bool = False,
    rpn_samples: int = 256,
    pre_nms: tuple[int, int] = (2000, 1000),
    post_nms: tuple[int, int] = (1000, 1000),
    roi_samples: int = 512,
    head_convs: int = 4,
    head_channels: int = 256,
    fc: int = 1024,
    canonical_size: float = 224,
    canonical_level: int = 4,
    score_threshold: float = 0.05,
    nms: float = 0.5,
    top: int = 100,
    soft_nms: Soft = "off",
    normalise: Normalise = "batch",
    masks: bool = True,
    cascade: bool = False,
    class_loss: ClassLoss = "softmax",
    class_weights: Tensor | None = None,
    federated: int = 50,
) -> MaskRCNN:
    """A Mask R-CNN of the sizes told at the top of the file; by default detectron2's for images of 1024 pixels.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    positions = {"rel_pos": rel_pos, "abs_pos": abs_pos}
    net = ViTDet(vit, image=image, window=window, global_blocks=global_blocks, drop_path=drop_path, **positions)
    backbone = SimpleFeaturePyramid(net, channels, scales)
    _check_levels(anchor_sizes, image, backbone.strides)
    anchors = Anchors(anchor_sizes, aspect_ratios, backbone.strides)
    convs, pooled = [head_channels] * head_convs, backbone.strides[:-1]
    stages = STAGES if cascade else STAGES[:1]
    box_heads = [BoxHead(channels, 7, convs, fc) for _ in stages]
    learned: dict[str, Any] = {"class_loss": class_loss, "class_weights": class_weights, "federated": federated}
    predictors = [BoxPredictor(fc, classes, weights=of.weights, agnostic=cascade, **learned) for of in stages]
    options: dict[str, Any] = {
        "box_pooler": RegionPooler(7, pooled, canonical_size, canonical_level),
        "mask_pooler": RegionPooler(14, pooled, canonical_size, canonical_level),
        "mask_head": MaskHead(channels, convs, classes) if masks else None,
        "samples": roi_samples,
        "selection": Selection(score_threshold, nms, top, soft_nms),
        "normalise": normalise,
    }
    heads: RoIHeads
    if cascade:
        overlaps = [stage.overlap for stage in stages]
        heads = CascadeHeads(classes, box_heads=box_heads, box_predictors=predictors, overlaps=overlaps, **options)
    else:
        heads = StandardHeads(classes, box_head=box_heads[0], box_predictor=predictors[0], **options)
    rpn = RPN(
        channels, anchors, convs=rpn_convs, norm=rpn_norm, samples=rpn_samples, pre_nms=pre_nms, post_nms=post_nms
    )
    return MaskRCNN(backbone, rpn, heads, mean=mean, std=std, image=image)


def _check_levels(anchor_sizes: Sequence[float], image: int, strides: Sequence[int]) -> None:
    if len(anchor_sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes={tuple(anchor_sizes)} must hold one size per pyramid level: {len(strides)}, for strides "
            f"{tuple(strides)}, of which the last is the level added on top of `scales`"
        )
    if image % strides[-2]:
        raise ValueError(
            f"image={image} must be a multiple of the coarsest stride made from the encoder, {strides[-2]}"
        )

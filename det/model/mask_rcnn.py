"""Mask R-CNN and Cascade Mask R-CNN on a ViTDet backbone, with detectron2's arithmetic and parameter names.

    model = build_mask_rcnn(MaskRCNNConfig(data="coco"), SIZES["B"], classes=80, mean=..., std=...)
    losses = model(batch)                                 # training
    detections = model.detect(images, sizes)              # inference, one `Detections` per image

Inputs
    batch["images"]    (B, 3, H, W) RGB, uint8 or float in 0..255, padded at the bottom and the right with any values;
                       H and W at most `image`, the side the model pads to. Padding becomes zero *after* the
                       normalisation, as detectron2 has it.
    batch["sizes"]     B pairs (h, w), the true size of each image inside its padding
    batch["targets"]   B dictionaries: "boxes" float32 (T, 4) x0 y0 x1 y1 in pixels of the true image, none of them
                       empty; "labels" int64 (T,) in 0..classes-1; "masks" `det.model.masks.InstanceMasks` of length T.
                       T may be 0. Crowd regions must be excluded.

Outputs
    training           {"loss", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}, scalars;
                       "loss" is the sum of the others; a cascade has "loss_cls_stageN" and "loss_box_reg_stageN"
    inference          `Detections`, in pixels of the network's input; `Detections.rescaled` takes them to the size
                       of the original image and `det.model.masks.paste` draws their masks there

Sizes and options are those of `det.config.MaskRCNNConfig`; each group is passed to the part it configures.

A diverged detector returns losses that are not finite; the training loop reports them. Sources: detectron2 02b5c4e2,
`configs/common/models/mask_rcnn_vitdet.py` and the code it calls.
"""

# B image, T object of an image, R region of interest

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.pyramid import SimpleFeaturePyramid
from mimbench.backbones.vitdet import ViTDet
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.model.anchors import Anchors
from mimbench.det.model.box_head import BoxHead, BoxPredictor
from mimbench.det.model.cascade import STAGES, CascadeHeads
from mimbench.det.model.mask_head import MaskHead
from mimbench.det.model.pooling import RegionPooler
from mimbench.det.model.roi_heads import Detections, RoIHeads, StandardHeads
from mimbench.det.model.rpn import RPN

__all__ = ["Detections", "MaskRCNN", "build_mask_rcnn"]

PLAIN = Traits()


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
        """Return the losses of a batch (format: see the top of the file)."""
        targets, sizes = batch["targets"], batch["sizes"]
        maps = self.features(batch["images"], sizes)
        proposals, losses = self.proposal_generator(maps, sizes, [target["boxes"] for target in targets])
        losses |= self.roi_heads.losses(maps, proposals, targets, sizes)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Return the detections of each image: boxes in pixels of `images`, scores in 0..1, labels, mask probabilities.

        Args:
            images: (B, 3, H, W) as in training.
            sizes: the true (h, w) of each image.
        """
        maps = self.features(images, sizes)
        proposals, _ = self.proposal_generator(maps, sizes, None)
        return self.roi_heads.detect(maps, proposals, sizes)

    def features(self, images: Tensor, sizes: Sequence[tuple[int, int]], side: int | None = None) -> list[Tensor]:
        """Return the pyramid's maps of images (B, 3, H, W) in 0..255, padded to a square of `side` (or `image`)."""
        maps: list[Tensor] = self.backbone(self.normalised(images, sizes, side))
        return maps

    def compilable(self) -> list[nn.Module]:
        """Return the modules that torch.compile captures in one graph each; the rest depends on the data."""
        return [self.backbone, self.proposal_generator.rpn_head]

    def normalised(self, images: Tensor, sizes: Sequence[tuple[int, int]], side: int | None = None) -> Tensor:
        """Normalise images (B, 3, H, W) in 0..255 and pad to (B, 3, side, side), with zeros outside the true sizes.

        Raises:
            ValueError: if the batch is larger than the square.
        """
        side = side or self.image
        height, width = images.shape[-2:]
        if max(height, width) > side:
            raise ValueError(
                f"images of {height}x{width} pixels exceed the model's square of image={side}; resize them"
            )
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean).div_(self.pixel_std)
        for pixels_of_one, (h, w) in zip(pixels, sizes, strict=True):
            pixels_of_one[:, h:] = 0
            pixels_of_one[:, :, w:] = 0
        return F.pad(pixels, (0, side - width, 0, side - height))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor([255 * value for value in values]).view(-1, 1, 1)


def build_mask_rcnn(
    config: MaskRCNNConfig,
    vit: ViT,
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_weights: Tensor | None = None,
    traits: Traits = PLAIN,
    interpolation: Interpolation = "bicubic",
) -> MaskRCNN:
    """Return the detector of `config` on an encoder of shape `vit`, with weights drawn from torch's generator.

    Args:
        config: `vitdet`, `proposals`, `heads`, `image`, `loss_weights`, `recompute` and `skip_dropped` are used; fields
            about training and data are not.
        vit: shape of the encoder, before `vitdet.patch`; its `image` gives the grid of the position table.
        classes: number of categories in the data.
        mean, std: of the pixels, as fractions of 255.
        class_weights: (K,) sampling weight of each class, with heads.class_loss="federated".
        traits: the encoder's differences from MAE's.
        interpolation: how its position table is resized.

    Raises:
        ValueError: if the encoder does not fit the detector; names the field.
    """
    vit, vitdet, heads = config.shape_for(vit), config.vitdet, config.heads
    net = ViTDet(
        vit,
        traits,
        image=config.image,
        window=vitdet.window,
        global_blocks=vitdet.attend_globally(vit.depth, traits),
        rel_pos=vitdet.rel_pos and not vitdet.frozen,  # they start at zero and would not be trained
        abs_pos=vitdet.abs_pos,
        drop_path=vitdet.drop_path,
        prefix=vitdet.prefix,
        positions=vitdet.positions,
        interpolation=interpolation,
        rope_windows=vitdet.rope_windows,
        relative_resize=vitdet.relative_resize,
        norm=vitdet.norm == "own",
    )
    net.recompute = config.recompute
    for block in net.blocks:
        block.skip_dropped = config.skip_dropped  # type: ignore[assignment]
    if vitdet.frozen:
        net.freeze()
    backbone = SimpleFeaturePyramid(net, vitdet.channels, vitdet.scales)
    anchors = Anchors(config.proposals.anchor_sizes, config.proposals.anchor_ratios, backbone.strides)
    stages = STAGES if heads.cascade else STAGES[:1]
    box_heads = [BoxHead(vitdet.channels, 7, heads) for _ in stages]
    predictors = [BoxPredictor(classes, heads, weights=stage.weights, class_weights=class_weights) for stage in stages]
    pooled = backbone.strides[:-1]
    shared: dict[str, Any] = {
        "box_pooler": RegionPooler(7, pooled),
        "mask_pooler": RegionPooler(14, pooled),
        "mask_head": MaskHead(vitdet.channels, heads, classes) if heads.masks else None,
        "loss_weights": config.loss_weights,
    }
    roi_heads: RoIHeads
    if heads.cascade:
        overlaps = [stage.overlap for stage in stages]
        roi_heads = CascadeHeads(
            classes, heads, box_heads=box_heads, box_predictors=predictors, overlaps=overlaps, **shared
        )
    else:
        roi_heads = StandardHeads(classes, heads, box_head=box_heads[0], box_predictor=predictors[0], **shared)
    rpn = RPN(vitdet.channels, anchors, config.proposals)
    return MaskRCNN(backbone, rpn, roi_heads, mean=mean, std=std, image=config.image)

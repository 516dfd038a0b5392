"""UperNet on an encoder: `model(batch)` returns the training loss, `model.logits(images)` the logits of each pixel.

Parameters have mmsegmentation's names: backbone.*, neck.*, decode_head.*, auxiliary_head.*.

Shapes: B image, H x W its size, K class, h x w the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimbench.engine.data.images import normalise
from mimbench.seg.config import Heads
from mimbench.seg.model.heads import FCNHead, Feature2Pyramid, UPerHead
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.vit import OtherViT, SegmentationViT

Backbone = SegmentationViT | OtherViT
Size = tuple[int, int]  # height, width
RGB = tuple[float, float, float]


class Segmenter(Protocol):
    """The interface of models for inference: logits of normalised images, and the accepted sizes."""

    mean: RGB
    std: RGB

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of images (B, 3, H, W); h and w are fractions of H and W."""
        ...

    def fixed_side(self) -> int | None:
        """The only image side that the model accepts; None if it accepts any multiple of `patch_side`."""
        ...

    def patch_side(self) -> int:
        """The number that image sides must be a multiple of."""
        ...


class UPerNet(nn.Module):
    """An encoder with a pyramid, UPerHead and, in training, an auxiliary head.

    Args:
        backbone: returns four maps.
        classes: number of classes K.
        config: the config of the heads.
        fused: see `UPerHead`.
        mean: mean of the images, for values in 0..1.
        std: their standard deviation.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        config: Heads,
        *,
        fused: bool,
        mean: RGB,
        std: RGB,
    ) -> None:
        super().__init__()
        width = backbone.width
        if len(backbone.outputs) != 4 or not 0 <= config.aux_output < 4:
            raise ValueError(
                f"UperNet needs the outputs of four blocks, not {len(backbone.outputs)} (backbone.blocks), and "
                f"heads.aux_output={config.aux_output} must be one of them, 0 to 3"
            )
        self.mean, self.std, self.config, self.classes = mean, std, config, classes
        self.backbone = backbone
        self.neck = Feature2Pyramid(width, backbone.patch)
        channels = config.channels or width
        self.decode_head = UPerHead(width, channels, classes, config.pool_scales, config.dropout, fused)
        auxiliary = FCNHead(width, config.aux_channels, classes, config.dropout) if config.aux_weight else None
        self.auxiliary_head = auxiliary

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the losses of a batch: `loss`, the sum of `loss_decode` and `loss_aux` (weighted), and both.

        Args:
            batch: "images", uint8 (B, 3, H, W), padded at the bottom and the right; "sizes", the true (h, w) of each;
                "labels", uint8 (B, H, W), 255 where ignored.
        """
        maps = self.neck(self.backbone(prepared(batch["images"], batch["sizes"], self.mean, self.std)))
        losses = {"loss_decode": pixel_loss(self.decode_head(maps), batch["labels"], self.config.loss_over)}
        if self.auxiliary_head is not None:
            logits = self.auxiliary_head(maps[self.config.aux_output])
            losses["loss_aux"] = self.config.aux_weight * pixel_loss(logits, batch["labels"], self.config.loss_over)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H / 4, W / 4) of normalised images (B, 3, H, W)."""
        made: Tensor = self.decode_head(self.neck(self.backbone(images)))
        return made

    def compilable(self) -> list[nn.Module]:
        """Return the modules that torch.compile captures in one graph each."""
        return [self.backbone, self.neck]

    def fixed_side(self) -> int | None:
        """The only image side that the model accepts: the one of its relative positions; None without them."""
        return None if self.backbone.grid is None else self.backbone.grid * self.backbone.patch

    def patch_side(self) -> int:
        """The number that image sides must be a multiple of: two patches, because the coarsest map is halved."""
        return 2 * self.backbone.patch


def prepared(images: Tensor, sizes: Sequence[Size], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise uint8 images (B, 3, H, W) to floats, with zeros (the mean colour) beyond the true size of each."""
    made = normalise(images, mean, std)
    for image, (height, width) in zip(made, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return made

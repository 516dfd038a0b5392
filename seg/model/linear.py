"""A linear head on frozen patch features, as DINOv2 (mmsegmentation's BNHead), DINOv3 and iBOT have it.

Parameters are named as in DINOv2's head: bn.*, conv_seg.*.

Shapes: B image, D feature (of all layers side by side), K class, h x w grid of patches.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.backbones.user_encoder import UserEncoder
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.norm import SyncBatchNorm
from mimbench.seg.model.segmenter import RGB, Backbone


class UserBackbone(nn.Module):
    """A user's encoder that is none of ours: normalised images (B, 3, H, W) to its one map (B, D, h, w)."""

    def __init__(self, user: UserEncoder) -> None:
        super().__init__()
        self.user, self.inner = user, user.module  # as a child it moves with the module
        self.patch, self.width, self.outputs = user.encoder.patch, user.encoder.width, (0,)
        self.grid: int | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map."""
        return [self.user.features(images).grid.permute(0, 3, 1, 2)]


class LinearHead(nn.Module):
    """Dropout of channels, batch norm (or none), and a classifier of every patch."""

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        norm: Literal["batch", "none"] = "batch",
        dropout: float = 0.0,
        loss_over: Literal["all", "valid"] = "all",
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.bn: nn.Module = SyncBatchNorm(width) if norm == "batch" else nn.Identity()
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.loss_over = loss_over
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    def logits(self, features_BDhw: Tensor) -> Tensor:
        """Logits (B, K, h, w)."""
        made: Tensor = self.conv_seg(self.bn(self.dropout(features_BDhw)))
        return made

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of "features" (B, D, h, w) with "labels", uint8 (B, H, W)."""
        return {"loss": pixel_loss(self.logits(batch["features"]), batch["labels"], self.loss_over)}


class FrozenEncoder:
    """Normalised images (B, 3, H, W) to patch features (B, D, h, w), without gradients; no module, and not saved.

    Sides that are no multiple of the patch are padded around the middle, as DINOv2 does it.
    """

    def __init__(self, backbone: Backbone | UserBackbone, device: torch.device, precision: torch.dtype | None) -> None:
        backbone.to(device).eval().requires_grad_(False)
        self.backbone = backbone
        self.device, self.precision = device, precision
        self.patch = backbone.patch
        self.width = backbone.width * len(backbone.outputs)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of all layers side by side, in single precision."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            maps = self.backbone(centre_padded(images, self.patch))
        return torch.cat(maps, dim=1).to(images.dtype)

    def fixed_side(self) -> int | None:
        """The only side of images that the encoder takes; None if there is none."""
        return None if self.backbone.grid is None else self.backbone.grid * self.patch


class FrozenSegmenter:
    """Encoder and head as inference wants them (`seg.model.segmenter.Segmenter`)."""

    def __init__(self, encoder: FrozenEncoder, head: LinearHead, mean: RGB, std: RGB) -> None:
        self.encoder, self.head, self.mean, self.std = encoder, head, mean, std

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) of normalised images."""
        return self.head.logits(self.encoder(images))

    def fixed_side(self) -> int | None:
        """The only side of images that it takes; None if any will do."""
        return self.encoder.fixed_side()

    def patch_side(self) -> int:
        """Any side will do: images are padded here."""
        return 1


def centre_padded(images: Tensor, multiple: int) -> Tensor:
    """Images with zeros around them, up to the next multiple of `multiple` on each side."""
    pads = []
    for length in (images.shape[3], images.shape[2]):
        missing = -length % multiple
        pads += [missing // 2, missing - missing // 2]
    return F.pad(images, pads) if any(pads) else images

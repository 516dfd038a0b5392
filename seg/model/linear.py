"""A linear head on frozen patch features, as in DINOv2 (mmsegmentation's BNHead), DINOv3 and iBOT.

Parameters have the names of DINOv2's head: bn.*, conv_seg.*.

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
    """A user's encoder as a backbone: maps normalised images (B, 3, H, W) to one map (B, D, h, w)."""

    def __init__(self, user: UserEncoder) -> None:
        super().__init__()
        self.user, self.inner = user, user.module  # a child module moves to the device with its parent
        self.patch, self.width, self.outputs = user.encoder.patch, user.encoder.width, (0,)
        self.grid: int | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a list of one map."""
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
        """Return logits (B, K, h, w)."""
        made: Tensor = self.conv_seg(self.bn(self.dropout(features_BDhw)))
        return made

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of "features" (B, D, h, w) with "labels", uint8 (B, H, W)."""
        return {"loss": pixel_loss(self.logits(batch["features"]), batch["labels"], self.loss_over)}


class FrozenEncoder:
    """Map normalised images (B, 3, H, W) to patch features (B, D, h, w), without gradients; not a module, not saved.

    Sides that are not a multiple of the patch are padded on both ends, as in DINOv2.
    """

    def __init__(self, backbone: Backbone | UserBackbone, device: torch.device, precision: torch.dtype | None) -> None:
        backbone.to(device).eval().requires_grad_(False)
        self.backbone = backbone
        self.device, self.precision = device, precision
        self.patch = backbone.patch
        self.width = backbone.width * len(backbone.outputs)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of all layers, concatenated, in single precision."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            maps = self.backbone(centre_padded(images, self.patch))
        return torch.cat(maps, dim=1).to(images.dtype)

    def fixed_side(self) -> int | None:
        """The only image side that the encoder accepts; None if it accepts any."""
        return None if self.backbone.grid is None else self.backbone.grid * self.patch


class FrozenSegmenter:
    """Encoder and head with the interface for inference (`seg.model.segmenter.Segmenter`)."""

    def __init__(self, encoder: FrozenEncoder, head: LinearHead, mean: RGB, std: RGB) -> None:
        self.encoder, self.head, self.mean, self.std = encoder, head, mean, std

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of normalised images."""
        return self.head.logits(self.encoder(images))

    def fixed_side(self) -> int | None:
        """The only image side that it accepts; None if it accepts any."""
        return self.encoder.fixed_side()

    def patch_side(self) -> int:
        """One pixel: it accepts any side, because images are padded here."""
        return 1


def centre_padded(images: Tensor, multiple: int) -> Tensor:
    """Pad images with zeros on all sides, up to the next multiple of `multiple` along each axis."""
    pads = []
    for length in (images.shape[3], images.shape[2]):
        missing = -length % multiple
        pads += [missing // 2, missing - missing // 2]
    return F.pad(images, pads) if any(pads) else images

"""The shape of a plain ViT encoder, without torch, so that recipes can be read at once."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import science


@dataclass(frozen=True)
class ViT:
    """A plain ViT: patch embedding, class token, pre-norm blocks (MAE and CrossMAE, table of sizes)."""

    width: int = science(768)
    depth: int = science(12)
    heads: int = science(12)
    patch: int = science(16, about="side of a patch in pixels")
    image: int = science(224, about="side of a pretraining image in pixels")

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of the encoder must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 for two-dimensional sin-cos positions")
        if self.image % self.patch:
            raise ValueError(f"image={self.image} must be a multiple of patch={self.patch}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image // self.patch


SIZES = {
    "S": ViT(384, 12, 6),
    "B": ViT(768, 12, 12),
    "L": ViT(1024, 24, 16),
    "H": ViT(1280, 32, 16, patch=14),
}

HANDWRITTEN = ViT(96, 4, 4, patch=8, image=64)  # the demo's: what a CPU core trains in minutes

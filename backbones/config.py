"""The shape of an encoder and its traits, without torch, so that recipes can be read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mimbench.engine.run.config import science

Positions = Literal["absolute", "relative", "rope", "none"]
Interpolation = Literal["bicubic", "bicubic-antialias", "bicubic-offset", "regenerate"]  # `positions.resize_positions`
Activation = Literal["gelu", "quick_gelu"]
MlpKind = Literal["mlp", "swiglu", "swiglu_split"]


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


@dataclass(frozen=True)
class Traits:
    """What an encoder has beyond, or without, what MAE's plain ViT has; the defaults are MAE's.

    Sizes are `ViT`'s. Everything else that changes the arithmetic is here, so that the two and a state dictionary are
    an encoder. The sources of the values are the papers' code, as each checkpoint family says.
    """

    class_token: bool = True
    registers: int = 0  # tokens beside the class token that are no patch (DINOv2, DINOv3)
    positions: Positions = "absolute"
    pre_norm: bool = False  # a norm before the first block (CLIP)
    layer_scale: bool = False  # a learned factor per channel after attention and after the MLP
    activation: Activation = "gelu"
    mlp: MlpKind = "mlp"  # swiglu: gate and value in one matrix (DINOv2), or in two
    hidden: int | None = None  # width inside the MLP (of the gated product); None: four times the encoder's
    patch_bias: bool = True
    qkv_bias: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, among in (("positions", Positions), ("activation", Activation), ("mlp", MlpKind)):
            if getattr(self, name) not in get_args(among):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} of the encoder must be one of {', '.join(get_args(among))}"
                )
        if self.registers < 0 or (self.hidden is not None and self.hidden < 1):
            raise ValueError(f"registers={self.registers} and hidden={self.hidden} of the encoder must not be negative")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} of the encoder must be above 0")
        if self.registers and not self.class_token:
            raise ValueError(f"registers={self.registers} need a class token before them, as in DINOv2")

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.registers

    @property
    def plain(self) -> bool:
        """It is MAE's ViT, which everything here can use."""
        return self == Traits()


SIZES = {
    "S": ViT(384, 12, 6),
    "B": ViT(768, 12, 12),
    "L": ViT(1024, 24, 16),
    "H": ViT(1280, 32, 16, patch=14),
}

HANDWRITTEN = ViT(96, 4, 4, patch=8, image=64)  # the demo's: what a CPU core trains in minutes

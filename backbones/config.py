"""The sizes and the traits of an encoder. Does not import torch, so recipes load fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from mimbench.engine.run.config import science

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images, in 0..1

Positions = Literal["absolute", "relative", "rope", "none"]
Interpolation = Literal[
    "bicubic", "bicubic-antialias", "bicubic-offset", "bilinear-antialias", "bilinear-square", "regenerate"
]  # `positions.resize_positions`
Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
MlpKind = Literal["mlp", "swiglu", "swiglu_split"]
Norm = Literal["layer", "rms"]
Prefix = Literal["drop", "global", "copies"]  # treatment of class token and registers in ViTDet, see `vitdet`
PositionTable = Literal["resize", "tile"]  # treatment of a table of absolute positions in ViTDet
RopeWindows = Literal["window", "image"]  # origin of rotary positions in a window
Kernel = Literal["bicubic", "pseudo-inverse"]  # resampling of a patch kernel; the pseudo-inverse keeps its responses
RelativeResize = Literal["cubic", "linear", "none"]  # `relative_table`


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
        """The number of patches along one side."""
        return self.image // self.patch


@dataclass(frozen=True)
class Rope:
    """Axial rotary positions of EVA-02 and the Perception Encoder; DINOv3's are `positions="rope"` of `Traits`.

    The patch in row i of h has the position (i + offset) * span / h, and its column likewise: an image of another size
    has finer or coarser steps over the same span. Channel pair j of d / 4 turns by that times theta ** (-4 j / d).
    Sources: baaivision/EVA, EVA-02/asuka/rope.py; timm's `build_rotary_pos_embed`.
    """

    span: int | None  # patches along one side of a pretraining image; None: steps of 1 at every size
    theta: float = 10_000.0
    order: Literal["yx", "xy"] = "yx"  # "yx": the row turns the first half of a head's channels; "xy": the column
    offset: float = 0.0  # 1 if the class token is at (0, 0)

    def __post_init__(self) -> None:
        if (self.span is not None and self.span < 1) or self.theta <= 0:
            raise ValueError(f"span={self.span} and theta={self.theta} of rotary positions must be positive")
        if self.order not in ("yx", "xy"):
            raise ValueError(f"order={self.order!r} of rotary positions must be yx or xy")


@dataclass(frozen=True)
class Windows:
    """Windows that an encoder's own blocks attend in, with decomposed relative positions (SAM, ViTDet's backbone).

    Sources: facebookresearch/segment-anything, modeling/image_encoder.py; the arithmetic is `window_attention`'s.
    """

    side: int  # patches along one side
    global_blocks: tuple[int, ...]  # blocks that attend to the whole image
    grid: int | None = None  # side of the grid that global blocks' relative positions are for; None: the encoder's

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))  # a list in the JSON of a file's metadata
        if self.side < 1 or any(index < 0 for index in self.global_blocks) or (self.grid or 1) < 1:
            raise ValueError(
                f"side={self.side}, global_blocks={list(self.global_blocks)} and grid={self.grid} of windows are "
                "impossible"
            )

    def side_of(self, block: int, grid: int) -> int:
        """Return the side of the grid that relative positions of `block` are for, in an encoder of `grid` patches."""
        return (self.grid or grid) if block in self.global_blocks else self.side


@dataclass(frozen=True)
class Traits:
    """The differences of an encoder from MAE's plain ViT; the defaults are MAE's.

    Sizes are in `ViT`; everything else that changes the arithmetic is here. Together with a state dictionary they
    define an encoder. The values come from the papers' code; each checkpoint family names its source.
    """

    class_token: bool = True
    registers: int = 0  # extra tokens that are neither class token nor patch (DINOv2, DINOv3)
    positions: Positions = "absolute"
    pre_norm: bool = False  # a norm before the first block (CLIP)
    layer_scale: bool = False  # a learned factor per channel after attention and after the MLP
    activation: Activation = "gelu"
    mlp: MlpKind = "mlp"  # swiglu: gate and value in one matrix (DINOv2), or in two
    hidden: int | None = None  # width inside the MLP (of the gated product); None: four times the encoder's width
    patch_bias: bool = True
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    rope: Rope | None = None  # rotary positions in addition to `positions` (EVA-02, Perception Encoder)
    key_bias: bool = True  # False: only queries and values have one (EVA-02; always for a relative table and DINOv3)
    proj_bias: bool = True  # of attention's projection
    mlp_bias: bool = True
    attention_norm: bool = False  # a norm before attention's projection (EVA02-CLIP)
    mlp_norm: bool = False  # a norm inside the MLP (EVA-02)
    patch_norm: bool = False  # a norm of embedded patches, before positions are added (AIMv2)
    norm: Norm = "layer"
    windows: Windows | None = None  # most blocks attend in windows, and all have decomposed relative positions (SAM)

    def __post_init__(self) -> None:
        if isinstance(self.rope, dict):  # from the JSON of a file's metadata
            object.__setattr__(self, "rope", Rope(**self.rope))
        if isinstance(self.windows, dict):
            object.__setattr__(self, "windows", Windows(**self.windows))
        choices = {"positions": Positions, "activation": Activation, "mlp": MlpKind, "norm": Norm}
        for name, among in choices.items():
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
        if self.rope is not None and self.positions in ("relative", "rope"):
            raise ValueError(f"rope cannot be combined with positions={self.positions}, which are already relative")
        if self.windows is not None and (self.class_token or self.rotary or self.positions == "relative"):
            raise ValueError(
                "windows need an encoder without class token, rotary or other relative positions, as SAM's"
            )

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.registers

    @property
    def plain(self) -> bool:
        """Whether it is MAE's ViT, which every part of mimbench supports."""
        return self == Traits()

    @property
    def mae_like(self) -> bool:
        """Whether it is MAE's ViT, with or without a class token; detectron2's ViTDet supports it too."""
        return self.windows is None and replace(self, class_token=True).plain

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated by position."""
        return self.rope is not None or self.positions == "rope"

    @property
    def separate_bias(self) -> bool:
        """Whether queries and values have separate biases, `q_bias` and `v_bias`, and keys have none."""
        return self.qkv_bias and (not self.key_bias or self.positions in ("relative", "rope"))

    @property
    def gammas(self) -> bool:
        """Whether LayerScale is named `gamma_1` and `gamma_2`, as in BEiT's and EVA's blocks, not `ls1.gamma`."""
        return self.rotary or self.positions == "relative"


SIZES = {
    "S": ViT(384, 12, 6),
    "B": ViT(768, 12, 12),
    "L": ViT(1024, 24, 16),
    "H": ViT(1280, 32, 16, patch=14),
}


def global_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks of ViTDet with global attention: the last of each quarter of `depth` (ViTDet, section 3.2).

    That is 2, 5, 8, 11 of ViT-B and 5, 11, 17, 23 of ViT-L.
    """
    return tuple(sorted({max(depth * part // 4 - 1, 0) for part in (1, 2, 3, 4)}))


def vitdet_global_blocks(depth: int, traits: Traits) -> tuple[int, ...]:
    """Return the default global blocks of ViTDet for an encoder: its own if it has windows, else `global_blocks`."""
    return global_blocks(depth) if traits.windows is None else traits.windows.global_blocks


def vitdet_window(vit: ViT, traits: Traits, image: int) -> int:
    """Return the default side of ViTDet's windows for an encoder, in patches.

    14 for encoders like MAE's, as published, and an encoder's own windows if it has them (SAM). For others it is the
    pretraining grid, if that has 14 to 32 patches a side and divides the grid of images of `image` pixels: a window
    then looks like a pretraining image. Otherwise 16.
    """
    if traits.mae_like:
        return 14
    if traits.windows is not None:
        return traits.windows.side
    own = traits.rope.span if traits.rope is not None and traits.rope.span else vit.grid
    return own if 14 <= own <= 32 and (image // vit.patch) % own == 0 else 16


HANDWRITTEN = ViT(96, 4, 4, patch=8, image=64)  # the demo's encoder: one CPU core trains it in minutes

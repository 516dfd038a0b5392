"""The configs of pretraining methods (without torch). The masking selects their patches: masking/configs.py.

Each states whether it `reconstructs` patches, so that the masking must leave some to predict, and whether it
`gives_attention` of a teacher, which a masking can use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from mimbench.engine.run.config import science


def check_decoder(depth: int, width: int, heads: int) -> None:
    """Check the sizes of a decoder.

    Raises:
        ValueError: naming the field.
    """
    for name, value in (("depth", depth), ("width", width), ("heads", heads)):
        if value < 1:
            raise ValueError(f"{name}={value} of the decoder must be at least 1")
    if width % 4 or width % heads:
        raise ValueError(f"width={width} of the decoder must be a multiple of 4 and of heads={heads}")


@dataclass(frozen=True)
class CrossMAEConfig:
    """CrossMAE (arXiv 2401.14391): mask tokens predict hidden patches from the visible ones by cross-attention.

    Patches that are hidden but not predicted are never computed. With depth 12 and a quarter of the patches predicted,
    the decoder costs 2.6 times less than MAE's.
    """

    reconstructs: ClassVar[bool] = True
    gives_attention: ClassVar[bool] = False

    kind: Literal["crossmae"] = science("crossmae")
    depth: int = science(12, about="decoder blocks")
    width: int = science(512, about="width of the decoder")
    heads: int = science(16, about="heads of the decoder's attention")
    mixing: Literal["linear", "softmax", "none"] = science(
        "linear",
        about="mixing of feature maps; softmax: weights sum to 1; none: all blocks read the last block's output",
    )
    feature_maps: tuple[int, ...] | None = science(
        None, about="encoder blocks whose outputs the decoder blocks mix; none: all"
    )
    use_input: bool = science(True, about="also mix in the encoder's input tokens")
    norm_pix: bool = science(True, about="predict pixels standardised within each patch")
    self_attention: bool = science(False, about="mask tokens also attend to each other (the paper's ablation)")
    mixing_init: Literal["xavier", "normal"] = science(
        "xavier",
        about="initial mixing weights: xavier as in the released models, or normal N(0, 1/maps) as in the paper",
    )

    def __post_init__(self) -> None:
        check_decoder(self.depth, self.width, self.heads)
        if self.mixing == "none" and self.feature_maps is not None:
            raise ValueError(
                f"feature_maps={list(self.feature_maps)} has no effect with mixing=none, where all decoder blocks read "
                "the encoder's last block: remove feature_maps, or use mixing=linear or softmax"
            )
        if self.mixing != "none" and self.feature_maps is not None and not (self.feature_maps or self.use_input):
            raise ValueError(
                "feature_maps=[] with use_input=false leaves the decoder nothing to mix: "
                "use mixing=none to read the encoder's output"
            )


@dataclass(frozen=True)
class MAEConfig:
    """MAE (arXiv 2111.06377): a decoder of self-attention over the visible patches and mask tokens."""

    reconstructs: ClassVar[bool] = True
    gives_attention: ClassVar[bool] = False

    kind: Literal["mae"] = science("mae")
    depth: int = science(8, about="decoder blocks")
    width: int = science(512, about="width of the decoder")
    heads: int = science(16, about="heads of the decoder's attention")
    norm_pix: bool = science(True, about="predict pixels standardised within each patch")

    def __post_init__(self) -> None:
        check_decoder(self.depth, self.width, self.heads)


LAYERS = re.compile(r"mean|out|linear_decay|top[1-9]\d*|mid\d+")


@dataclass(frozen=True)
class MaskAlignConfig:
    """MaskAlign (arXiv 2211.08887): align the features of visible patches with those of a frozen teacher.

    The teacher sees whole images. For each teacher layer in the loss, the student's blocks are mixed with learned
    weights and projected to the teacher's width. Nothing is predicted for hidden patches.
    """

    reconstructs: ClassVar[bool] = False
    gives_attention: ClassVar[bool] = True

    kind: Literal["maskalign"] = science("maskalign")
    teacher: str | None = science(
        "vit_base_patch16_clip_quickgelu_224.openai",
        about="timm's name of the teacher; its weights are in timm's cache or in checkpoint; none: use checkpoint",
    )
    teacher_image: int | None = science(None, about="side in pixels of the teacher's images; none: its training size")
    layers: str = science(
        "top5",
        about="the teacher's layers in the loss: topK the last K, out the last, midK layer K (from 0), mean all "
        "equally, linear_decay all, weighted by their number (from 0)",
    )
    target_norm: Literal["whiten", "l2", "bn", "none"] = science(
        "whiten", about="norm of the teacher's features: whiten standardises each token, bn a whole layer"
    )
    loss: Literal["smoothl1", "l1", "l2"] = science("smoothl1", about="distance between features; smoothl1 is doubled")
    fusion: Literal["linear", "sum", "simple"] = science(
        "linear",
        about="the student's side of each teacher layer: linear and sum mix its blocks, starting from the block of the "
        "same relative depth (linear) or their mean (sum); simple uses that block",
    )
    order: Literal["mix_adapt", "adapt_mix"] = science(
        "mix_adapt",
        about="mix_adapt: a head for each teacher layer, after mixing (the released code); "
        "adapt_mix: a head for each student block, before mixing (the paper's figure)",
    )
    head: Literal["linear", "norm_linear", "mlp", "mlp2"] = science("linear", about="projection to the teacher's width")
    drop_path: float = science(0.1, about="share of images that skip the last block's branches; less in earlier blocks")

    def __post_init__(self) -> None:
        if not LAYERS.fullmatch(self.layers):
            raise ValueError(
                f"layers={self.layers!r} must be mean, out, linear_decay, topK or midK with a number K; "
                "the paper uses top5"
            )
        if self.teacher_image is not None and self.teacher_image < 1:
            raise ValueError(f"teacher_image={self.teacher_image} must be at least 1 pixel, or none")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must lie in [0, 1)")


@dataclass(frozen=True)
class SimMIMConfig:
    """SimMIM (arXiv 2111.09886): the encoder also gets mask tokens, and one linear layer predicts pixels.

    The encoder is BEiT's: biases for queries and values, a factor per channel after attention and MLP, and one table of
    relative biases that all blocks share, or (AMT's SimMIM) learned absolute positions.
    """

    reconstructs: ClassVar[bool] = True
    gives_attention: ClassVar[bool] = False

    kind: Literal["simmim"] = science("simmim")
    positions: Literal["relative", "absolute"] = science(
        "relative", about="a shared table of relative biases (the released models), or learned positions (AMT)"
    )
    layer_scale: float | None = science(
        0.1, about="initial value of the factors after attention and MLP; none: no factors"
    )
    drop_path: float = science(0.1, about="share of images that skip the last block's branches; less in earlier blocks")

    def __post_init__(self) -> None:
        if self.layer_scale is not None and self.layer_scale <= 0:
            raise ValueError(f"layer_scale={self.layer_scale} must be positive, or none")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must lie in [0, 1)")


MethodConfig = CrossMAEConfig | MAEConfig | MaskAlignConfig | SimMIMConfig

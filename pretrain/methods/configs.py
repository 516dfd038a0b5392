"""Pretraining methods, as configs (without torch). Which patches they are shown is the masking's: masking/configs.py.

Two things are asked of each: whether it `reconstructs` patches, so that the masking must leave some to predict, and
whether it `gives_attention`, a teacher's, by which a masking can draw them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from mimbench.engine.run.config import science


def check_decoder(depth: int, width: int, heads: int) -> None:
    """Refuse sizes that no decoder has.

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
    """CrossMAE (arXiv 2401.14391): mask tokens read hidden patches out of the visible ones by cross-attention.

    What the masking hides but does not predict is never computed. Depth 12 with a quarter of the patches predicted
    costs 2.6 times less in the decoder than MAE.
    """

    reconstructs: ClassVar[bool] = True
    gives_attention: ClassVar[bool] = False

    kind: Literal["crossmae"] = science("crossmae")
    depth: int = science(12, about="decoder blocks")
    width: int = science(512, about="width of the decoder")
    heads: int = science(16, about="heads of the decoder's attention")
    mixing: Literal["linear", "softmax", "none"] = science(
        "linear", about="of feature maps; softmax: weights sum to 1; none: all blocks read the last block's output"
    )
    feature_maps: tuple[int, ...] | None = science(
        None, about="encoder blocks whose outputs the decoder blocks mix; none takes all"
    )
    use_input: bool = science(True, about="mix the encoder's input tokens in as well")
    norm_pix: bool = science(True, about="predict pixels standardised within each patch")
    self_attention: bool = science(False, about="let mask tokens attend to each other (the paper's ablation)")
    mixing_init: Literal["xavier", "normal"] = science(
        "xavier", about="first weights of the mixing: xavier as released models had it, normal N(0, 1/maps) as printed"
    )

    def __post_init__(self) -> None:
        check_decoder(self.depth, self.width, self.heads)
        if self.mixing == "none" and self.feature_maps is not None:
            raise ValueError(
                f"feature_maps={list(self.feature_maps)} with mixing=none, where all blocks of the decoder read the "
                "encoder's last: leave feature_maps out, or mix them by mixing=linear or softmax"
            )
        if self.mixing != "none" and self.feature_maps is not None and not (self.feature_maps or self.use_input):
            raise ValueError(
                "feature_maps=[] with use_input=false leaves the decoder nothing to mix: "
                "mixing=none lets it read the encoder's output"
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
    """MaskAlign (arXiv 2211.08887): features of visible patches are aligned with those of a frozen teacher.

    The teacher sees whole images. For each of its layers that counts, the student's blocks are mixed with weights that
    are learned and brought to the teacher's width. Nothing is predicted for hidden patches.
    """

    reconstructs: ClassVar[bool] = False
    gives_attention: ClassVar[bool] = True

    kind: Literal["maskalign"] = science("maskalign")
    teacher: str | None = science(
        "vit_base_patch16_clip_quickgelu_224.openai",
        about="timm's name of the teacher, weights from timm's cache or the file checkpoint; none: checkpoint alone",
    )
    teacher_image: int | None = science(
        None, about="side in pixels of the images that the teacher sees; none: of those it was trained with"
    )
    layers: str = science(
        "top5",
        about="the teacher's layers in the loss: topK the last K, out the last, midK layer K (from 0), mean all alike, "
        "linear_decay all by their number (from 0)",
    )
    target_norm: Literal["whiten", "l2", "bn", "none"] = science(
        "whiten", about="of the teacher's features: whiten standardises each token, bn all of a layer together"
    )
    loss: Literal["smoothl1", "l1", "l2"] = science("smoothl1", about="between features; smoothl1 counts twice")
    fusion: Literal["linear", "sum", "simple"] = science(
        "linear",
        about="what each layer of the teacher is compared with: linear and sum mix the student's blocks, starting from "
        "the block at its height and from their mean; simple takes that block",
    )
    order: Literal["mix_adapt", "adapt_mix"] = science(
        "mix_adapt",
        about="mix_adapt: a head for each layer of the teacher, after mixing (the released code); "
        "adapt_mix: one for each block of the student, before mixing (the paper's figure)",
    )
    head: Literal["linear", "norm_linear", "mlp", "mlp2"] = science("linear", about="what leads to the teacher's width")
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
    """SimMIM (arXiv 2111.09886): mask tokens among the encoder's own, and one linear layer that predicts pixels.

    The encoder is BEiT's: a bias for queries and values, a factor for each channel after attention and MLP, and
    positions as one table of relative biases that all blocks share, or (AMT's SimMIM) learned absolute ones.
    """

    reconstructs: ClassVar[bool] = True
    gives_attention: ClassVar[bool] = False

    kind: Literal["simmim"] = science("simmim")
    positions: Literal["relative", "absolute"] = science(
        "relative", about="a shared table of relative biases (the released models), or learned positions (AMT)"
    )
    layer_scale: float | None = science(0.1, about="first value of the factors after attention and MLP; none has none")
    drop_path: float = science(0.1, about="share of images that skip the last block's branches; less in earlier blocks")

    def __post_init__(self) -> None:
        if self.layer_scale is not None and self.layer_scale <= 0:
            raise ValueError(f"layer_scale={self.layer_scale} must be positive, or none")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must lie in [0, 1)")


MethodConfig = CrossMAEConfig | MAEConfig | MaskAlignConfig | SimMIMConfig

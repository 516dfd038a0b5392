"""What a segmentation run depends on, as frozen dataclasses without torch.

    UPerNetConfig              the encoder fine-tuned under UPerHead: BEiT's code, which MAE's Table 5 used
    LinearSegmentationConfig   a linear head on the frozen encoder: DINOv2's, DINOv3's or iBOT's
    PatchKnnConfig             nothing trained: neighbours of frozen patch features, CAPI's

The defaults of `UPerNetConfig` are those of the public run that reproduces MAE-B's 48.1 mIoU
(implus/mae_segmentation@772c0c1: 48.15). The number of classes is not here: the data set says it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, plumbing, science, speed

_DATA = "a directory of images and label maps, or the name of one (ADEChallengeData2016, images/ and labels/, ...)"
_CHECKPOINT = "encoder to start from; none draws a random one shaped like `encoder`"
_PARTIAL = "take a checkpoint whose keys are not all accounted for; the result names what was let pass"
_ENCODER = "shape of the encoder when there is no checkpoint"
_PIXELS = "mean and deviation of the images: ImageNet's, as all of BEiT's segmentation configs, or the checkpoint's own"
_CROP = "side of the training crop in pixels, and of the window at test time"
_PREDICTIONS = "write the predicted label maps as PNG files, at the size and with the ids of the data set's own"
_SHOWN = "validation images drawn beside ground truth and prediction; 0 draws nothing"
Pixels = Literal["imagenet", "checkpoint"]


@dataclass(frozen=True)
class Backbone:
    """What fine-tuning for segmentation adds to a plain ViT (BEiT's code; MAE keeps its own position table beside)."""

    rel_pos: bool = science(
        True, about="relative positions in every block, from zero unless the encoder brings its own; tied to `image`"
    )
    layer_scale: float | None = science(
        1.0, about="start of a learned factor per channel where the encoder has none; none adds none"
    )
    drop_path: float = science(0.1, about="rate of the last block; it rises linearly from 0")
    blocks: tuple[int, ...] | None = science(
        None, about="blocks whose outputs are used, 0-based; none: at a third, a half, two thirds and the end"
    )
    final_norm: bool = science(False, about="apply the encoder's final norm to each output (iBOT); BEiT and MAE do not")

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"backbone.drop_path={self.drop_path} must lie in [0, 1)")
        if self.blocks is not None and (not self.blocks or list(self.blocks) != sorted(self.blocks)):
            raise ValueError(f"backbone.blocks={list(self.blocks)} must be block numbers in rising order, or none")

    def outputs(self, depth: int) -> tuple[int, ...]:
        """The blocks whose outputs are used in an encoder of `depth` blocks: 3 5 7 11 of 12, 7 11 15 23 of 24.

        Raises:
            ValueError: if `blocks` names one that the encoder does not have.
        """
        if self.blocks is None:
            return tuple(max(round(depth * share), 1) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1))
        if self.blocks[0] < 0 or self.blocks[-1] >= depth:
            raise ValueError(
                f"backbone.blocks={list(self.blocks)} does not fit an encoder of {depth} blocks, 0 to {depth - 1}"
            )
        return self.blocks


@dataclass(frozen=True)
class Heads:
    """UPerHead and the auxiliary FCNHead, as mmsegmentation has them."""

    channels: int | None = science(None, about="channels of UPerHead; none takes the encoder's width (768 B, 1024 L)")
    pool_scales: tuple[int, ...] = science((1, 2, 3, 6), about="sides of the pooled maps of the pyramid pooling module")
    aux_channels: int = science(256, about="channels of the auxiliary head; for every size of encoder")
    aux_output: int = science(2, about="which of the outputs the auxiliary head sees, 0-based")
    aux_weight: float = science(0.4, about="weight of its loss; 0 leaves the head out")
    dropout: float = science(0.1, about="share of channels dropped before each classifier")
    loss_over: Literal["all", "valid"] = science(
        "all", about="pixels in the mean of the loss: all, as the originals, or those that are not ignored"
    )

    def __post_init__(self) -> None:
        if (self.channels is not None and self.channels < 1) or self.aux_channels < 1:
            raise ValueError(f"heads.channels={self.channels} and aux_channels={self.aux_channels} must be at least 1")
        if not self.pool_scales or min(self.pool_scales) < 1:
            raise ValueError(f"heads.pool_scales={list(self.pool_scales)} must be sides of at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"heads.dropout={self.dropout} must lie in [0, 1)")
        if self.aux_weight < 0:
            raise ValueError(f"heads.aux_weight={self.aux_weight} must not be negative")


@dataclass(frozen=True)
class Augment:
    """What happens to a training image: scale jitter, a crop, a flip and photometric distortion (mmsegmentation)."""

    long: int = science(2048, about="longest side at scale 1, in pixels")
    short: int | None = science(None, about="shortest side at scale 1; none takes the side of the crop")
    smallest: float = science(0.5, about="smallest scale")
    largest: float = science(2.0, about="largest scale")
    cat_max_ratio: float = science(0.75, about="a crop with one class on this share or more is drawn again; 1 never")
    flip: float = science(0.5, about="chance of a horizontal flip")
    photometric: bool = science(True, about="random brightness, contrast, saturation and hue")

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest:
            raise ValueError(f"augment.smallest={self.smallest} must be positive and at most largest={self.largest}")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"augment.cat_max_ratio={self.cat_max_ratio} must lie in (0, 1]")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip={self.flip} must lie in [0, 1]")
        if self.long < 1 or (self.short is not None and self.short < 1):
            raise ValueError(f"augment.long={self.long} and short={self.short} must be at least 1")


@dataclass(frozen=True)
class Inference:
    """How a validation image is looked at; the prediction is always at the size of its label map."""

    mode: Literal["slide", "whole"] = science(
        "slide", about="by windows of the crop's side, or the whole image at once"
    )
    stride: int | None = science(None, about="pixels between windows; none takes two thirds of the crop (341 of 512)")
    long: int = science(2048, about="longest side of the resized image")
    short: int | None = science(None, about="its shortest side; none takes the side of the crop")
    scales: tuple[float, ...] = science((1.0,), about="sizes at which the image is looked at, the softmax averaged")
    flip: bool = science(False, about="each also mirrored")
    scaling: Literal["beit", "described"] = science(
        "beit",
        about="several scales: as BEiT's code (the short side at least the crop's, so that .5 and .75 repeat 1, and no "
        "limit to the long side), or as described (every size as it is, within long x scale)",
    )

    def __post_init__(self) -> None:
        if self.long < 1 or any(side is not None and side < 1 for side in (self.short, self.stride)):
            raise ValueError("inference.long, short and stride must be at least 1")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"inference.scales={list(self.scales)} must be one or more positive numbers")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


def _require_rate(lr: float) -> None:
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr} must be a positive number")


def _require_parts(batch: int, compute: Compute) -> None:
    if batch % compute.accumulate:
        raise ValueError(f"batch={batch} must be a multiple of compute.accumulate={compute.accumulate}")


@dataclass(frozen=True)
class UPerNetConfig:
    """UperNet on a ViT, trained end to end and evaluated on a data set with label maps."""

    data: str = science(about=_DATA)
    checkpoint: str | None = science(None, about=_CHECKPOINT)
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about=_ENCODER)
    backbone: Backbone = Backbone()
    heads: Heads = Heads()
    augment: Augment = Augment()
    inference: Inference = Inference()
    pixels: Pixels = science("imagenet", about=_PIXELS)
    image: int = science(512, about=_CROP)
    steps: int = science(160_000, about="optimiser steps; 0 evaluates a checkpoint that is a whole segmenter as it is")
    batch: int = science(16, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-4, about="peak learning rate of the heads")
    warmup: int = science(1500, about="steps of linear warm-up, from a millionth of the peak")
    schedule: Literal["beit", "mmseg"] = science(
        "beit", about="linear decay to 0 over all steps and warm-up on top (mmcv 1.x), or the one after the other (2.x)"
    )
    layer_decay: float = science(0.65, about="rate of each encoder layer relative to the one above it")
    weight_decay: float = science(0.05, about="of matrices and tables, the position table and class token included")
    grad_clip: float | None = science(None, about="largest gradient norm; none does not clip")
    recompute: bool = speed(False, about="compute the encoder's activations again in the backward pass: less memory")
    fused_head: bool = speed(
        True, about="mix the head's channels before maps are enlarged: two fifths less arithmetic, equal to rounding"
    )
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates at the end only")
    shown: int = plumbing(6, about=_SHOWN)
    save_predictions: bool = plumbing(False, about=_PREDICTIONS)
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    @property
    def takes(self) -> str | None:
        """What the checkpoint is to the run, where that is not an encoder: without training, all of its weights."""
        return "teacher" if self.steps == 0 else None

    def __post_init__(self) -> None:
        _require_positive(self, "image", "batch")
        if self.steps < 0 or (self.steps == 0 and self.checkpoint is None):
            raise ValueError(f"steps={self.steps} must be at least 1; or 0 with checkpoint= naming a whole segmenter")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be at least 1, or none")
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} must not be negative")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        _require_rate(self.lr)
        _require_parts(self.batch, self.compute)


@dataclass(frozen=True)
class LinearSegmentationConfig:
    """A linear head on frozen patch features, trained and evaluated on a data set with label maps."""

    data: str = science(about=_DATA)
    checkpoint: str | None = science(None, about=_CHECKPOINT)
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about=_ENCODER)
    layers: int = science(1, about="last blocks whose patch features are concatenated (DINOv2: 1, multi-scale 4)")
    blocks: tuple[int, ...] | None = science(None, about="these blocks in place of the last ones, 0-based (iBOT)")
    norm: Literal["batch", "none"] = science("batch", about="batch norm before the classifier; iBOT has none")
    dropout: float = science(0.0, about="share of channels dropped before the norm (DINOv3: 0.1)")
    augment: Augment = Augment()
    inference: Inference = Inference()
    pixels: Pixels = science("checkpoint", about=_PIXELS)
    image: int = science(512, about=_CROP)
    steps: int = science(40_000, about="optimiser steps")
    batch: int = science(16, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-3, about="peak learning rate")
    warmup: int = science(1500, about="steps of linear warm-up, from a millionth of the peak")
    schedule: Literal["beit", "mmseg", "dinov3"] = science(
        "beit", about="linear decay and warm-up on top (mmcv 1.x), one after the other (2.x), or DINOv3's cosine"
    )
    weight_decay: float = science(1e-4)
    decay_all: bool = science(True, about="weight decay on vectors too: these heads have no parameter groups")
    loss_over: Literal["all", "valid"] = science("all", about="pixels in the mean of the loss")
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates at the end only")
    shown: int = plumbing(6, about=_SHOWN)
    save_predictions: bool = plumbing(False, about=_PREDICTIONS)
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        _require_positive(self, "image", "batch", "steps", "layers")
        _require_rate(self.lr)
        _require_parts(self.batch, self.compute)


@dataclass(frozen=True)
class PatchKnnConfig:
    """k-NN over frozen patch features: CAPI's protocol, with its own mIoU."""

    data: str = science(about=_DATA)
    checkpoint: str | None = science(None, about=_CHECKPOINT)
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about=_ENCODER)
    image: int = science(224, about="side of the square that images and label maps are squashed to, in pixels")
    neighbours: tuple[int, ...] = science((1, 3, 10, 30), about="numbers of neighbours tried; the best is taken")
    distances: tuple[Literal["cosine", "L2"], ...] = science(("cosine", "L2"), about="distances tried")
    held_out: float = science(0.1, about="share of the training images on which the best setting is chosen")
    ignore: tuple[int, ...] | None = science(
        None, about="raw ids not evaluated and not learned from; none: what the data set says, for ADE20K 0 and 255"
    )
    eval_batch: int = speed(64, about="images per batch when features are computed")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        _require_positive(self, "image", "eval_batch")
        if not self.neighbours or min(self.neighbours) < 1 or not self.distances:
            raise ValueError(f"neighbours={list(self.neighbours)} and distances={list(self.distances)} name no setting")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must lie in (0, 1)")


Segmentation = UPerNetConfig | LinearSegmentationConfig | PatchKnnConfig

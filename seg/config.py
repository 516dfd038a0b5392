"""The configs of segmentation runs, as frozen dataclasses. Does not import torch.

    UPerNetConfig              the encoder fine-tuned under UPerHead: BEiT's code, which MAE's Table 5 used
    LinearSegmentationConfig   a linear head on the frozen encoder: DINOv2's, DINOv3's or iBOT's
    PatchLogisticConfig        patches of the frozen encoder classified by logistic regression: CAPI's
    PatchKnnConfig             no training: nearest neighbours of frozen patch features, CAPI's

The defaults of `UPerNetConfig` are those of the public run that reproduces MAE-B's 48.1 mIoU
(implus/mae_segmentation@772c0c1: 48.15). The number of classes comes from the data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, plumbing, science, speed

_DATA = "a directory of images and label maps, or the name of one (ADEChallengeData2016, images/ and labels/, ...)"
_CHECKPOINT = "encoder to start from; none uses a random encoder shaped like `encoder`"
_PARTIAL = "accept a checkpoint whose keys are not all accounted for; the result names these keys"
_ENCODER = "shape of the encoder if there is no checkpoint"
_PIXELS = "mean and deviation of the images: ImageNet's (as in BEiT's segmentation configs), or the checkpoint's"
_CROP = "side of the training crop in pixels, and of the window at test time"
_PREDICTIONS = "write the predicted label maps as PNG files, with the data set's sizes and ids"
_SHOWN = "number of validation images to draw with ground truth and prediction; 0 draws none"
_BACKGROUND = "id 0 is a class of its own: Pascal Context's variant with 60 classes"
_SQUARE = "side of the square that images and label maps are resized to, in pixels"
_HELD_OUT = "fraction of the training images on which the best setting is chosen"
_IGNORE = "raw ids to exclude from training and evaluation; none: the data set's (ADE20K: 0 and 255)"
Pixels = Literal["imagenet", "checkpoint"]


@dataclass(frozen=True)
class Backbone:
    """What fine-tuning for segmentation adds to a plain ViT (BEiT's code; MAE's position table is kept too)."""

    rel_pos: bool = science(
        True, about="relative positions in every block, zero at the start unless the encoder has them; tied to `image`"
    )
    layer_scale: float | None = science(
        1.0, about="initial LayerScale factor if the encoder has no LayerScale; none adds no LayerScale"
    )
    drop_path: float = science(0.1, about="drop path rate of the last block; rises linearly from 0 over the blocks")
    blocks: tuple[int, ...] | None = science(
        None, about="blocks whose outputs are used, 0-based; none: at a third, half, two thirds and the end"
    )
    final_norm: bool = science(False, about="apply the encoder's final norm to each output (iBOT); BEiT and MAE do not")

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"backbone.drop_path={self.drop_path} must lie in [0, 1)")
        if self.blocks is not None and (not self.blocks or list(self.blocks) != sorted(self.blocks)):
            raise ValueError(f"backbone.blocks={list(self.blocks)} must be block numbers in rising order, or none")

    def outputs(self, depth: int) -> tuple[int, ...]:
        """Return the blocks whose outputs are used in an encoder of `depth` blocks: 3 5 7 11 of 12, 7 11 15 23 of 24.

        Raises:
            ValueError: if `blocks` names a block that the encoder does not have.
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
    """UPerHead and the auxiliary FCNHead of mmsegmentation."""

    channels: int | None = science(None, about="channels of UPerHead; none uses the encoder's width (768 B, 1024 L)")
    pool_scales: tuple[int, ...] = science((1, 2, 3, 6), about="sides of the pooled maps of the pyramid pooling module")
    aux_channels: int = science(256, about="channels of the auxiliary head, the same for all encoders")
    aux_output: int = science(2, about="output that the auxiliary head uses, 0-based")
    aux_weight: float = science(0.4, about="weight of the auxiliary head's loss; 0 omits the head")
    dropout: float = science(0.1, about="fraction of channels dropped before each classifier")
    loss_over: Literal["all", "valid"] = science(
        "all", about="pixels in the mean of the loss: all (as in the originals), or only those not ignored"
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
    """Augmentation of training images: scale jitter, a crop, a flip and photometric distortion (mmsegmentation)."""

    long: int = science(2048, about="longest side at scale 1, in pixels")
    short: int | None = science(None, about="shortest side at scale 1; none uses the side of the crop")
    smallest: float = science(0.5, about="smallest scale")
    largest: float = science(2.0, about="largest scale")
    cat_max_ratio: float = science(0.75, about="redraw a crop if one class covers this fraction; 1: never")
    flip: float = science(0.5, about="probability of a horizontal flip")
    photometric: bool = science(True, about="random brightness, contrast, saturation and hue")
    transforms: Literal["mmseg", "dinov3"] = science(
        "mmseg",
        about="whose resizing and colours: mmsegmentation's (OpenCV) or DINOv3's (Pillow, `long` unused)",
        later=True,
    )

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
    """Inference on a validation image; the prediction always has the size of its label map."""

    mode: Literal["slide", "whole"] = science(
        "slide", about="slide windows of the crop's side over the image, or take the whole image at once"
    )
    stride: int | None = science(None, about="pixels between windows; none uses two thirds of the crop (341 of 512)")
    long: int = science(2048, about="longest side of the resized image")
    short: int | None = science(None, about="shortest side of the resized image; none uses the side of the crop")
    scales: tuple[float, ...] = science((1.0,), about="scales of the image; their softmax outputs are averaged")
    resizing: Literal["opencv", "pillow"] = science(
        "opencv", about="of images: without antialiasing, or with (DINOv3; `long` unused)", later=True
    )
    flip: bool = science(False, about="also average over the mirrored image at each scale")
    scaling: Literal["beit", "described"] = science(
        "beit",
        about="sizes at several scales: as in BEiT's code (short side at least the crop's, so .5 and .75 equal 1; "
        "long side unlimited), or as papers describe it (every scale as given, within long x scale)",
    )

    def __post_init__(self) -> None:
        if self.long < 1 or any(side is not None and side < 1 for side in (self.short, self.stride)):
            raise ValueError("inference.long, short and stride must be at least 1")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"inference.scales={list(self.scales)} must be one or more positive numbers")


def _require_ids(ignore: Sequence[int] | None) -> None:
    if any(not 0 <= one <= 255 for one in ignore or ()):
        raise ValueError(f"ignore={list(ignore or ())}: the ids of a label map lie in 0 to 255")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


def _require_training(config: UPerNetConfig | LinearSegmentationConfig) -> None:
    """Refuse settings of a trained head that would end the run after its training, or give a wrong number."""
    if not (config.lr > 0 and math.isfinite(config.lr)):
        raise ValueError(f"lr={config.lr} must be a positive number")
    if config.batch % config.compute.accumulate:
        raise ValueError(f"batch={config.batch} must be a multiple of compute.accumulate={config.compute.accumulate}")
    for name in ("warmup", "weight_decay", "shown"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} must not be negative")
    if config.evaluate_every is not None and config.evaluate_every < 1:
        raise ValueError(f"evaluate_every={config.evaluate_every} must be at least 1, or none")
    stride = config.inference.stride
    if config.inference.mode == "slide" and stride is not None and stride > config.image:
        raise ValueError(
            f"inference.stride={stride} exceeds the window, image={config.image}: pixels between windows would have no "
            "prediction"
        )


@dataclass(frozen=True)
class DataAndEncoder:
    """The first fields of every segmentation config."""

    data: str = science(about=_DATA)
    checkpoint: str | None = science(None, about=_CHECKPOINT)
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about=_ENCODER)


@dataclass(frozen=True)
class UPerNetConfig(DataAndEncoder):
    """UperNet on a ViT, trained end to end and evaluated on a data set with label maps."""

    backbone: Backbone = Backbone()
    heads: Heads = Heads()
    background: bool = science(False, about=_BACKGROUND, later=True)
    augment: Augment = Augment()
    inference: Inference = Inference()
    pixels: Pixels = science("imagenet", about=_PIXELS)
    image: int = science(512, about=_CROP)
    steps: int = science(160_000, about="optimiser steps; 0 evaluates a whole segmenter, the checkpoint")
    batch: int = science(16, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-4, about="peak learning rate of the heads")
    warmup: int = science(1500, about="steps of linear warm-up, from a millionth of the peak")
    schedule: Literal["beit", "mmseg"] = science(
        "beit", about="linear decay to 0 over all steps, times warm-up (mmcv 1.x), or first warm-up, then decay (2.x)"
    )
    layer_decay: float = science(0.65, about="learning rate of each encoder layer relative to the next")
    weight_decay: float = science(0.05, about="of matrices and tables, including the position table and class token")
    grad_clip: float | None = science(None, about="largest gradient norm; none disables clipping")
    recompute: bool = speed(False, about="recompute the encoder's activations in the backward pass to save memory")
    compile: bool = speed(
        False, about="compile encoder and pyramid: takes a minute or two at the start, then steps are faster"
    )
    fused_head: bool = speed(
        True, about="mix the head's channels before enlarging maps: two fifths fewer operations, equal up to rounding"
    )
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates at the end only")
    shown: int = plumbing(6, about=_SHOWN)
    save_predictions: bool = plumbing(False, about=_PREDICTIONS)
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    takes: ClassVar[str] = "segmenter"  # role of the checkpoint: a whole segmenter, otherwise the encoder

    def __post_init__(self) -> None:
        _require_positive(self, "image", "batch")
        if self.steps < 0 or (self.steps == 0 and self.checkpoint is None):
            raise ValueError(f"steps={self.steps} must be at least 1, or 0 if checkpoint= is a whole segmenter")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip={self.grad_clip} must be positive, or none")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        _require_training(self)


@dataclass(frozen=True)
class LinearSegmentationConfig(DataAndEncoder):
    """A linear head on frozen patch features, trained and evaluated on a data set with label maps."""

    layers: int = science(1, about="last blocks whose patch features are concatenated (DINOv2: 1, multi-scale 4)")
    blocks: tuple[int, ...] | None = science(None, about="blocks to use instead of the last ones, 0-based (iBOT)")
    norm: Literal["batch", "none"] = science("batch", about="batch norm before the classifier; iBOT has none")
    dropout: float = science(0.0, about="fraction of channels dropped before the norm (DINOv3: 0.1)")
    views: Literal["augmented", "cached"] = science(
        "augmented",
        about="random crops, as in the papers, or whole images resized to a square, their features computed once",
        later=True,
    )
    background: bool = science(False, about=_BACKGROUND, later=True)
    augment: Augment = Augment()
    inference: Inference = Inference()
    pixels: Pixels = science("checkpoint", about=_PIXELS)
    image: int = science(512, about=_CROP)
    steps: int = science(40_000, about="optimiser steps")
    batch: int = science(16, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-3, about="peak learning rate")
    warmup: int = science(1500, about="steps of linear warm-up, from a millionth of the peak")
    schedule: Literal["beit", "mmseg", "dinov3"] = science(
        "beit", about="linear decay times warm-up (mmcv 1.x), first warm-up, then decay (2.x), or DINOv3's cosine"
    )
    weight_decay: float = science(1e-4)
    decay_all: bool = science(True, about="apply weight decay to vectors too, as the originals do")
    loss_over: Literal["all", "valid"] = science("all", about="pixels in the mean of the loss")
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates at the end only")
    shown: int = plumbing(6, about=_SHOWN)
    save_predictions: bool = plumbing(False, about=_PREDICTIONS)
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    takes: ClassVar[str] = "encoder"  # role of the checkpoint

    def __post_init__(self) -> None:
        _require_positive(self, "image", "batch", "steps", "layers")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        _require_training(self)


@dataclass(frozen=True)
class PatchKnnConfig(DataAndEncoder):
    """k-NN on frozen patch features: CAPI's protocol, with its own mIoU."""

    image: int = science(224, about=_SQUARE)
    neighbours: tuple[int, ...] = science((1, 3, 10, 30), about="numbers of neighbours to try; the best is used")
    distances: tuple[Literal["cosine", "L2"], ...] = science(("cosine", "L2"), about="distances to try")
    held_out: float = science(0.1, about=_HELD_OUT)
    ignore: tuple[int, ...] | None = science(None, about=_IGNORE)
    eval_batch: int = speed(64, about="images per batch when features are computed")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    takes: ClassVar[str] = "encoder"  # role of the checkpoint

    def __post_init__(self) -> None:
        _require_positive(self, "image", "eval_batch")
        _require_ids(self.ignore)
        if not self.neighbours or min(self.neighbours) < 1 or not self.distances:
            raise ValueError(f"neighbours={list(self.neighbours)}, distances={list(self.distances)}: both need a value")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must lie in (0, 1)")


@dataclass(frozen=True)
class PatchLogisticConfig(DataAndEncoder):
    """Logistic regression of patches on frozen features: CAPI's protocol, with its own mIoU."""

    image: int = science(224, about=_SQUARE)
    strengths: tuple[float, ...] = science(
        tuple(10.0 ** (-6 + 11 * place / 7) for place in range(8)),
        about="inverse penalties on the squared weights to try (scikit-learn's C); the best is used",
    )
    iterations: int = science(1000, about="maximum number of iterations of L-BFGS")
    tolerance: float = science(1e-12, about="largest gradient at which L-BFGS ends")
    held_out: float = science(0.1, about=_HELD_OUT)
    ignore: tuple[int, ...] | None = science(None, about=_IGNORE)
    eval_batch: int = speed(64, about="images per batch when features are computed")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    takes: ClassVar[str] = "encoder"  # role of the checkpoint

    def __post_init__(self) -> None:
        _require_positive(self, "image", "eval_batch", "iterations")
        _require_ids(self.ignore)
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths={list(self.strengths)} must be one or more positive numbers")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must lie in (0, 1)")


PatchConfig = PatchKnnConfig | PatchLogisticConfig
Segmentation = UPerNetConfig | LinearSegmentationConfig | PatchConfig

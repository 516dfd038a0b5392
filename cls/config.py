"""The configs of classification runs: fine-tuning, linear probe, k-NN and the other evaluations.

All evaluations of an encoder start from `checkpoint`, which defines the encoder's shape. Without a checkpoint, the
encoder has the shape of `encoder` and random weights: the scratch row of a table.

Some encoders end in a LayerNorm (MAE), others do not (CrossMAE). The evaluated feature is therefore always explicit
(`pool`, `norm`) and recorded with the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, plumbing, science, speed

Pool = Literal["avg", "cls"]
FrozenPool = Literal["avg", "cls", "both"]
Norm = Literal["tokens", "pooled"]
Resizing = Literal["auto", "bicubic", "bicubic-antialias", "bicubic-offset", "regenerate"]
Decoder = Literal["torchvision", "pil"]
Pixels = Literal["pil", "tensor"]
Test = Literal["val", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c", "imagenet-real"]
RANDAUGMENT = re.compile(r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?))*")

_POOL = "the evaluated feature: avg is the mean over patch tokens, cls the class token"
_FROZEN_POOL = f"{_POOL}, both the two concatenated"
_FEATURES = (
    "a directory of stored features to use instead of the one beside the runs; an error if they come from another "
    "encoder or other images"
)
_NORM = (
    "tokens: the final LayerNorm is applied to every token (without learned weights if the checkpoint has none); "
    "pooled: it is skipped, and the pooled feature is standardised (--global_pool in the papers' scripts)"
)
_EVAL_CROP = "side of the centre crop over the short side of the resized image; none: 224/256 up to 224 px, 1 above"
_PARTIAL = "accept a checkpoint with missing or unknown keys; the result lists them"
_POSITIONS = (
    "how the position table is resized to a grid that differs from pretraining; auto: as the checkpoint's family does "
    "(MAE, CrossMAE: bicubic); regenerate: compute a fixed sine-cosine table for the new grid"
)
_DECODER = (
    "pil: Pillow decodes and resizes, exactly the papers' pixels at half the speed; the others differ by .05 of 255"
)
_PIXELS = (
    "what resizes training crops: tensor, torch's uint8 kernel, within 2 of 255 of Pillow's pixels, or pil, Pillow; "
    "jpeg_decoder=pil always uses Pillow (docs/protocols.md)"
)
_PREDICTIONS = "write the predictions of every validation image (predictions.safetensors)"
_LOGITS = "with save_predictions: also write all logits of each image"
_SCHEDULE = (
    "cosine: MAE's, after warm-up down to min_lr x the layer's factor; simmim_cosine: SimMIM's, a step late, a cosine "
    "over all epochs, and start_lr and min_lr the same for all layers"
)
_CROP = (
    "training crops: one-draw draws once and clips to the image (MAE); torchvision draws until a crop fits; "
    "with features=augmented only"
)
_COMPILE = (
    "compile the classifier that is trained, or the blocks of the frozen encoder: takes up to a minute at the start, "
    "then every step is faster; a user's own encoder is left as it is"
)
_DATA = "name of a data set or its path; the layout is recognised (engine/data/layouts/recognise.py)"
_SUBSET = "a text file with the training images to use, one per line (SimCLR's 1 % and 10 %); none uses all"


@dataclass(frozen=True)
class Evaluation:
    """The fields that every evaluation of an encoder has."""

    data: str = science("imagenet", about=_DATA)
    subset: str | None = science(None, about=_SUBSET)
    checkpoint: str | None = science(None, about="the encoder's weights; none: random weights")
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about="the encoder's shape; used only when there is no checkpoint")
    image: int = science(224, about="side of an image in pixels, in training and in evaluation")
    positions: Resizing = science("auto", about=_POSITIONS)
    jpeg_decoder: Decoder = science("torchvision", about=_DECODER, formerly="decoder")
    eval_crop: float | None = science(None, about=_EVAL_CROP)
    seed: int = science(0, about="seed of all random draws, and of the weights when there is no checkpoint")
    compile: bool = speed(False, about=_COMPILE)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        _positive(self, "image")
        _shares(self, "eval_crop")
        _positive_or_none(self, "eval_crop")


@dataclass(frozen=True)
class Trained(Evaluation):
    """The fields of protocols that train on crops of the images. The defaults are the linear probe's."""

    epochs: int = science(90)
    warmup_epochs: float = science(10.0)
    batch: int = science(16384, about="images per optimiser step, over all devices and accumulated micro-batches")
    base_lr: float = science(0.1, about="learning rate per 256 images of batch")
    weight_decay: float = science(0.0)
    smallest_crop: float = science(0.08, about="smallest share of the image's area in a training crop")
    flip: bool = science(True, about="mirror half of the crops horizontally")
    evaluate_every: int | None = plumbing(1, about="epochs between two evaluations; none evaluates only at the end")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "epochs", "batch", "base_lr", "smallest_crop")
        _shares(self, "smallest_crop")
        _not_negative(self, "weight_decay")
        _positive_or_none(self, "evaluate_every")
        _warmup_fits(self)
        _micro_batch(self)

    @property
    def micro_batch(self) -> int:
        """Images per micro-batch, over all devices."""
        return _micro_batch(self)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, for layers with factor 1."""
        return self.base_lr * self.batch / 256


@dataclass(frozen=True)
class Finetune(Trained):
    """End-to-end training of the encoder with a classifier head (AdamW, layer-wise learning rates)."""

    epochs: int = science(100)
    warmup_epochs: float = science(5.0)
    batch: int = science(1024, about="images per optimiser step, over all devices and accumulated micro-batches")
    base_lr: float = science(5e-4, about="learning rate per 256 images of batch")
    weight_decay: float = science(0.05)
    pool: Pool = science("avg", about="avg: mean of patch tokens, then a fresh norm; cls: final norm, then class token")
    schedule: Literal["cosine", "simmim_cosine"] = science("cosine", about=_SCHEDULE)
    start_lr: float = science(0.0, about="learning rate at the start of warm-up")
    min_lr: float = science(
        1e-6, about="learning rate at the end of the cosine; multiplied by the layer's factor, as the peak is"
    )
    betas: tuple[float, float] = science((0.9, 0.999))
    layer_decay: float = science(0.65, about="learning rate of each layer relative to the layer after it")
    drop_path: float = science(0.1, about="stochastic depth rate of the last block; linear from 0 at the first")
    label_smoothing: float = science(0.1)
    mixup: float = science(0.8, about="mixup's alpha; 0 is off")
    cutmix: float = science(1.0, about="CutMix's alpha; 0 is off")
    mixup_probability: float = science(1.0, about="probability of mixing a batch")
    switch_probability: float = science(0.5, about="probability of CutMix instead of mixup when both are on")
    randaugment: str | None = science("rand-m9-mstd0.5-inc1", about="RandAugment in timm's notation; none is off")
    pixels: Pixels = speed("tensor", about=_PIXELS)
    erasing: float = science(0.25, about="probability of erasing a random rectangle with noise")
    grad_clip: float | None = science(None, about="maximum gradient norm; none: no clipping", formerly="clip")
    ema: float | None = science(
        None, about="decay of a moving average of the weights, which is evaluated instead of them"
    )
    save_predictions: bool = plumbing(False, about=_PREDICTIONS)
    save_logits: bool = plumbing(False, about=_LOGITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "layer_decay")
        _shares(
            self, "drop_path", "label_smoothing", "mixup_probability", "switch_probability", "erasing", "layer_decay"
        )
        _not_negative(self, "min_lr", "start_lr", "mixup", "cutmix")
        _positive_or_none(self, "grad_clip")
        if self.drop_path == 1:
            raise ValueError("drop_path=1.0 would always drop the last block; it must be below 1")
        if self.randaugment is not None and not RANDAUGMENT.fullmatch(self.randaugment):
            raise ValueError(
                f"randaugment={self.randaugment!r} is not RandAugment in timm's notation; "
                f"the papers use rand-m9-mstd0.5-inc1, and none turns it off"
            )
        if self.mixes and self.micro_batch % 2:
            raise ValueError(
                f"batch={self.batch} in {self.compute.accumulate} micro-batches is {self.micro_batch} images per "
                f"micro-batch, but mixup pairs images and needs an even number; use an even batch, or mixup=0 cutmix=0"
            )

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_probability > 0


@dataclass(frozen=True)
class Linear(Trained):
    """A linear classifier on the frozen encoder (LARS, batch norm without affine before it)."""

    pool: Pool = science("avg", about=_POOL)
    norm: Norm = science("pooled", about=_NORM)
    views: Literal["augmented", "cached"] = science(
        "augmented",
        about="augmented: a new crop and flip each epoch, as in the papers; "
        "cached: features computed once, without augmentation (a different, cheaper protocol)",
    )
    crop: Literal["one-draw", "torchvision"] = science("one-draw", about=_CROP)
    eval_batch: int = speed(256, about="images per forward pass when no gradient is needed", formerly="encode_batch")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "eval_batch")
        if self.compute.shard:  # before features are computed
            raise ValueError("compute.shard=true divides what AdamW trains, and LARS trains this probe; leave it out")


@dataclass(frozen=True)
class Frozen(Evaluation):
    """The fields of evaluations whose frozen features are computed once, without augmentation, and stored."""

    eval_batch: int = speed(256, about="images per forward pass", formerly="encode_batch")
    stored: Literal["fp16", "fp32"] = speed("fp16", about="number format of the stored features")
    features: str | None = plumbing(None, about=_FEATURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "eval_batch")


@dataclass(frozen=True)
class Knn(Frozen):
    """Weighted k-nearest neighbours on frozen features (cosine similarity, votes weighted by exp(s / temperature))."""

    pool: FrozenPool = science("avg", about=_FROZEN_POOL)
    norm: Norm = science("tokens", about=_NORM)
    more_pools: tuple[FrozenPool, ...] = science((), about="further features to evaluate besides `pool`, at `k`")
    layers: int = science(1, about="number of last blocks to evaluate, each separately; knn_top1 is the last block's")
    neighbours: tuple[int, ...] = science((10, 20, 100, 200), about="the values of k to evaluate")
    k: int = science(20, about="the value of `neighbours` that knn_top1 reports")
    temperature: float = science(0.07)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "temperature", "layers")
        if not self.neighbours or min(self.neighbours) < 1:
            raise ValueError(f"neighbours={list(self.neighbours)} must hold at least one number, all at least 1")
        if self.k not in self.neighbours:
            raise ValueError(f"k={self.k} must be one of neighbours={list(self.neighbours)}: knn_top1 reports it")


@dataclass(frozen=True)
class FastLinear(Frozen):
    """A grid of linear classifiers on stored features, trained together.

    Every pool of each of the last blocks is tried with every learning rate and weight decay. The classifier with the
    highest accuracy on held-out training images is reported.
    """

    pools: tuple[FrozenPool, ...] = science(("avg", "cls"), about=_FROZEN_POOL)
    layers: int = science(4, about="number of last blocks whose features are tried, each separately")
    norm: Norm = science("pooled", about=_NORM)
    optimizer: Literal["lars", "sgd"] = science("lars", about="with momentum 0.9; no weight decay on biases")
    base_lrs: tuple[float, ...] = science((0.025, 0.1, 0.4, 1.6, 6.4), about="learning rates per 256 images of batch")
    weight_decays: tuple[float, ...] = science((0.0,))
    held_out: float = science(
        0.05, about="share of the training images that selects the best head; 0 for a single head"
    )
    epochs: int = science(90)
    warmup_epochs: float = science(10.0)
    batch: int = science(16384, about="images per optimiser step, over all devices and accumulated micro-batches")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "layers", "epochs", "batch")
        for name in ("pools", "base_lrs", "weight_decays"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} must hold at least one value and no duplicates")
        if min(self.base_lrs) <= 0 or min(self.weight_decays) < 0:
            raise ValueError("base_lrs must be positive, and weight_decays must not be negative")
        if not 0 <= self.held_out <= 0.5 or (self.heads > 1 and self.held_out == 0):
            raise ValueError(
                f"held_out={self.held_out} must be above 0 and at most 0.5: this share of the training images selects "
                f"the best of {self.heads} heads. Use 0.05, or layers=1 and a single value each of pools, base_lrs "
                f"and weight_decays"
            )
        _warmup_fits(self)
        _micro_batch(self)

    @property
    def heads(self) -> int:
        """Number of classifiers trained."""
        return len(self.pools) * self.layers * len(self.base_lrs) * len(self.weight_decays)


@dataclass(frozen=True)
class FewShot(Frozen):
    """Classifiers trained on the features of a few images per class, averaged over several draws of these images."""

    pool: FrozenPool = science("avg", about=_FROZEN_POOL)
    norm: Norm = science("pooled", about=_NORM)
    shots: tuple[int, ...] = science((1, 2, 5, 10), about="images per class; a larger set includes the smaller ones")
    draws: int = science(5, about="number of times the images are drawn")
    classifiers: tuple[Literal["ridge", "logistic"], ...] = science(("ridge", "logistic"))
    ridge: float = science(1.0, about="penalty on the squared weights (scikit-learn's alpha)")
    logistic: float = science(10.0, about="inverse penalty on the squared weights (scikit-learn's C)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "draws", "ridge", "logistic")
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(
                f"shots={list(self.shots)} must hold at least one number, all at least 1, without duplicates"
            )
        if not self.classifiers:
            raise ValueError("classifiers=[] is empty; set it to ridge, logistic or both")


@dataclass(frozen=True)
class Classify:
    """Evaluation of a fine-tuned classifier, with its head, on a validation split or an ImageNet robustness set.

    Nothing is trained. `checkpoint` is a fine-tuning's run directory or file, or a fine-tuned file of MAE or CrossMAE.
    """

    takes: ClassVar[str] = "classifier"  # role of the checkpoint: backbones.content.Role

    data: str = science("imagenet", about=_DATA)
    checkpoint: str | None = science(None, about="the fine-tuned classifier; required")
    test: Test = science(
        "val", about="kind of `data`: val for an ordinary validation split, or a robustness set with special rules"
    )
    image: int | None = science(None, about="side of an image in pixels; none: the size the classifier was trained at")
    jpeg_decoder: Decoder = science("torchvision", about=_DECODER, formerly="decoder")
    eval_crop: float | None = science(None, about=_EVAL_CROP)
    compute: Compute = field(default_factory=Compute)
    eval_batch: int = speed(64, about="images per forward pass", formerly="at_once")
    save_predictions: bool = plumbing(False, about=_PREDICTIONS + "; only with test=val")
    save_logits: bool = plumbing(False, about=_LOGITS)

    def __post_init__(self) -> None:
        _positive(self, "eval_batch")
        _shares(self, "eval_crop")
        _positive_or_none(self, "eval_crop", "image")
        if self.save_predictions and self.test != "val":
            raise ValueError(
                f"save_predictions=true works only with test=val, not test={self.test}; set one of the two"
            )


Classification = Finetune | Linear | Knn | FastLinear | FewShot | Classify


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)} must be positive")


def _positive_or_none(config: Any, *names: str) -> None:
    _positive(config, *(name for name in names if getattr(config, name) is not None))


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}={getattr(config, name)} must not be negative")


def _shares(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) is not None and not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}={getattr(config, name)} must lie between 0 and 1")


def _warmup_fits(config: Trained | FastLinear) -> None:
    if not 0 <= config.warmup_epochs <= config.epochs:
        raise ValueError(f"warmup_epochs={config.warmup_epochs} must lie between 0 and epochs={config.epochs}")


def _micro_batch(config: Trained | FastLinear) -> int:
    if config.batch % config.compute.accumulate:
        raise ValueError(
            f"batch={config.batch} must be a multiple of compute.accumulate={config.compute.accumulate}, "
            f"the number of micro-batches per step"
        )
    return config.batch // config.compute.accumulate

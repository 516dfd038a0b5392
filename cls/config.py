"""What a classification run depends on: the configs of fine-tuning, linear probe and k-NN.

All three start from `checkpoint`; without one the encoder has the shape of `encoder` and random weights, which is
the scratch row of a table. With one, the shape is the checkpoint's and `encoder` is not read.

Encoders differ in whether a LayerNorm ends them: MAE trains one, CrossMAE has none. Which feature is evaluated is
therefore always said (`pool`, `norm`) and written beside the result.
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
Test = Literal["val", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c", "imagenet-real"]
RANDAUGMENT = re.compile(r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?))*")

_POOL = "the feature: avg is the mean over patch tokens, cls the class token"
_FROZEN_POOL = f"{_POOL}, both the two side by side"
_FEATURES = (
    "a directory of stored features to use, in place of the one beside the runs; refused if they are of another "
    "encoder or other images"
)
_NORM = (
    "tokens: every token passes the final LayerNorm, which standardises only where the checkpoint trained none; "
    "pooled: that is left out, and the pooled feature is standardised (what --global_pool does in the papers' scripts)"
)
_EVAL_CROP = "side of the centre crop over the short side of the resized image; none: 224/256 up to 224 px, 1 above"
_PARTIAL = "take a checkpoint whose keys are not all accounted for; the result names what was let pass"
_POSITIONS = (
    "how the position table is brought to another grid than the pretraining's; auto: as the checkpoint's family does "
    "(MAE, CrossMAE: bicubic); regenerate: a fixed sine-cosine table made anew"
)
_DECODER = (
    "pil: Pillow decodes and resizes, the papers' pixels exactly at half the speed; the others differ by .05 of 255"
)
_PREDICTIONS = "write what was predicted for each validation image (predictions.safetensors)"
_LOGITS = "with save_predictions, all logits of each image as well"
_SCHEDULE = (
    "cosine: MAE's, after warm-up down to min_lr x the layer's factor; simmim_cosine: SimMIM's, a step late, a cosine "
    "over all epochs, and start_lr and min_lr the same for all layers"
)
_CROP = "of training: one-draw clips to the image (MAE); torchvision draws again until a crop fits; augmented only"
PREDICTIONS = "mimbench_predictions"  # the metadata key of a file of predictions
_DATA = "the name of a data set or its path; layouts are told by looking (engine/data/layouts/recognise.py)"
_SUBSET = "a text file that names the training images to use, one a line (SimCLR's 1 % and 10 %); none uses all"


@dataclass(frozen=True)
class Evaluation:
    """What every evaluation of an encoder has."""

    data: str = science("imagenet", about=_DATA)
    subset: str | None = science(None, about=_SUBSET)
    checkpoint: str | None = science(None, about="the encoder; none takes random weights")
    allow_partial: bool = science(False, about=_PARTIAL)
    encoder: ViT = science(SIZES["B"], about="read when there is no checkpoint")
    image: int = science(224, about="side of an image in pixels, in training and in evaluation")
    positions: Resizing = science("auto", about=_POSITIONS)
    jpeg_decoder: Decoder = science("torchvision", about=_DECODER, formerly="decoder")
    eval_crop: float | None = science(None, about=_EVAL_CROP)
    seed: int = science(0, about="of whatever is drawn, and of the random weights when there is no checkpoint")
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        _positive(self, "image")
        _shares(self, "eval_crop")
        _positive_or_none(self, "eval_crop")


@dataclass(frozen=True)
class Trained(Evaluation):
    """What trains on crops of the images, one epoch after another. The defaults are the linear probe's."""

    epochs: int = science(90)
    warmup_epochs: float = science(10.0)
    batch: int = science(16384, about="images per optimiser step, over all devices and accumulated micro-batches")
    base_lr: float = science(0.1, about="learning rate per 256 images of batch")
    weight_decay: float = science(0.0)
    smallest_crop: float = science(0.08, about="least share of an image's area in a training crop")
    flip: bool = science(True, about="mirror half of the crops")
    evaluate_every: int | None = plumbing(1, about="epochs between two evaluations; none evaluates at the end only")

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
        """Images that go through the model at a time."""
        return _micro_batch(self)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, of layers with factor 1."""
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
    start_lr: float = science(0.0, about="where warm-up begins")
    min_lr: float = science(1e-6, about="where the cosine ends; scaled by the layer's factor like the peak")
    betas: tuple[float, float] = science((0.9, 0.999))
    layer_decay: float = science(0.65, about="factor of the learning rate from one layer to the one before it")
    drop_path: float = science(0.1, about="stochastic depth of the last block; linear from 0 at the first")
    label_smoothing: float = science(0.1)
    mixup: float = science(0.8, about="alpha; 0 is off")
    cutmix: float = science(1.0, about="alpha; 0 is off")
    mixup_probability: float = science(1.0, about="of mixing a batch at all")
    switch_probability: float = science(0.5, about="of cutmix rather than mixup when both are on")
    randaugment: str | None = science("rand-m9-mstd0.5-inc1", about="timm's text form of RandAugment; none is off")
    erasing: float = science(0.25, about="probability of erasing a random rectangle with noise")
    grad_clip: float | None = science(None, about="largest gradient norm; none does not clip", formerly="clip")
    ema: float | None = science(None, about="decay of a moving average of the weights, evaluated in their place")
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
            raise ValueError("drop_path=1.0 would drop the last block always; it must be below 1")
        if self.randaugment is not None and not RANDAUGMENT.fullmatch(self.randaugment):
            raise ValueError(
                f"randaugment={self.randaugment!r} is not timm's text form of RandAugment; "
                f"the papers' is rand-m9-mstd0.5-inc1, and none turns it off"
            )
        if self.mixes and self.micro_batch % 2:
            raise ValueError(
                f"batch={self.batch} in {self.compute.accumulate} micro-batches gives {self.micro_batch} images at a "
                f"time: mixup pairs images, so that must be even. Take an even batch, or mixup=0 cutmix=0"
            )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_probability > 0


@dataclass(frozen=True)
class Linear(Trained):
    """A linear classifier on the frozen encoder (LARS, batch norm without affine before it)."""

    pool: Pool = science("avg", about=_POOL)
    norm: Norm = science("pooled", about=_NORM)
    views: Literal["augmented", "cached"] = science(
        "augmented",
        about="augmented: a fresh crop and flip each epoch, as in the papers; "
        "cached: features computed once, without augmentation (another, cheaper protocol)",
    )
    crop: Literal["one-draw", "torchvision"] = science("one-draw", about=_CROP)
    eval_batch: int = speed(256, about="images encoded at a time where no gradient is needed", formerly="encode_batch")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "eval_batch")


@dataclass(frozen=True)
class Frozen(Evaluation):
    """What evaluations of a frozen encoder share: its features are computed once and stored, without augmentation."""

    eval_batch: int = speed(256, about="images encoded at a time", formerly="encode_batch")
    stored: Literal["fp16", "fp32"] = speed("fp16", about="what features are stored in")
    features: str | None = plumbing(None, about=_FEATURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "eval_batch")


@dataclass(frozen=True)
class Knn(Frozen):
    """Weighted k-nearest neighbours on frozen features (cosine similarity, votes weighted by exp(s / temperature))."""

    pool: FrozenPool = science("avg", about=_FROZEN_POOL)
    norm: Norm = science("tokens", about=_NORM)
    more_pools: tuple[FrozenPool, ...] = science((), about="features measured beside `pool`, at `k`")
    layers: int = science(1, about="last blocks measured, each by itself; knn_top1 is of the last")
    neighbours: tuple[int, ...] = science((10, 20, 100, 200), about="each k that is measured")
    k: int = science(20, about="the one of them that knn_top1 reports")
    temperature: float = science(0.07)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "temperature", "layers")
        if not self.neighbours or min(self.neighbours) < 1:
            raise ValueError(f"neighbours={list(self.neighbours)} must hold numbers of at least 1")
        if self.k not in self.neighbours:
            raise ValueError(f"k={self.k} must be one of neighbours={list(self.neighbours)}: it is the one reported")


@dataclass(frozen=True)
class FastLinear(Frozen):
    """A grid of linear classifiers on stored features, trained together; the best on held-out training images counts.

    Every pool of each of the last blocks is tried with every learning rate and weight decay.
    """

    pools: tuple[FrozenPool, ...] = science(("avg", "cls"), about=_FROZEN_POOL)
    layers: int = science(4, about="last blocks whose features are tried, each by itself")
    norm: Norm = science("pooled", about=_NORM)
    optimizer: Literal["lars", "sgd"] = science("lars", about="momentum is 0.9; biases are not decayed")
    base_lrs: tuple[float, ...] = science((0.025, 0.1, 0.4, 1.6, 6.4), about="learning rates per 256 images of batch")
    weight_decays: tuple[float, ...] = science((0.0,))
    held_out: float = science(0.05, about="share of the training images that choose among heads; 0 with a single one")
    epochs: int = science(90)
    warmup_epochs: float = science(10.0)
    batch: int = science(16384, about="images per optimiser step, over all devices and accumulated micro-batches")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "layers", "epochs", "batch")
        for name in ("pools", "base_lrs", "weight_decays"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} must hold at least one value, and none twice")
        if min(self.base_lrs) <= 0 or min(self.weight_decays) < 0:
            raise ValueError("base_lrs must be positive, and weight_decays must not be negative")
        if not 0 <= self.held_out <= 0.5 or (self.heads > 1 and self.held_out == 0):
            raise ValueError(
                f"held_out={self.held_out} must lie above 0, at most 0.5: it is the share of the training images that "
                f"chooses among {self.heads} heads. Take 0.05, or one value each of pools, base_lrs and weight_decays "
                f"and layers=1"
            )
        _warmup_fits(self)
        _micro_batch(self)

    @property
    def heads(self) -> int:
        """How many classifiers are trained."""
        return len(self.pools) * self.layers * len(self.base_lrs) * len(self.weight_decays)


@dataclass(frozen=True)
class FewShot(Frozen):
    """Classifiers on the features of a few images of each class, over several draws of these images."""

    pool: FrozenPool = science("avg", about=_FROZEN_POOL)
    norm: Norm = science("pooled", about=_NORM)
    shots: tuple[int, ...] = science((1, 2, 5, 10), about="images of each class; the more hold the fewer")
    draws: int = science(5, about="times the images are drawn anew")
    classifiers: tuple[Literal["ridge", "logistic"], ...] = science(("ridge", "logistic"))
    ridge: float = science(1.0, about="penalty of the squared weights (scikit-learn's alpha)")
    logistic: float = science(10.0, about="inverse penalty of the squared weights (scikit-learn's C)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "draws", "ridge", "logistic")
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots={list(self.shots)} must hold numbers of at least 1, and none twice")
        if not self.classifiers:
            raise ValueError("classifiers=[] must name ridge, logistic or both")


@dataclass(frozen=True)
class Classify:
    """A fine-tuned classifier, head and all, on a validation split or one of ImageNet's robustness sets.

    Nothing is trained. `checkpoint` is a fine-tuning's run directory or file, or a fine-tuned file of MAE or CrossMAE.
    """

    takes: ClassVar[str] = "classifier"  # what its checkpoint is: backbones.content.Role

    data: str = science("imagenet", about=_DATA)
    checkpoint: str | None = science(None, about="the classifier; there must be one")
    test: Test = science("val", about="what `data` is: an ordinary validation split, or a set with rules of its own")
    image: int | None = science(None, about="side of an image in pixels; none: what the classifier was trained at")
    jpeg_decoder: Decoder = science("torchvision", about=_DECODER, formerly="decoder")
    eval_crop: float | None = science(None, about=_EVAL_CROP)
    compute: Compute = field(default_factory=Compute)
    eval_batch: int = speed(64, about="images that go through the model at a time", formerly="at_once")
    save_predictions: bool = plumbing(False, about=_PREDICTIONS + "; with test=val")
    save_logits: bool = plumbing(False, about=_LOGITS)

    def __post_init__(self) -> None:
        _positive(self, "eval_batch")
        _shares(self, "eval_crop")
        _positive_or_none(self, "eval_crop", "image")
        if self.save_predictions and self.test != "val":
            raise ValueError(f"save_predictions=true keeps those of a validation split, not of test={self.test}")


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
            f"the micro-batches it is made of"
        )
    return config.batch // config.compute.accumulate

"""The config of a pretraining run. Does not import torch, so that recipes load quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, nested, plumbing, science, speed
from mimbench.engine.run.precision import ABOUT, EvaluatePrecision
from mimbench.pretrain.masking.configs import (
    PUBLISHED_SIDE,
    AttentionMasking,
    GridMasking,
    KeepMasking,
    MaskingConfig,
    RandomMasking,
)
from mimbench.pretrain.methods.configs import CrossMAEConfig, MAEConfig, MaskAlignConfig, MethodConfig, SimMIMConfig

__all__ = [
    "AttentionMasking",
    "CrossMAEConfig",
    "GridMasking",
    "KeepMasking",
    "MAEConfig",
    "MaskAlignConfig",
    "MaskingConfig",
    "MethodConfig",
    "MonitorConfig",
    "Pretrain",
    "RandomMasking",
    "SimMIMConfig",
]


@dataclass(frozen=True)
class MonitorConfig:
    """How often a pretraining is measured, and on how many images (pretrain/monitor.py)."""

    every: float = plumbing(20.0, about="epochs between measurements: pictures, loss on validation images, k-NN, rank")
    images: int = plumbing(
        2048,
        about="training images for k-NN and rank, with a quarter as many validation images; 0: neither",
    )

    def __post_init__(self) -> None:
        if not 0 < self.every < math.inf or self.images < 0:
            raise ValueError(
                f"every={self.every} epochs must be positive and finite, and images={self.images} not negative; "
                "more epochs than the run has measures only at its end"
            )


@dataclass(frozen=True)
class Pretrain:
    """Pretraining of an encoder on images without labels (AdamW, warm-up and cosine per iteration)."""

    data: str = science("imagenet", about="name of a data set, or path of one in ImageNet's layout")
    encoder: ViT = SIZES["B"]
    checkpoint: str | None = science(None, about="MaskAlign's teacher: a file of weights, or a pretraining run")
    method: MethodConfig = field(default_factory=CrossMAEConfig)
    masking: MaskingConfig = field(default_factory=RandomMasking)
    epochs: int = science(800)
    warmup_epochs: float = science(40.0)
    batch: int = science(4096, about="images per optimiser step, over all devices and accumulated micro-batches")
    base_lr: float = science(1.5e-4, about="learning rate per 256 images of batch, before lr_factor")
    lr_factor: Literal["predict/mask", "mask/predict", "none"] = science(
        "predict/mask", about="CrossMAE's factor of the learning rate: the shares predicted and hidden"
    )
    schedule: Literal["cosine", "simmim_cosine", "simmim_steps"] = science(
        "cosine", about="after warm-up: MAE's cosine; SimMIM's, one step late: a cosine over all epochs, or drops"
    )
    drops: tuple[float, ...] = science((), about="epochs at which simmim_steps drops the learning rate to a tenth")
    start_lr: float = science(0.0, about="learning rate at the start of warm-up")
    min_lr: float = science(0.0, about="learning rate at the end of the cosine")
    weight_decay: float = science(0.05, about="not for biases and norms")
    betas: tuple[float, float] = science((0.9, 0.95))
    grad_clip: float | None = science(None, about="largest gradient norm; none: no clipping", formerly="clip")
    smallest_crop: float = science(0.2, about="smallest share of an image's area in a training crop")
    flip: bool = science(True, about="mirror half of the crops")
    resizing: Literal["bicubic", "bilinear"] = science("bicubic", about="interpolation of crops; SimMIM: bilinear")
    jpeg_decoder: Literal["torchvision", "pil"] = science(
        "torchvision",
        about="pil: exactly the papers' pixels, at half the speed; torchvision: differs by .05 of 255",
        formerly="decoder",
    )
    skip: float = plumbing(0.01, about="share of training images that may be skipped if they cannot be decoded")
    seed: int = science(0)
    monitor: MonitorConfig = nested(MonitorConfig, formerly="health")
    evaluate_precision: EvaluatePrecision = speed("fp32", about=f"of the validation loss: {ABOUT}")
    compile: bool | Literal["blocks"] = speed(
        False,
        about="compile the loss: takes a minute at the start, then steps are faster; blocks: only the blocks, one for "
        "all that are alike, so that the first step comes sooner",
    )
    recompute: bool = speed(False, about="recompute activations in the backward pass: less memory, more time")
    full_export: bool = plumbing(False, about="write all weights, including the decoder's, to model.pth at the end")
    keep_encoder_every: int | None = plumbing(
        None, about="epochs between two encoders kept in encoders/, to evaluate them during the training"
    )
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if self.keep_encoder_every is not None and self.keep_encoder_every < 1:
            raise ValueError(f"keep_encoder_every={self.keep_encoder_every} epochs must be at least 1, or none")
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"epochs={self.epochs} must be at least 1, and warmup_epochs={self.warmup_epochs} between 0 and epochs"
            )
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1")
        if self.batch % self.compute.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of compute.accumulate={self.compute.accumulate}")
        self._check_optimiser()
        if (self.schedule == "simmim_steps") != bool(self.drops) or not all(0 < d < self.epochs for d in self.drops):
            raise ValueError(
                f"drops={list(self.drops)} with schedule={self.schedule}: simmim_steps needs epochs between 0 and "
                f"{self.epochs}; other schedules need drops=[]"
            )
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} must lie in (0, 1]")
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip={self.skip} must lie in [0, 1): the share of images that may be skipped")
        if self.checkpoint is not None and not isinstance(self.method, MaskAlignConfig):
            raise ValueError(
                f"checkpoint={self.checkpoint}: method.kind={self.method.kind} starts from random weights; "
                "only MaskAlign uses a checkpoint, for its teacher"
            )
        self._check_masking()
        self._check_maps()

    def _check_optimiser(self) -> None:
        rates = {name: getattr(self, name) for name in ("base_lr", "min_lr", "start_lr", "weight_decay")}
        for name, rate in rates.items():
            if not (math.isfinite(rate) and (rate > 0 if name == "base_lr" else rate >= 0)):
                raise ValueError(f"{name}={rate} must be {'positive' if name == 'base_lr' else '0 or more'}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must lie in [0, 1)")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip={self.grad_clip} must be positive, or none")

    def _check_masking(self) -> None:
        method, masking = self.method, self.masking
        if method.reconstructs and not masking.predicted_share:
            raise ValueError(
                f"masking.kind={masking.kind} predicts no patches, but method.kind={method.kind} needs some: "
                "use masking=random, grid or attention"
            )
        if masking.needs == "attention" and not method.gives_attention:
            raise ValueError(
                f"masking.kind={masking.kind} needs a teacher's attention, but method.kind={method.kind} has none: "
                "use masking=random, grid or attention"
            )
        if isinstance(masking, AttentionMasking):
            masking.schedule(self.epochs)
            self._check_crops(masking)
        if not masking.predicted_share and self.lr_factor != "none":
            raise ValueError(f"lr_factor={self.lr_factor} needs predicted patches: use lr_factor=none")

    def _check_crops(self, masking: AttentionMasking) -> None:
        grid = self.encoder.grid
        if masking.crop_mode == "original" and PUBLISHED_SIDE % grid:
            raise ValueError(
                f"masking.crop_mode=original needs a grid that divides {PUBLISHED_SIDE}, not the encoder's {grid} x "
                f"{grid}: use crop_mode=correct"
            )

    def _check_maps(self) -> None:
        """Check that CrossMAE's feature maps are blocks of this encoder."""
        blocks, last = getattr(self.method, "feature_maps", None), self.encoder.depth - 1
        if blocks is not None and not all(0 <= block <= last for block in blocks):
            raise ValueError(f"method.feature_maps={list(blocks)} must be blocks of the encoder, 0 to {last}")
        if blocks == () and isinstance(self.masking, AttentionMasking):
            raise ValueError(
                "method.feature_maps=[] trains no block of the encoder, but masking.kind=attention needs the attention "
                "of the last trained block: use masking=random or grid, or list some blocks"
            )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: factor * base_lr * batch / 256 (8e-4 for .25 predicted of .75 hidden, batch 4096)."""
        hidden, predicted = self.masking.hidden_share, self.masking.predicted_share
        factor = 1.0
        if self.lr_factor != "none":
            factor = predicted / hidden if self.lr_factor == "predict/mask" else hidden / predicted
        return factor * self.base_lr * self.batch / 256

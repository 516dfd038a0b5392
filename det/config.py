"""The configs of detection runs, as frozen dataclasses; does not import torch.

The defaults are detectron2's ViTDet-B Mask R-CNN on COCO (projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py).
Nested groups mirror the parts of the model: `vitdet` (backbone and feature pyramid), `proposals` (RPN), `heads`
(box and mask heads, and selection of detections), `augment` (augmentation of training images).

The number of classes is read from the annotation file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal

from mimbench.backbones.config import (
    SIZES,
    Kernel,
    PositionTable,
    Prefix,
    RelativeResize,
    RopeWindows,
    Traits,
    ViT,
    vitdet_global_blocks,
)
from mimbench.engine.run.config import Compute, nested, plumbing, science, speed
from mimbench.engine.run.precision import ABOUT, EvaluatePrecision

LossWeights = Literal["image", "batch"]  # see det/model/loss_weights.py
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class ViTDetConfig:
    """What detection adds to a ViT: windows, relative positions, a simple feature pyramid (ViTDet, section 3)."""

    patch: int | None = science(None, about="patch size to which the encoder is resampled; none: no resampling")
    window: int | None = science(
        14, about="side of an attention window, in patches; none: the encoder's pretraining grid, or 16"
    )
    global_blocks: tuple[int, ...] | None = science(
        None, about="blocks with global attention; none: the last block of each quarter of the depth"
    )
    rel_pos: bool = science(
        True,
        about="decomposed relative positions in every block, unless the encoder has a table or rotary positions",
    )
    abs_pos: bool = science(True, about="use the position table; false drops a checkpoint's table")
    drop_path: float = science(0.1, about="stochastic depth rate of the last block; linear from 0 at the first")
    channels: int = science(256, about="channels of every pyramid map")
    scales: tuple[float, ...] = science((4.0, 2.0, 1.0, 0.5), about="pyramid maps relative to the encoder's grid")
    prefix: Prefix = science(
        "drop",
        later=True,
        about="class token and registers: dropped, only in global blocks, or copied into each window",
    )
    positions: PositionTable = science(
        "resize",
        later=True,
        about="the position table: resized to the image, or tiled so that every window sees the whole table",
    )
    rope_windows: RopeWindows = science(
        "window", later=True, about="origin and step size of rotary positions in windowed blocks"
    )
    relative_resize: RelativeResize = science(
        "cubic", later=True, about="interpolation of a relative position table to a larger grid; none: an error"
    )
    norm: Literal["off", "own"] = science(
        "off", later=True, about="own: apply the encoder's final norm to its feature map"
    )
    kernel: Kernel = science(
        "bicubic", later=True, about="interpolation of the patch kernel when it is resampled to `patch`"
    )
    frozen: bool = science(
        False, later=True, about="train only pyramid and heads, with a frozen encoder without `rel_pos`"
    )
    layer: int | None = science(
        None, later=True, about="use only this many blocks of a frozen encoder; none: all of them"
    )

    def __post_init__(self) -> None:
        if (self.window is not None and self.window < 1) or self.channels < 1:
            raise ValueError(f"vitdet.window={self.window} and vitdet.channels={self.channels} must be at least 1")
        if self.layer is not None and (self.layer < 1 or not self.frozen):
            raise ValueError(f"vitdet.layer={self.layer} must be at least 1, and needs vitdet.frozen=true")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"vitdet.drop_path={self.drop_path} must lie in [0, 1)")
        if not self.scales or not set(self.scales) <= {4.0, 2.0, 1.0, 0.5}:
            raise ValueError(f"vitdet.scales={list(self.scales)} may contain only 4, 2, 1, 0.5")
        if any(finer != 2 * coarser for finer, coarser in pairwise(self.scales)):
            raise ValueError(
                f"vitdet.scales={list(self.scales)} must be consecutive: each scale half of the one before"
            )

    def unlike_detectron2(self) -> list[str]:
        """Return the settings, as key=value, with which a trained model computes what detectron2's ViTDet does not."""
        names = ("prefix", "positions", "rope_windows", "relative_resize", "norm")
        own = [name for name in names if getattr(self, name) != getattr(ViTDetConfig(), name)]
        return [f"vitdet.{name}={getattr(self, name)}" for name in own]

    def beyond_detectron2(self) -> list[str]:
        """Return the settings, as key=value, with which detectron2 cannot train a ViTDet."""
        frozen = ["vitdet.frozen=True"] * self.frozen
        return self.unlike_detectron2() + frozen + ["vitdet.window=none"] * (self.window is None)

    def attend_globally(self, depth: int, traits: Traits) -> tuple[int, ...]:
        """Return global blocks of an encoder of `depth` blocks; by default the last of each quarter (ViTDet 3.2)."""
        return vitdet_global_blocks(depth, traits) if self.global_blocks is None else self.global_blocks


@dataclass(frozen=True)
class Proposals:
    """The region proposal network. One anchor size per pyramid map, and one for an extra map of half the size."""

    convs: int = science(2, about="hidden 3x3 convolutions")
    norm: bool = science(False, about="a layer norm after each of them, as in the paper; detectron2's code has none")
    anchor_sizes: tuple[float, ...] = science((32.0, 64.0, 128.0, 256.0, 512.0), about="in pixels, finest map first")
    anchor_ratios: tuple[float, ...] = science((0.5, 1.0, 2.0), about="height / width")
    samples: int = science(256, about="anchors per image in the loss, at most half of them positive")
    before_nms: tuple[int, int] = science((2000, 1000), about="proposals per map before NMS: training, test")
    after_nms: tuple[int, int] = science((1000, 1000), about="proposals per image after NMS: training, test")

    def __post_init__(self) -> None:
        if self.convs < 1 or self.samples < 1 or min(self.before_nms + self.after_nms) < 1:
            raise ValueError("proposals.convs, samples, before_nms and after_nms must be at least 1")
        if not self.anchor_ratios or min(self.anchor_sizes + self.anchor_ratios) <= 0:
            raise ValueError("proposals.anchor_sizes and anchor_ratios must be positive")


@dataclass(frozen=True)
class Heads:
    """The box and mask heads, and the selection of detections."""

    samples: int = science(512, about="proposals per image in the loss, at most a quarter of them positive")
    convs: int = science(4, about="3x3 convolutions of the box head and of the mask head")
    channels: int = science(256, about="their width")
    fc: int = science(1024, about="width of the box head's fully connected layer")
    score_threshold: float = science(0.05, about="minimum score of a detection")
    nms: float = science(0.5, about="NMS threshold (IoU) between detections of a class")
    detections: int = science(100, about="maximum number of detections per image; COCO's metrics use 100")
    masks: bool = science(True, about="train and predict masks; false for data without masks")
    cascade: bool = science(False, about="three consecutive box heads with rising IoU thresholds (Cascade R-CNN)")
    class_loss: Literal["softmax", "sigmoid", "federated"] = science(
        "softmax", about="classification loss; federated is LVIS's: sigmoids over a sample of the classes"
    )
    federated: int = science(50, about="classes per federated loss, including those on the images")
    soft_nms: Literal["off", "linear", "gaussian"] = science(
        "off", about="soft NMS: lower the scores of overlapping detections instead of removing them"
    )

    def __post_init__(self) -> None:
        for name in ("samples", "convs", "channels", "fc", "detections", "federated"):
            if getattr(self, name) < 1:
                raise ValueError(f"heads.{name}={getattr(self, name)} must be at least 1")
        if not (0 <= self.score_threshold < 1 and 0 < self.nms <= 1):
            raise ValueError(
                f"heads.score_threshold={self.score_threshold} and heads.nms={self.nms} must lie in [0, 1]"
            )


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images: flip, large-scale jitter and a crop, as in detectron2."""

    flip: float = science(0.5, about="probability of a horizontal flip")
    smallest: float = science(0.1, about="smallest scale; 1 fits the whole image inside the square")
    largest: float = science(2.0, about="largest scale")

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip={self.flip} must lie in [0, 1]")
        if not 0 < self.smallest <= self.largest:
            raise ValueError(
                f"augment.smallest={self.smallest} must be positive and at most augment.largest={self.largest}"
            )


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation: image sizes and flips whose detections are merged."""

    sizes: tuple[int, ...] = science((), about="longest sides in pixels; empty: only `image`")
    flip: bool = science(False, about="also detect in the horizontally flipped image")

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"test_time_augmentation.sizes={list(self.sizes)} must be at least 1")


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Mask R-CNN on a ViTDet backbone, trained and evaluated on a COCO-style data set."""

    formerly: ClassVar[str] = "MaskRCNN"  # its name in identities and run.json

    data: str = science(about="a COCO directory, or a data set's name")
    engine: Literal["mimbench", "detectron2"] = science(
        "mimbench", about="the software that trains and evaluates: mimbench, or detectron2 if installed"
    )
    benchmark: Literal["coco", "lvis"] = science(
        "coco",
        about="annotation files and metrics: lvis reads annotations/lvis_v1_{train,val}.json and uses LVIS's metrics",
    )
    repeat: float | None = science(
        None, about="repeat images with categories that are on less than this share of the images (LVIS: 0.001)"
    )
    checkpoint: str | None = science(None, about="the encoder's weights; none: random weights")
    allow_partial: bool = science(
        False, about="accept a checkpoint with missing or unknown keys; the result lists them"
    )
    single_class: bool = science(False, about="train and evaluate as if all objects had one category")
    encoder: ViT = science(SIZES["B"], about="the encoder's shape; used only when there is no checkpoint")
    start: Literal["pretraining", "detectron2"] = science(
        "pretraining",
        about="initialisation of an encoder without a checkpoint: as in pretraining, or N(0, .02) everywhere",
    )
    vitdet: ViTDetConfig = ViTDetConfig()
    proposals: Proposals = Proposals()
    heads: Heads = Heads()
    augment: Augment = Augment()
    test_time_augmentation: TTA = nested(TTA, formerly="views")
    pixel_mean: RGB | None = science(
        None, later=True, about="mean of the images, as fractions of 255; none: as in the encoder's pretraining"
    )
    pixel_std: RGB | None = science(None, later=True, about="their standard deviation, likewise")
    image: int = science(1024, about="side of the square that images are resized to fit into, in pixels")
    steps: int = science(184_375, about="optimiser steps; 0 only evaluates a checkpoint of a whole detector")
    batch: int = science(64, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-4, about="peak learning rate of the heads")
    warmup: float = science(250.0, about="steps of linear warm-up, from 0.001 of the peak")
    milestones: tuple[int, ...] = science((163_889, 177_546), about="steps at which the learning rate is divided by 10")
    layer_decay: float = science(0.7, about="learning rate of each encoder layer relative to the layer after it")
    weight_decay: float = science(0.1)
    decay_norms: bool = science(False, about="apply weight decay also to the ViT's norms and position table (ViTDet-H)")
    grad_clip: float | None = science(None, about="maximum gradient norm; none: no clipping", formerly="clip")
    loss_weights: LossWeights = science(
        "image",
        about="weighting of regions in the losses: image: every image has equal weight, as on 64 GPUs with one image "
        "each, for any division of the batch; batch: every region of the batch has equal weight",
        formerly="normalise",
    )
    recompute: bool = speed(
        False, about="recompute the encoder's activations in the backward pass: less memory, more time"
    )
    skip_dropped: bool = speed(
        False,
        about="at one image a process and micro-batch, do not compute what drop path drops; on a GPU these "
        "are other draws of the same distribution",
    )
    compile: bool = speed(
        False,
        about="compile the backbone and the RPN's head: takes a minute or two at the start, then a step is faster",
    )
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates only at the end")
    eval_batch: int = speed(1, about="images per forward pass in evaluation", formerly="evaluate_batch")
    evaluate_precision: EvaluatePrecision = science("fp32", later=True, about=ABOUT)
    schedule: str = plumbing(
        "", about="length in the names of the metrics, such as 12ep; empty: the published length of training"
    )
    shown: int = plumbing(6, about="number of validation images plotted with their detections")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        for name in ("image", "batch", "eval_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.steps < 0 or (self.steps == 0 and self.checkpoint is None):
            raise ValueError(f"steps={self.steps} must be at least 1, or 0 with checkpoint set to a whole detector")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be at least 1, or none")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr} must be a positive number")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        self._require_names_and_pixels()
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones={list(self.milestones)} must be ascending")
        if self.loss_weights == "batch" and self.compute.accumulate > 1:
            raise ValueError(
                f"loss_weights=batch needs the whole batch at once, not compute.accumulate={self.compute.accumulate} "
                "parts; use loss_weights=image, whose result does not depend on the division, or compute.accumulate=1"
            )
        if self.repeat is not None and not 0 < self.repeat <= 1:
            raise ValueError(f"repeat={self.repeat} must be a share of the images in (0, 1], or none")
        if self.batch % self.compute.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of compute.accumulate={self.compute.accumulate}")
        maps = len(self.vitdet.scales) + 1
        if len(self.proposals.anchor_sizes) != maps:
            raise ValueError(
                f"proposals.anchor_sizes={list(self.proposals.anchor_sizes)} must have {maps} sizes, one per pyramid "
                f"map: those of vitdet.scales and an extra one with half the resolution of the last"
            )
        if self.checkpoint is None:
            self.shape_for(self.encoder)

    def _require_names_and_pixels(self) -> None:
        if self.engine == "detectron2" and self.evaluate_precision != "fp32":
            raise ValueError(
                f"evaluate_precision={self.evaluate_precision} needs engine=mimbench: detectron2 evaluates in fp32"
            )
        if self.engine == "detectron2" and self.compute.shard:
            raise ValueError("compute.shard=true needs engine=mimbench: detectron2 keeps whole weights in each process")
        if not re.fullmatch(r"(\d+ep)?", self.schedule):
            raise ValueError(f"schedule={self.schedule} must be a number of epochs such as 12ep, or empty")
        if self.pixel_std is not None and min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std={list(self.pixel_std)} must be positive")

    @property
    def protocol(self) -> str:
        """Return what the names of its metrics begin with: "" for the published training, else "frozen_12ep_" ..."""
        vitdet = self.vitdet
        probes = vitdet.layer is not None or vitdet.global_blocks == ()  # in windows only, as PE's layer probe
        kind = "" if not vitdet.frozen else "layer_probe" if probes else "frozen"
        return "".join(f"{part}_" for part in (kind or (self.schedule and "short"), self.schedule) if part)

    def scaled(self, epochs: int, whole: int) -> MaskRCNNConfig:
        """Return this config of `whole` epochs scaled to `epochs`: steps, milestones and warm-up.

        As detectron2 derives 75 epochs from 100: steps are rounded down, and warm-up keeps its share of the steps.
        """
        steps = self.steps * epochs // whole
        milestones = tuple(step * epochs // whole for step in self.milestones)
        return replace(self, steps=steps, milestones=milestones, warmup=self.warmup * steps / self.steps)

    def shape_for(self, encoder: ViT) -> ViT:
        """Return the shape of the encoder in the detector: `encoder`, resampled to `vitdet.patch`.

        If the pretraining image is not a multiple of that patch, its number of patches is kept: DINOv2's 518 pixels in
        patches of 14 become 592 pixels in patches of 16, so the position table is unchanged. A table to be tiled is
        made for one window, as in the Perception Encoder's conversion, so that every window sees the whole table. With
        `vitdet.layer` the shape has only that many blocks.

        Raises:
            ValueError: if the encoder does not fit this detector; names the field and a valid value.
        """
        if self.vitdet.patch is not None:
            patch = self.vitdet.patch
            image = encoder.image if encoder.image % patch == 0 else encoder.grid * patch
            encoder = replace(encoder, patch=patch, image=image)
        if self.vitdet.positions == "tile" and self.vitdet.window is not None:
            encoder = replace(encoder, image=self.vitdet.window * encoder.patch)
        if self.vitdet.layer is not None:
            if self.vitdet.layer > encoder.depth:
                raise ValueError(f"vitdet.layer={self.vitdet.layer}: the encoder has only {encoder.depth} blocks")
            encoder = replace(encoder, depth=self.vitdet.layer)
        blocks = self.vitdet.global_blocks or ()
        if any(not 0 <= block < encoder.depth for block in blocks):
            raise ValueError(
                f"vitdet.global_blocks={list(blocks)} does not fit an encoder of {encoder.depth} blocks, 0 to "
                f"{encoder.depth - 1}; use none for the last block of each quarter, as ViTDet does"
            )
        coarsest = max(encoder.patch, round(encoder.patch / self.vitdet.scales[-1]))
        if self.image % coarsest:
            raise ValueError(
                f"image={self.image} must be a multiple of {coarsest}, the stride of the coarsest map of "
                f"vitdet.scales with an encoder of patch={encoder.patch}"
            )
        return encoder

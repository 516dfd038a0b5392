"""What a detection run depends on, as frozen dataclasses without torch.

The defaults are detectron2's ViTDet-B Mask R-CNN on COCO (projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py).
Nested groups mirror the parts of the model: `vitdet` (backbone and feature pyramid), `proposals` (RPN), `heads`
(box and mask heads, and what is kept of their output), `augment` (what happens to a training image).

The number of classes is not here: it is read from the annotation file.
"""

from __future__ import annotations

import math
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
    ViT,
    global_blocks,
)
from mimbench.engine.run.config import Compute, nested, plumbing, science, speed

LossWeights = Literal["image", "batch"]  # see det/model/loss_weights.py


@dataclass(frozen=True)
class ViTDetConfig:
    """What detection adds to a ViT: windows, relative positions, a simple feature pyramid (ViTDet, section 3)."""

    patch: int | None = science(None, about="patch the encoder is resampled to; none keeps its own")
    window: int | None = science(
        14, about="side of an attention window, in patches; none takes the encoder's pretraining grid, or 16"
    )
    global_blocks: tuple[int, ...] | None = science(
        None, about="blocks that attend to the whole image; none takes the last of each quarter of the depth"
    )
    rel_pos: bool = science(
        True, about="decomposed relative positions in every block, unless the encoder has a table or rotary ones"
    )
    abs_pos: bool = science(True, about="the position table; without it a checkpoint's is left out")
    drop_path: float = science(0.1, about="rate of the last block; it rises linearly from 0")
    channels: int = science(256, about="channels of every pyramid map")
    scales: tuple[float, ...] = science((4.0, 2.0, 1.0, 0.5), about="pyramid maps relative to the encoder's grid")
    prefix: Prefix = science(
        "drop", later=True, about="class token and registers: left out, in global blocks alone, a copy in each window"
    )
    positions: PositionTable = science(
        "resize", later=True, about="the position table: resized to the image, or tiled so that a window sees it whole"
    )
    rope_windows: RopeWindows = science(
        "window", later=True, about="where rotary positions count from in windowed blocks, and in whose steps"
    )
    relative_resize: RelativeResize = science(
        "cubic", later=True, about="how a table of relative positions is stretched to a larger grid; none refuses"
    )
    norm: Literal["off", "own"] = science("off", later=True, about="the encoder's final norm on its map")
    kernel: Kernel = science("bicubic", later=True, about="how the patch kernel is resampled to `patch`")
    frozen: bool = science(
        False, later=True, about="train pyramid and heads alone, the encoder as it came; it gets no `rel_pos` then"
    )

    def __post_init__(self) -> None:
        if (self.window is not None and self.window < 1) or self.channels < 1:
            raise ValueError(f"vitdet.window={self.window} and channels={self.channels} must be at least 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"vitdet.drop_path={self.drop_path} must lie in [0, 1)")
        if not self.scales or not set(self.scales) <= {4.0, 2.0, 1.0, 0.5}:
            raise ValueError(f"vitdet.scales={list(self.scales)} must be some of 4, 2, 1, 0.5")
        if any(finer != 2 * coarser for finer, coarser in pairwise(self.scales)):
            raise ValueError(f"vitdet.scales={list(self.scales)} must halve from each map to the next")

    def beyond_detectron2(self) -> list[str]:
        """The settings, as key=value, that detectron2's ViTDet has nothing like."""
        names = ("prefix", "positions", "rope_windows", "relative_resize", "norm", "frozen")
        own = [name for name in names if getattr(self, name) != getattr(ViTDetConfig(), name)]
        return [f"vitdet.{name}={getattr(self, name)}" for name in own] + ["vitdet.window=none"] * (self.window is None)

    def attend_globally(self, depth: int) -> tuple[int, ...]:
        """`global_blocks` in an encoder of `depth` blocks; by default the last of each quarter (ViTDet, 3.2)."""
        return global_blocks(depth) if self.global_blocks is None else self.global_blocks


@dataclass(frozen=True)
class Proposals:
    """The region proposal network. One anchor size for each pyramid map, and for one more of half the last's size."""

    convs: int = science(2, about="hidden 3x3 convolutions")
    norm: bool = science(False, about="a layer norm after each of them, as the paper says; detectron2's code has none")
    anchor_sizes: tuple[float, ...] = science((32.0, 64.0, 128.0, 256.0, 512.0), about="pixels, finest map first")
    anchor_ratios: tuple[float, ...] = science((0.5, 1.0, 2.0), about="height over width")
    samples: int = science(256, about="anchors per image in the loss, at most half of them objects")
    before_nms: tuple[int, int] = science((2000, 1000), about="kept per map before suppression: training, test")
    after_nms: tuple[int, int] = science((1000, 1000), about="kept per image after suppression: training, test")

    def __post_init__(self) -> None:
        if self.convs < 1 or self.samples < 1 or min(self.before_nms + self.after_nms) < 1:
            raise ValueError("proposals: convs, samples, before_nms and after_nms must be at least 1")
        if not self.anchor_ratios or min(self.anchor_sizes + self.anchor_ratios) <= 0:
            raise ValueError("proposals: anchor_sizes and anchor_ratios must be positive")


@dataclass(frozen=True)
class Heads:
    """The box and mask heads, and which detections are kept."""

    samples: int = science(512, about="proposals per image in the loss, at most a quarter of them objects")
    convs: int = science(4, about="3x3 convolutions of the box head, and of the mask head")
    channels: int = science(256, about="their width")
    fc: int = science(1024, about="width of the box head's fully connected layer")
    score_threshold: float = science(0.05, about="detections must score above this")
    nms: float = science(0.5, about="overlap above which the lower-scored detection of a class goes")
    detections: int = science(100, about="detections kept per image; COCO's metrics look at 100")
    masks: bool = science(True, about="learn and find masks; false for data that has boxes alone")
    cascade: bool = science(False, about="three box heads in a row, each for tighter boxes (Cascade R-CNN)")
    class_loss: Literal["softmax", "sigmoid", "federated"] = science(
        "softmax", about="how classes are learned; federated is LVIS's, sigmoids over some classes at a time"
    )
    federated: int = science(50, about="classes in each federated loss, those on the image among them")
    soft_nms: Literal["off", "linear", "gaussian"] = science(
        "off", about="lower the scores of overlapping detections of a class in place of suppressing them"
    )

    def __post_init__(self) -> None:
        for name in ("samples", "convs", "channels", "fc", "detections", "federated"):
            if getattr(self, name) < 1:
                raise ValueError(f"heads.{name}={getattr(self, name)} must be at least 1")
        if not (0 <= self.score_threshold < 1 and 0 < self.nms <= 1):
            raise ValueError(f"heads.score_threshold={self.score_threshold} and nms={self.nms} must lie in [0, 1]")


@dataclass(frozen=True)
class Augment:
    """What happens to a training image: flip, large-scale jitter and a crop, as in detectron2."""

    flip: float = science(0.5, about="chance of a horizontal flip")
    smallest: float = science(0.1, about="smallest scale; 1 fits the whole image inside the square")
    largest: float = science(2.0, about="largest scale")

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip={self.flip} must lie in [0, 1]")
        if not 0 < self.smallest <= self.largest:
            raise ValueError(f"augment.smallest={self.smallest} must be positive and at most largest={self.largest}")


@dataclass(frozen=True)
class TTA:
    """Sizes in which each image is detected in evaluation, and mirrored; the detections of all are merged."""

    sizes: tuple[int, ...] = science((), about="longest sides in pixels; none is once, at `image`")
    flip: bool = science(False, about="each also mirrored")

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"test_time_augmentation.sizes={list(self.sizes)} must be at least 1")


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Mask R-CNN on a ViTDet backbone, trained and evaluated on a COCO-style data set."""

    formerly: ClassVar[str] = "MaskRCNN"  # how identities and run.json know it

    data: str = science(about="a COCO directory, or the name of one")
    engine: Literal["mimbench", "detectron2"] = science(
        "mimbench", about="what trains and evaluates: mimbench, or detectron2 if it is installed"
    )
    benchmark: Literal["coco", "lvis"] = science(
        "coco", about="whose files and rules: lvis reads annotations/lvis_v1_{train,val}.json and scores as LVIS does"
    )
    repeat: float | None = science(
        None, about="images of categories that fewer than this share of the images show are repeated (LVIS: 0.001)"
    )
    checkpoint: str | None = science(None, about="encoder to start from; none trains from scratch")
    allow_partial: bool = science(
        False, about="take a checkpoint whose keys are not all accounted for; the result names what was let pass"
    )
    single_class: bool = science(False, about="learn and evaluate as if all objects were of one category")
    encoder: ViT = science(SIZES["B"], about="shape of the encoder when there is no checkpoint")
    start: Literal["pretraining", "detectron2"] = science(
        "pretraining", about="how an encoder without a checkpoint is drawn: as pretraining's, or N(0, .02) throughout"
    )
    vitdet: ViTDetConfig = ViTDetConfig()
    proposals: Proposals = Proposals()
    heads: Heads = Heads()
    augment: Augment = Augment()
    test_time_augmentation: TTA = nested(TTA, formerly="views")
    image: int = science(1024, about="side of the square that images are fitted into, in pixels")
    steps: int = science(184_375, about="optimiser steps; 0 evaluates a checkpoint that is a whole detector as it is")
    batch: int = science(64, about="images per optimiser step, over all processes and micro-batches")
    lr: float = science(1e-4, about="peak learning rate of the heads")
    warmup: float = science(250.0, about="steps of linear warm-up, from 0.001 of the peak")
    milestones: tuple[int, ...] = science((163_889, 177_546), about="steps at which the rate falls tenfold")
    layer_decay: float = science(0.7, about="rate of each encoder layer relative to the one above it")
    weight_decay: float = science(0.1)
    decay_norms: bool = science(False, about="weight decay on the ViT's norms and position table too (ViTDet-H)")
    grad_clip: float | None = science(None, about="largest gradient norm; none does not clip", formerly="clip")
    loss_weights: LossWeights = science(
        "image",
        about="of regions: image: each image counts the same, as on 64 GPUs with an image each, however a batch is "
        "divided; batch: each region of the batch does",
        formerly="normalise",
    )
    recompute: bool = speed(
        False, about="compute the encoder's activations again in the backward pass: less memory, more time"
    )
    evaluate_every: int | None = plumbing(None, about="steps between evaluations; none evaluates at the end only")
    eval_batch: int = speed(1, about="images per batch at evaluation", formerly="evaluate_batch")
    shown: int = plumbing(6, about="validation images drawn with their detections")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        for name in ("image", "batch", "eval_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.steps < 0 or (self.steps == 0 and self.checkpoint is None):
            raise ValueError(f"steps={self.steps} must be at least 1; or 0 with checkpoint= naming a whole detector")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be at least 1, or none")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr} must be a positive number")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones={list(self.milestones)} must rise")
        if self.loss_weights == "batch" and self.compute.accumulate > 1:
            raise ValueError(
                f"loss_weights=batch takes the whole batch at once, not compute.accumulate={self.compute.accumulate} "
                "parts; loss_weights=image gives the same however the batch is divided"
            )
        if self.repeat is not None and not 0 < self.repeat <= 1:
            raise ValueError(f"repeat={self.repeat} is a share of the images, in (0, 1], or none")
        if self.batch % self.compute.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of compute.accumulate={self.compute.accumulate}")
        maps = len(self.vitdet.scales) + 1
        if len(self.proposals.anchor_sizes) != maps:
            raise ValueError(
                f"proposals.anchor_sizes={list(self.proposals.anchor_sizes)} must hold one size for each of the {maps} "
                f"pyramid maps: those of vitdet.scales and one more, half as fine as the last"
            )
        if self.checkpoint is None:
            self.shape_for(self.encoder)

    def scaled(self, epochs: int, whole: int) -> MaskRCNNConfig:
        """The same, which trains for `whole` epochs, with a schedule for `epochs`: steps, drops of the rate, warm-up.

        As detectron2 makes 75 epochs of 100: whole steps, rounded down, and warm-up as the same fraction of them.
        """
        steps = self.steps * epochs // whole
        milestones = tuple(step * epochs // whole for step in self.milestones)
        return replace(self, steps=steps, milestones=milestones, warmup=self.warmup * steps / self.steps)

    def shape_for(self, encoder: ViT) -> ViT:
        """The encoder inside the detector: `encoder`, or what is left of it at `vitdet.patch`.

        A pretraining image that is no multiple of that patch keeps its number of patches: DINOv2's 518 pixels in
        patches of 14 count as 592 in patches of 16, so that its position table stays what it is.

        Raises:
            ValueError: if this detector cannot stand on it, naming the field that does not fit and a value that would.
        """
        if self.vitdet.patch is not None:
            patch = self.vitdet.patch
            image = encoder.image if encoder.image % patch == 0 else encoder.grid * patch
            encoder = replace(encoder, patch=patch, image=image)
        blocks = self.vitdet.global_blocks or ()
        if any(not 0 <= block < encoder.depth for block in blocks):
            raise ValueError(
                f"vitdet.global_blocks={list(blocks)} does not fit an encoder of {encoder.depth} blocks, 0 to "
                f"{encoder.depth - 1}; none takes the last of each quarter, as ViTDet does"
            )
        coarsest = max(encoder.patch, round(encoder.patch / self.vitdet.scales[-1]))
        if self.image % coarsest:
            raise ValueError(
                f"image={self.image} must be a multiple of {coarsest}, the stride of the coarsest map that "
                f"vitdet.scales makes of an encoder with patch={encoder.patch}"
            )
        return encoder

"""What a pretraining run depends on, without torch, so that recipes can be read at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from backbones.config import SIZES, ViT
from engine.config import Compute, science


@dataclass(frozen=True)
class CrossMAE:
    """CrossMAE (arXiv 2401.14391): mask tokens read hidden patches out of the visible ones by cross-attention.

    A `mask` share of the patches is hidden and a `predict` share of all patches is reconstructed; what is hidden but
    not predicted is never computed. Depth 12 with predict .25 costs 2.6 times less in the decoder than MAE.
    """

    kind: Literal["crossmae"] = science("crossmae")
    mask: float = science(0.75, about="share of all patches that the encoder does not see")
    predict: float = science(0.25, about="share of all patches that are reconstructed, at most mask")
    depth: int = science(12, about="decoder blocks")
    width: int = science(512, about="width of the decoder")
    heads: int = science(16, about="heads of the decoder's attention")
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
        if not 0 < self.mask < 1:
            raise ValueError(f"mask={self.mask} must lie between 0 and 1: some patches are hidden and some are seen")
        if not 0 < self.predict <= self.mask:
            raise ValueError(
                f"predict={self.predict} must lie in (0, mask={self.mask}]: only hidden patches can be reconstructed. "
                "The paper uses mask=0.75 with predict=0.25 or 0.75"
            )
        for name in ("depth", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of the decoder must be at least 1")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width={self.width} of the decoder must be a multiple of 4 and of heads={self.heads}")
        if self.feature_maps is not None and not (self.feature_maps or self.use_input):
            raise ValueError("feature_maps=[] with use_input=false leaves the decoder nothing to read")


@dataclass(frozen=True)
class Pretrain:
    """Pretraining of an encoder on images without labels (AdamW, warm-up and cosine per iteration)."""

    data: str = science("imagenet", about="the name of a data set or the path of one in ImageNet's layout")
    encoder: ViT = SIZES["B"]
    method: CrossMAE = field(default_factory=CrossMAE)
    epochs: int = science(800)
    warmup_epochs: float = science(40.0)
    batch: int = science(4096, about="images per optimiser step, over all devices and accumulated micro-batches")
    base_lr: float = science(1.5e-4, about="learning rate per 256 images of batch, before lr_factor")
    lr_factor: Literal["predict/mask", "mask/predict", "none"] = science(
        "predict/mask", about="what CrossMAE scales the learning rate by"
    )
    min_lr: float = science(0.0, about="where the cosine ends")
    weight_decay: float = science(0.05, about="not of biases and norms")
    betas: tuple[float, float] = science((0.9, 0.95))
    smallest_crop: float = science(0.2, about="least share of an image's area in a training crop")
    flip: bool = science(True, about="mirror half of the crops")
    seed: int = science(0)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"epochs={self.epochs} must be at least 1, and warmup_epochs={self.warmup_epochs} within it"
            )
        if self.batch < 1 or self.batch % self.compute.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of compute.accumulate={self.compute.accumulate}")
        if self.base_lr <= 0 or self.min_lr < 0 or self.weight_decay < 0:
            raise ValueError(f"base_lr={self.base_lr} must be positive; min_lr and weight_decay not negative")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} must lie in (0, 1]")
        blocks, last = self.method.feature_maps, self.encoder.depth - 1
        if blocks is not None and not (last in blocks and all(0 <= block <= last for block in blocks)):
            raise ValueError(
                f"method.feature_maps={list(blocks)} must be blocks of the encoder, 0 to {last}, and "
                f"{last} among them: blocks after the last one read would never be trained"
            )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: factor * base_lr * batch / 256 (.25 of .75 predicted at batch 4096: 8e-4)."""
        mask, predict = self.method.mask, self.method.predict
        factor = {"predict/mask": predict / mask, "mask/predict": mask / predict, "none": 1.0}[self.lr_factor]
        return factor * self.base_lr * self.batch / 256

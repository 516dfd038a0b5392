"""The augmentation of fine-tuning, identical to timm's: random crop, flip and RandAugment of a PIL image.

    transform = FinetuneTransform(224, smallest=0.08, flip=True, randaugment="rand-m9-mstd0.5-inc1")
    transform(image)        # uint8 (3, 224, 224)

The papers used timm with an older Pillow. Here every operation at every magnitude returns the same bytes with every
supported Pillow (tests/cls/golden/randaugment.py holds timm's output on Pillow 12). Two steps are corrected for
Pillow 13. First, timm asks to keep 0 bits of each colour (`PosterizeIncreasing` at magnitude 10, which
rand-m9-mstd0.5-inc1 draws for one image in 645): older versions return a black image, Pillow 13 raises an error.
Second, Pillow 13 resizes crops along the other axis first (engine/data/pillow.py).

Random numbers come from the generators of Python, NumPy and torch, in timm's order. A step that fails raises
`AugmentationError` with the operation and its magnitude.
"""

from __future__ import annotations

import copy
from typing import Any

from timm.data import auto_augment, create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms.functional import pil_modes_mapping

from mimbench.engine.data.faults import AugmentationError
from mimbench.engine.data.pillow import resize_with_pillow

LEVELS = 256  # values of a colour channel


class FinetuneTransform:
    """timm's random crop (bicubic), flip and RandAugment, without timm's final normalisation.

    Args:
        side: side of a crop in pixels.
        smallest: smallest share of the image's area in a crop.
        flip: mirror half of the crops horizontally.
        randaugment: RandAugment in timm's notation, such as "rand-m9-mstd0.5-inc1"; None turns it off.
    """

    def __init__(self, side: int, *, smallest: float, flip: bool, randaugment: str | None) -> None:
        composed = create_transform(
            side,
            is_training=True,
            scale=(smallest, 1.0),
            hflip=0.5 if flip else 0.0,
            color_jitter=None,  # type: ignore[arg-type]  # timm accepts None; its annotation does not say so
            auto_augment=randaugment,
            interpolation="bicubic",
            normalize=False,
        )
        self.steps = [named(step) for step in composed.transforms]

    def __call__(self, image: Any) -> Tensor:
        """Return an augmented crop of a PIL image in RGB: uint8 (3, side, side).

        Raises:
            AugmentationError: if a step fails; names the step, and RandAugment's operation with its magnitude.
        """
        for step in self.steps:
            try:
                image = step(image)
            except AugmentationError:
                raise
            except Exception as error:
                raise AugmentationError(f"{type(step).__name__} failed: {described(error)}") from error
        crop: Tensor = image
        return crop


def named(step: Any) -> Any:
    """Convert a step of timm's transforms: to `Crop`, to RandAugment of `Operation`s, or unchanged."""
    if isinstance(step, RandomResizedCropAndInterpolation):
        return Crop(step)
    if not isinstance(step, RandAugment):
        return step
    step = copy.copy(step)
    step.ops = [Operation(op) for op in step.ops]
    return step


class Crop:
    """timm's random crop, resized as Pillow 12 does it."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.crop = crop
        self.resampling = pil_modes_mapping[crop.interpolation]

    def __call__(self, image: Any) -> Any:
        """Return a random part of a PIL image, resized."""
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        part = image.crop((left, top, left + width, top + height))
        new_height, new_width = self.crop.size
        return resize_with_pillow(part, new_width, new_height, self.resampling)


class Operation:
    """One operation of timm's RandAugment: draws as timm's does, and raises an error with its name if it fails."""

    def __init__(self, op: AugmentOp) -> None:
        self.op, self.level, self.magnitude = copy.copy(op), op.level_fn, 0.0
        if op.aug_fn is auto_augment.posterize:
            self.op.aug_fn = posterize
        if op.level_fn is not None:
            self.op.level_fn = self._arguments

    def _arguments(self, magnitude: float, hparams: dict[str, Any]) -> tuple[Any, ...]:
        """Return timm's arguments for the drawn magnitude, and remember the magnitude for the error message."""
        assert self.level is not None
        self.magnitude = magnitude
        arguments: tuple[Any, ...] = self.level(magnitude, hparams)
        return arguments

    def __call__(self, image: Any) -> Any:
        """Return the PIL image with the operation applied, or unchanged (timm's `prob`).

        Raises:
            AugmentationError: if the operation fails; names it and its magnitude.
        """
        try:
            return self.op(image)
        except Exception as error:
            at = "" if self.level is None else f" at magnitude {self.magnitude:.4g}"
            raise AugmentationError(f"{self.op.name}{at} failed: {described(error)}") from error


def posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Return a PIL image in RGB with the highest `bits_to_keep` bits of each colour; black if 0 or less.

    Equal to timm's operation with Pillow 12 or older. Pillow 13 raises an error below 1.
    """
    if bits_to_keep >= 8:
        return image
    step = 2 ** (8 - bits_to_keep)
    return image.point([value - value % step for value in range(LEVELS)] * len(image.getbands()))


def described(error: Exception) -> str:
    """Return an error as one line, with its type unless it is a ValueError with a text."""
    line = " ".join(str(error).split())
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__}: {line}".rstrip(": ")

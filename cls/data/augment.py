"""The augmentation of fine-tuning, identical to timm's: random crop, flip and RandAugment of an image.

    transform = FinetuneTransform(224, smallest=0.08, flip=True, randaugment="rand-m9-mstd0.5-inc1")
    transform(image)        # uint8 (3, H, W), as a decoder returns it, to uint8 (3, 224, 224)

The papers used timm with an older Pillow. Here every operation at every magnitude returns the same bytes with every
supported Pillow (tests/cls/golden/randaugment.py holds timm's output on Pillow 12). Two steps are corrected for
Pillow 13. First, timm asks to keep 0 bits of each colour (`PosterizeIncreasing` at magnitude 10, which
rand-m9-mstd0.5-inc1 draws for one image in 645): older versions return a black image, Pillow 13 raises an error.
Second, Pillow 13 resizes crops along the other axis first (engine/data/pillow.py).

Only what a step needs becomes a PIL image: the part that is cropped, not the whole, and with `pixels="tensor"` only the
crops to which an operation is applied. Shear and translation are computed in `shifts.py`, with the same bytes.
`pixels="tensor"` resizes the crop by torch's uint8 kernel, within 2 of 255 of Pillow's; what follows is the same.

Random numbers come from the generators of Python, NumPy and torch, in timm's order. A step that fails raises
`AugmentationError` with the operation and its magnitude.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip

from mimbench.cls.config import Pixels
from mimbench.cls.data.shifts import Axis, shifted
from mimbench.engine.data.faults import AugmentationError
from mimbench.engine.data.images import resize
from mimbench.engine.data.pillow import resize_with_pillow

# S side of a crop, H x W size of an image

LEVELS = 256  # values of a colour channel


class FinetuneTransform:
    """timm's random crop (bicubic), flip and RandAugment, without timm's final normalisation.

    Args:
        side: side of a crop in pixels.
        smallest: smallest share of the image's area in a crop.
        flip: mirror half of the crops horizontally.
        randaugment: RandAugment in timm's notation, such as "rand-m9-mstd0.5-inc1"; None turns it off.
        pixels: what resizes the crop.
    """

    def __init__(
        self, side: int, *, smallest: float, flip: bool, randaugment: str | None, pixels: Pixels = "pil"
    ) -> None:
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
        self.steps = [named(step, pixels) for step in composed.transforms]

    def __call__(self, image: Any) -> Tensor:
        """Return an augmented crop of an image, uint8 (3, H, W) or a PIL image in RGB: uint8 (3, S, S).

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


def named(step: Any, pixels: Pixels) -> Any:
    """Convert a step of timm's transforms: to `Crop`, `Flip`, RandAugment of `Operation`s, or `as_tensor`.

    Raises:
        TypeError: for any other step.
    """
    if isinstance(step, RandomResizedCropAndInterpolation):
        return Crop(step, pixels)
    if isinstance(step, RandomHorizontalFlip):
        return Flip(step.p)
    if isinstance(step, MaybePILToTensor):
        return as_tensor
    if not isinstance(step, RandAugment):
        raise TypeError(f"{type(step).__name__} is not a step of fine-tuning")
    step = copy.copy(step)
    step.ops = np.array([Operation(op) for op in step.ops], object)  # an array: NumPy need not convert it at each draw
    return step


def as_tensor(image: Any) -> Tensor:
    """Return a PIL image in RGB, or a tensor, as a uint8 tensor (3, H, W) that is stored by pixel."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def as_pil(image: Any) -> Any:
    """Return a uint8 tensor (3, H, W), or a PIL image, as a PIL image in RGB."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) if isinstance(image, Tensor) else image


class Crop:
    """timm's random crop, resized as Pillow 12 does it, or by torch."""

    def __init__(self, crop: RandomResizedCropAndInterpolation, pixels: Pixels) -> None:
        self.crop, self.pixels = crop, pixels

    def __call__(self, image: Any) -> Any:
        """Return a random part of an image, resized: a PIL image, or a tensor (3, S, S)."""
        top, left, height, width = self._part(image)
        new_height, new_width = self.crop.size
        if self.pixels == "tensor":
            window = as_tensor(image)[:, top : top + height, left : left + width]
            return resize(window, new_height, new_width)
        if isinstance(image, Tensor):
            part = as_pil(image[:, top : top + height, left : left + width])
        else:
            part = image.crop((left, top, left + width, top + height))
        return resize_with_pillow(part, new_width, new_height, Image.Resampling.BICUBIC)

    def _part(self, image: Any) -> tuple[int, int, int, int]:
        """Return top, left, height and width of timm's draw, at least one pixel of the image.

        Of images with 1 to 3 pixels timm may draw none. Resizing nothing is an error here; timm's crop is then black,
        or shows a pixel.
        """
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        high, wide = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        return min(top, high - 1), min(left, wide - 1), max(height, 1), max(width, 1)


class Flip:
    """torchvision's random horizontal flip, by the same draw."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Any) -> Any:
        """Return a PIL image or a tensor (3, H, W), mirrored or not."""
        if not torch.rand(1) < self.probability:
            return image
        return image.flip(-1) if isinstance(image, Tensor) else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class Operation:
    """One operation of timm's RandAugment: draws as timm's does, and raises an error with its name if it fails."""

    def __init__(self, op: AugmentOp) -> None:
        self.op, self.level, self.magnitude = copy.copy(op), op.level_fn, 0.0
        self.op.aug_fn = partial(applied, OURS.get(op.aug_fn, op.aug_fn))
        if op.level_fn is not None:
            self.op.level_fn = self._arguments

    def _arguments(self, magnitude: float, hparams: dict[str, Any]) -> tuple[Any, ...]:
        """Return timm's arguments for the drawn magnitude, and remember the magnitude for the error message."""
        assert self.level is not None
        self.magnitude = magnitude
        arguments: tuple[Any, ...] = self.level(magnitude, hparams)
        return arguments

    def __call__(self, image: Any) -> Any:
        """Return the image with the operation applied, as a PIL image, or unchanged (timm's `prob`).

        Raises:
            AugmentationError: if the operation fails; names it and its magnitude.
        """
        try:
            return self.op(image)
        except Exception as error:
            at = "" if self.level is None else f" at magnitude {self.magnitude:.4g}"
            raise AugmentationError(f"{self.op.name}{at} failed: {described(error)}") from error


def applied(operation: Callable[..., Any], image: Any, *arguments: Any, **options: Any) -> Any:
    """Return the result of an operation on PIL images for an image of either kind."""
    return operation(as_pil(image), *arguments, **options)


def posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Return a PIL image in RGB with the highest `bits_to_keep` bits of each colour; black if 0 or less.

    Equal to timm's operation with Pillow 12 or older. Pillow 13 raises an error below 1.
    """
    if bits_to_keep >= 8:
        return image
    step = 2 ** (8 - bits_to_keep)
    return image.point([value - value % step for value in range(LEVELS)] * len(image.getbands()))


def shear(axis: Axis, image: Any, factor: float, **options: Any) -> Any:
    """Return timm's shear_x or shear_y of a PIL image in RGB."""
    return _shifted(image, axis, factor, 0.0, options)


def translate(axis: Axis, image: Any, pixels: float, **options: Any) -> Any:
    """Return timm's translate_x_abs or translate_y_abs of a PIL image in RGB."""
    return _shifted(image, axis, 0.0, pixels, options)


def translate_relative(axis: Axis, image: Any, share: float, **options: Any) -> Any:
    """Return timm's translate_x_rel or translate_y_rel of a PIL image in RGB."""
    return _shifted(image, axis, 0.0, share * image.size[0 if axis == "x" else 1], options)


def _shifted(image: Any, axis: Axis, slope: float, offset: float, options: dict[str, Any]) -> Any:
    filters = options["resample"]
    chosen = random.choice(filters) if isinstance(filters, list | tuple) else filters  # timm's draw
    return shifted(image, axis, slope, offset, options["fillcolor"], chosen)


OURS: dict[Any, Callable[..., Any]] = {
    auto_augment.posterize: posterize,
    auto_augment.shear_x: partial(shear, "x"),
    auto_augment.shear_y: partial(shear, "y"),
    auto_augment.translate_x_abs: partial(translate, "x"),
    auto_augment.translate_y_abs: partial(translate, "y"),
    auto_augment.translate_x_rel: partial(translate_relative, "x"),
    auto_augment.translate_y_rel: partial(translate_relative, "y"),
}  # with timm's bytes: it is slower, or wrong with Pillow 13


def described(error: Exception) -> str:
    """Return an error as one line, with its type unless it is a ValueError with a text."""
    line = " ".join(str(error).split())
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__}: {line}".rstrip(": ")

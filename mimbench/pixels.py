"""Convert images in any usual form to one batch: files, PIL images, NumPy arrays and tensors.

    batch = to_batch([photograph, "cat.jpg", array_HW3], size=224)     # (3, 3, 224, 224), uint8

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mimbench.cls.data.crops import resized_side
from mimbench.engine.data.images import centre_crop, normalise, read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

Picture: TypeAlias = "str | PathLike[str] | Image | NDArray[Any] | Tensor"
Pictures: TypeAlias = "Picture | Iterable[Picture]"
MARGIN = 0.1  # tolerance of float images outside 0..1: bicubic resizing overshoots at sharp edges


def to_batch(images: Pictures, size: int | None = None) -> Tensor:
    """Return `images` as one tensor (B, 3, H, W): uint8 in 0..255, or float32 in 0..1 if any image is float.

    Args:
        images: one image or several. A file's path; a PIL image of any mode; an array (H, W, 3) or (H, W), or
            (B, H, W, 3); a tensor (3, H, W) or (B, 3, H, W). Numbers are uint8 in 0..255 or floats in 0..1.
        size: the side of the images, resized as in evaluations: the short side is resized (bicubic, antialiased) to
            size * 256 / 224, or to size if size is above 224, and the centre is cropped. None keeps the images
            unchanged.

    Raises:
        TypeError: if an argument is not an image.
        ValueError: if a shape or a value is wrong, or the images have several sizes and `size` is None.
        FileNotFoundError: if a file does not exist.
    """
    if size is not None and size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    several = images if isinstance(images, Iterable) and not _is_one(images) else [images]
    parts = [part for image in several for part in _pictures(image)]
    if not parts:
        raise ValueError("images is empty; give at least one image")
    if size is not None:
        parts = [_cropped(part, size) for part in parts]
    sizes = {tuple(part.shape[1:]) for part in parts}
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[:2]
        raise ValueError(
            f"the images have several sizes ({height} x {width}, {other_height} x {other_width} ...); "
            "use size=224 to resize and crop each to 224 pixels"
        )
    if len({part.dtype for part in parts}) > 1:
        parts = [part / 255 if part.dtype == torch.uint8 else part for part in parts]
    return torch.stack(parts)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return a batch of `to_batch` as floats `(value - mean) / std`, where values are in 0..1."""
    return normalise(images if images.dtype == torch.uint8 else images * 255, mean, std)


def _is_one(images: Any) -> bool:
    """Return whether `images` is one image or one batch, not a list of them."""
    return isinstance(images, str | PathLike | np.ndarray | Tensor) or hasattr(images, "convert")


def _pictures(image: Any) -> list[Tensor]:
    """Return the images in one argument, each uint8 or float32 (3, H, W)."""
    if isinstance(image, str | PathLike):
        return [read_image(str(image))]
    if isinstance(image, Tensor):
        return [_checked(part) for part in _split(image, channels=-3)]
    if hasattr(image, "convert"):
        array = np.array(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        array = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    else:
        raise TypeError(
            f"an image must be a file's path, a PIL image, an array or a tensor, not {type(image).__name__}"
        )
    tensor = torch.from_numpy(np.array(array))  # a copy, because some arrays are read-only
    return [_checked(part.permute(2, 0, 1)) for part in _split(tensor, channels=-1)]


def _split(images: Tensor, channels: int) -> list[Tensor]:
    if images.ndim not in (3, 4) or images.shape[channels] != 3:
        wanted = "(3, H, W) or (B, 3, H, W)" if channels == -3 else "(H, W, 3), (H, W) or (B, H, W, 3)"
        kind = "a tensor" if channels == -3 else "an array"
        raise ValueError(f"{kind} of images has the shape {tuple(images.shape)}; it must be {wanted}")
    return [images] if images.ndim == 3 else list(images)


def _checked(image: Tensor) -> Tensor:
    """Return `image` as uint8, or as float32 in 0..1."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"images are of type {image.dtype}; they must be uint8 in 0..255 or floats in 0..1")
    image = image.detach().float()
    low, high = float(image.min()), float(image.max())
    if not (low >= -MARGIN and high <= 1 + MARGIN):
        raise ValueError(
            f"float images must have values in 0..1, but these have {low:.3g} to {high:.3g}; give uint8 images "
            "in 0..255, or pass images that are already normalised to `encoder.model`"
        )
    return image


def _cropped(image: Tensor, size: int) -> Tensor:
    crop = centre_crop(image, size, resized_side(size, None))
    return crop if crop.dtype == torch.uint8 else crop.clamp(0, 1)

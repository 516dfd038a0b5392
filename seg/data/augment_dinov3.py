"""Training images and validation images as DINOv3's linear segmentation makes them: `augment.transforms=dinov3`.

As `seg.data.augment`, with these differences: images are resized by Pillow, bilinear with antialiasing, to a short side
with no limit to the long one; saturation and hue are torchvision's, and the hue turns over the whole circle. Labels are
resized as there (nearest, rounded down). Draws come from NumPy's generator in DINOv3's order, so that the same state
gives the same bytes. Source: facebookresearch/dinov3, dinov3/eval/segmentation/transforms.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mimbench.engine.data.pillow import resize_with_pillow
from mimbench.seg.config import Augment
from mimbench.seg.data.augment import cropped, distorted, draw_scale
from mimbench.seg.data.pixels import Image, Labels, Size, mirrored

HUE = (-0.5, 0.5)  # of a turn


def augmented_as_dinov3(image: Image, labels: Labels, config: Augment, side: int) -> tuple[Image, Labels]:
    """Return a random crop, at most `side` x `side`, of an image (blue first) and its label map at a random scale."""
    short = side if config.short is None else config.short
    size = short_side_to((labels.shape[0], labels.shape[1]), int(short * draw_scale(config)))
    image, labels = cropped(image, labels, size, resize_antialiased, config, side)
    if np.random.rand() < config.flip:
        image, labels = mirrored(image), mirrored(labels)
    if config.photometric:
        image = distorted(np.ascontiguousarray(image[..., ::-1]), _saturated, _hue_turned)[..., ::-1]
    return image, labels


def short_side_to(size: Size, short: int) -> Size:
    """Return the size of an image whose shorter side becomes `short`, at least one pixel."""
    (height, width), short = size, max(short, 1)
    if height > width:
        return int(short * height / width + 0.5), short
    return short, int(short * width / height + 0.5)


def resize_antialiased(image: Image, size: Size) -> Image:
    """Resize an image bilinearly, with antialiasing, as Pillow does."""
    from PIL import Image as Pillow

    source = Pillow.fromarray(np.ascontiguousarray(image))  # Pillow resizes each channel alike, whatever its colour
    return np.asarray(resize_with_pillow(source, size[1], size[0], Pillow.Resampling.BILINEAR))


def _saturated(image: Image, factor: float) -> Image:
    from torchvision.transforms.functional import adjust_saturation

    return _by_torchvision(image, adjust_saturation, factor)


def _hue_turned(image: Image) -> Image:
    from torchvision.transforms.functional import adjust_hue

    return _by_torchvision(image, adjust_hue, np.random.uniform(*HUE))


def _by_torchvision(image: Image, change: Callable[[torch.Tensor, float], torch.Tensor], factor: float) -> Image:
    changed = change(torch.from_numpy(image).permute(2, 0, 1), factor)
    return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())

"""Golden values of timm on Pillow 12: every operation of RandAugment at every magnitude, resizing, whole pipelines.

    python -m tests.cls.golden.randaugment > tests/cls/golden/randaugment.json

in an environment with timm and Pillow 12 (the file says which made it). Needs nothing of this project. Images come from
formulas, randomness from seeds; of each group of results the first digits of a hash are kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

MAGNITUDES = tuple(step / 2 for step in range(21))
BEYOND = (0.01, 2.4999, 7.5001, 9.9999, 10.5, 13.7, 20.0, 29.9, 40.0)  # above 10: with `mmax`
HPARAMS = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
SIDE = 32
PIPELINES = ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m5-n3-mstd101-p1-inc1", "rand-m15-mmax20-mstd4-inc1-n4")
DRAWS, GROUP = 500, 100  # of each pipeline, and results in one hash


def pictures() -> list[Image.Image]:
    """RGB images of odd sizes: waves with noise, noise alone, a grey one, one of a single colour, a narrow strip."""
    kinds = (_waves(40, 40) + _noise(40, 40) % 23, _noise(29, 37), _waves(60, 21)[..., :1].repeat(3, 2) * 0.6 + 20)
    arrays = [*kinds, np.full((24, 24, 3), 90), _noise(1, 7)]
    return [Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)) for array in arrays]


def _noise(height: int, width: int) -> Any:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3))


def _waves(height: int, width: int) -> Any:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(0.11 * (k + 1) * x + 0.07 * y * (3 - k)) for k in range(3)], axis=-1)


def seed(number: int) -> None:
    """Seed all that timm draws from."""
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)


def digest(results: Iterator[Any]) -> str:
    """Eight digits of the hash of images, tensors, or the error that came in place of one."""
    whole = hashlib.sha256()
    for result in results:
        array = np.asarray(result)
        whole.update(repr((array.shape, str(array.dtype))).encode() + array.tobytes())
    return whole.hexdigest()[:8]


def operations(make: Callable[[Any], Any]) -> dict[str, str]:
    """A hash for each operation at each magnitude, over all pictures and both signs; `make` wraps timm's AugmentOp."""
    from timm.data.auto_augment import NAME_TO_OP, AugmentOp

    images, found = pictures(), {}
    for name in NAME_TO_OP:
        for magnitude in MAGNITUDES + BEYOND:
            hparams = HPARAMS | ({"magnitude_max": 40} if magnitude > 10 else {})
            op = make(AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams))
            found[f"{name} {magnitude:g}"] = digest(_results(op, images))
    return found


def _results(op: Callable[[Any], Any], images: list[Image.Image]) -> Iterator[Any]:
    for image in images:
        for sign in (0, 1):  # Python draws a negative sign after seed 0, a positive one after 1
            seed(sign)
            yield op(image)


def pipelines(make: Callable[[str], Callable[[Any], Any]]) -> dict[str, list[str]]:
    """Hashes of many draws of each whole pipeline; `make` gives the transform of a text form of RandAugment."""
    images = pictures()[:4]
    return {text: [digest(_draws(make(text), images, first)) for first in range(0, DRAWS, GROUP)] for text in PIPELINES}


def _draws(transform: Callable[[Any], Any], images: list[Image.Image], first: int) -> Iterator[Any]:
    for number in range(first, first + GROUP):
        seed(number)
        yield transform(images[number % len(images)])


def resizes(resize: Callable[[Any, int, int, Any], Any]) -> dict[str, str]:
    """A hash over 300 pairs of sizes for each filter; `resize` takes an image, width, height and the filter."""
    generator = np.random.default_rng(5)
    pairs = [(_noise(h, w), W, H) for h, w, W, H in generator.integers(1, 60, (300, 4)).tolist()]
    kinds = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
    images = [(Image.fromarray(array.astype(np.uint8)), width, height) for array, width, height in pairs]
    return {kind.name: digest(resize(*each, kind) for each in images) for kind in kinds}


def timms(text: str) -> Callable[[Any], Any]:
    """The pipeline of fine-tuning as timm makes it."""
    from timm.data import create_transform

    transform: Callable[[Any], Any] = create_transform(
        SIDE,
        is_training=True,
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=None,
        auto_augment=text,
        interpolation="bicubic",
        normalize=False,
    )
    return transform


def main() -> None:
    """Print the golden values."""
    packages = {package: version(package) for package in ("pillow", "timm", "torch", "torchvision", "numpy")}
    found = {
        "packages": packages,
        "operations": operations(lambda op: op),
        "pipelines": pipelines(timms),
        "resizes": resizes(lambda image, width, height, kind: image.resize((width, height), kind)),
    }
    json.dump(found, sys.stdout, indent=0)
    print()


if __name__ == "__main__":
    main()

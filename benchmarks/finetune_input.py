"""Images for fine-tuning from JPEG files to augmented crops, against timm's pipeline on Pillow (B27, B28).

    python benchmarks/finetune_input.py [FILE|DIR]... [--draws 3] [--repeats 3] [--json]

    B27   the default, pixels=tensor: torch's uint8 kernel resizes the crop; how far the results differ is printed
    B28   pixels=pil: every byte equals timm's on the same decoded image, which is asserted

The peer is what MAE and CrossMAE run: Pillow decodes, timm crops, flips and applies rand-m9-mstd0.5-inc1, and the
result is a normalised float tensor. Ours is uint8, which is normalised on the device. FILE and DIR are JPEG files of
ImageNet; without them images of the same size are made up. Both sides use the same draws, `--draws` for each image, and
take turns on one core; the least processor time of each counts. Ends with status 1 if a ratio is below its floor.

Two things of the peer are mended: Pillow 13 raises an error where timm keeps 0 bits, and for the comparison it resizes
rows first, as Pillow 12 did (cls/data/augment.py).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from image_input import by_turns, given, make_up
from measure import Measured, Target, total_failed
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torchvision.datasets.folder import pil_loader

from mimbench.cls.config import Pixels
from mimbench.cls.data.augment import FinetuneTransform, as_tensor, posterize
from mimbench.engine.data.folders import read_bytes
from mimbench.engine.data.images import decode
from mimbench.engine.data.pillow import resize_with_pillow
from mimbench.engine.run.process import device_name

SIDE, SMALLEST, RANDAUGMENT = 224, 0.08, "rand-m9-mstd0.5-inc1"
TARGETS = {"B27": Target(1.6, 2.2, 2.8), "B28": Target(1.0, 1.2, 2.4)}
NEAR = 0.6  # of 255: how far pixels=tensor may differ on average, after operations that enlarge differences

Work = Callable[[int], Any]


def timms(normalise: bool) -> Any:
    """The papers' transform of a PIL image."""
    composed = create_transform(
        SIDE,
        is_training=True,
        scale=(SMALLEST, 1.0),
        color_jitter=None,  # type: ignore[arg-type]  # timm accepts None
        auto_augment=RANDAUGMENT,
        interpolation="bicubic",
        normalize=normalise,
    )
    for step in composed.transforms:
        for op in step.ops if isinstance(step, RandAugment) else ():
            op.aug_fn = posterize if op.aug_fn is auto_augment.posterize else op.aug_fn
    return composed


def seeded(number: int) -> None:
    """Seed all three generators, as the loader does for each item."""
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)


class Images:
    """The files, each with several draws: place `i` is draw `i // files` of file `i % files`."""

    def __init__(self, files: Sequence[Path], draws: int) -> None:
        self.files, self.places = [str(file) for file in files], len(files) * draws
        self.theirs = timms(normalise=True)
        self.ours = {pixels: self._transform(pixels) for pixels in ("pil", "tensor")}

    @staticmethod
    def _transform(pixels: Pixels) -> FinetuneTransform:
        return FinetuneTransform(SIDE, smallest=SMALLEST, flip=True, randaugment=RANDAUGMENT, pixels=pixels)

    def decoded(self, place: int) -> Tensor:
        """The image of a place, uint8 (3, H, W)."""
        name = self.files[place % len(self.files)]
        return decode(read_bytes(name), name)

    def peer(self, place: int) -> Tensor:
        """A normalised crop by timm."""
        seeded(place)
        crop: Tensor = self.theirs(pil_loader(self.files[place % len(self.files)]))
        return crop

    def our(self, pixels: str, place: int) -> Tensor:
        """A uint8 crop by us."""
        seeded(place)
        return self.ours[pixels](self.decoded(place))

    def difference(self) -> float:
        """Mean difference between the two of ours, of 255; those of pixels=pil must be timm's."""
        transform, apart = timms(normalise=False), 0.0
        resize = Image.Image.resize
        for place in range(self.places):
            whole = Image.fromarray(self.decoded(place).permute(1, 2, 0).contiguous().numpy())
            seeded(place)

            def as_pillow_12(image: Any, size: Any, resample: Any, **_: Any) -> Any:
                with patch.object(Image.Image, "resize", resize):
                    return resize_with_pillow(image, *size, resample)

            with patch.object(Image.Image, "resize", as_pillow_12):
                wanted = as_tensor(transform(whole))
            found, other = self.our("pil", place), self.our("tensor", place)
            assert torch.equal(found, wanted), f"{self.files[place % len(self.files)]}, draw {place}: other bytes"
            apart += float((other.int() - found.int()).abs().float().mean())
        return apart / self.places


def measure(files: Sequence[Path], draws: int, repeats: int) -> list[Measured]:
    """Both ratios."""
    images = Images(files, draws)
    apart = images.difference()
    assert apart <= NEAR, f"pixels=tensor differs by {apart:.3f} of 255 on average"
    works: dict[str, Work] = {"peer": images.peer, "decoding": images.decoded}
    works |= {pixels: lambda place, pixels=pixels: images.our(pixels, place) for pixels in images.ours}
    rate = by_turns(works, images.places, repeats)
    spent = {name: 1000 / speed for name, speed in rate.items()}
    note = f"ms an image; decoding alone {spent['decoding']:.2f}"
    return [
        Measured(
            "B27 tensor", "ms", spent["tensor"], spent["peer"], TARGETS["B27"], f"{note}; {apart:.3f} of 255 apart"
        ),
        Measured("B28 pil", "ms", spent["pil"], spent["peer"], TARGETS["B28"], "bytes equal"),
    ]


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", type=Path, nargs="*", metavar="FILE|DIR")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = given(options.paths) or make_up(Path(temporary))
        results = measure(files, options.draws, options.repeats)
    if options.json:
        print(json.dumps([result.row() for result in results]))
        return total_failed(results)
    print(f"{device_name(torch.device('cpu'))}; {len(files)} images ({'given' if options.paths else 'made up'})")
    for result in results:
        print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

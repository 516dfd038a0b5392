"""Images from JPEG files to batches, against the papers' pipeline: torchvision's transforms on PIL (B9 to B12).

    python benchmarks/image_input.py [FILE|DIR]... [--workers 2] [--repeats 5] [--json]

    B9   training crops (a fifth to all of the area, bicubic, flip), one core. Same boxes; pixels differ by .1 of 255
         at most on average.
    B10  the same through a DataLoader, batches of 64, shuffled.
    B11  evaluation crops (short side to 256, middle 224), one core. Pixels as in B9.
    B12  training crops from images packed at a short side of 256 px (`mimbench data shrink`), one core, against the
         papers' pipeline on the original files. What that does to the pixels is measured and printed.

The papers' pipeline gives normalised floats; ours gives uint8, which is normalised on the device. FILE and DIR are JPEG
files of ImageNet, 64 or more; without them images of the same size (500 x 375, 110 KB) are made up. Sides take turns on
each image, and the least processor time of each image counts; of a DataLoader, the best pass by the clock. Ends with
status 1 if a ratio is below its floor.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as on_pil

from mimbench.engine.data.batches import Batches
from mimbench.engine.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Box,
    ImageFolder,
    RandomCrops,
    centre_crop,
    cut,
    draw_box,
    normalise,
)
from mimbench.engine.data.shrink import Shrinking, shrink
from mimbench.engine.run.process import device_name

SIDE, SHORT, SCALE, RATIO = 224, 256, (0.2, 1.0), (3 / 4, 4 / 3)
BATCH, BATCHES = 64, 6
MADE, MADE_SIZE, MADE_BYTES = 64, (375, 500), 110_000
NEAR = 0.1  # of 255: how far pixels may differ on average

Work = Callable[[int], Tensor]


@dataclass(frozen=True)
class Target:
    """Ratios to reach: below `floor` the benchmark fails, `limit` is what physics allows."""

    what: str
    floor: float
    aim: float
    limit: float


TARGETS = {
    "B9": Target("training crops, one core", 1.6, 2.0, 2.9),
    "B10": Target("training crops, DataLoader", 1.6, 2.1, 2.9),
    "B11": Target("evaluation crops, one core", 2.0, 2.6, 4.0),
    "B12": Target("training crops, packed at 256 px", 4.0, 5.0, 7.0),
}


@dataclass(frozen=True)
class Result:
    """One ratio, in images a second, and how far the pixels differ."""

    name: str
    theirs: float
    ours: float
    difference: float | None = None  # mean, of 255

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.ours / self.theirs

    @property
    def holds(self) -> bool:
        """Whether the floor is reached."""
        return self.ratio >= TARGETS[self.name].floor


# -------------------------------------------------------------------------------------------------------------- images


def make_up(directory: Path) -> list[Path]:
    """Images as large as ImageNet's, in pixels, in bytes (110 KB) and in bytes once they are shrunk (31 KB)."""
    generator = np.random.default_rng(0)
    images = [Image.fromarray(_photograph_like(generator)) for _ in range(MADE)]
    paths = [directory / f"{number}.jpg" for number in range(MADE)]
    quality = min(range(60, 99), key=lambda quality: abs(_bytes(images[0], quality) - MADE_BYTES))
    for image, path in zip(images, paths, strict=True):
        image.save(path, quality=quality)
    return paths


def _bytes(image: Image.Image, quality: int) -> int:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.tell()


def _photograph_like(generator: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with frequency, mostly grey."""
    height, width = MADE_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    noise = generator.standard_normal((3, *MADE_SIZE))
    planes = np.fft.ifft2(np.fft.fft2(noise) / frequency**1.5).real
    planes /= planes.std(axis=(1, 2), keepdims=True)
    image = planes[0][..., None] + np.moveaxis(planes, 0, -1) / 3
    return (128 + 50 * (image - image.mean()) / image.std()).clip(0, 255).astype(np.uint8)


def linked(paths: Sequence[Path], root: Path) -> Path:
    """A data set of the files, each in it as often as it takes for some batches."""
    for split in ("train", "val"):
        (root / split / "class").mkdir(parents=True)
    copies = -(-BATCH // len(paths))
    for copy in range(copies):
        for number, path in enumerate(paths):
            (root / "train" / "class" / f"{copy:03}-{number:05}.jpg").symlink_to(path.resolve())
    for number, path in enumerate(paths):
        (root / "val" / "class" / f"{number:05}.jpg").symlink_to(path.resolve())
    return root


# ----------------------------------------------------------------------------------------------------------- pipelines


class Papers:
    """The pipeline of MAE's and CrossMAE's code."""

    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def __init__(self, paths: Sequence[str], boxes: Sequence[Box]) -> None:
        self.paths, self.boxes = paths, boxes
        self.evaluation = transforms.Compose(
            [transforms.Resize(SHORT, InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE), self.finish]
        )

    def training(self, index: int) -> Tensor:
        """RandomResizedCrop and flip, by a box drawn before."""
        box = self.boxes[index]
        image = on_pil.resized_crop(pil_loader(self.paths[index]), *box[:4], [SIDE, SIDE], InterpolationMode.BICUBIC)
        return self.finish(on_pil.hflip(image) if box.flip else image)

    def validation(self, index: int) -> Tensor:
        """Resize and CenterCrop."""
        return self.evaluation(pil_loader(self.paths[index]))


def boxes_for(folder: ImageFolder, seed: int = 0) -> list[Box]:
    """A box for each image."""
    random.seed(seed)
    sizes = (folder[index][0].shape[1:] for index in range(len(folder)))
    return [draw_box(height, width, SCALE, RATIO) for height, width in sizes]


def by_turns(works: dict[str, Work], images: int, repeats: int) -> dict[str, float]:
    """Images a second of each piece of work, by the least processor time of each image."""
    least = {name: [float("inf")] * images for name in works}
    for _ in range(repeats):
        for index in range(images):
            for name, work in works.items():
                begun = time.process_time()
                work(index)
                least[name][index] = min(least[name][index], time.process_time() - begun)
    return {name: images / sum(times) for name, times in least.items()}


def difference(theirs: Work, ours: Work, images: int) -> float:
    """Mean difference of pixels, of 255, between normalised floats and uint8."""
    deviation = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    distances = [((normalise(ours(i)[None])[0] - theirs(i)) * deviation).abs().mean() for i in range(images)]
    return float(torch.stack(distances).mean())


def measure_one_core(root: Path, repeats: int) -> Iterator[Result]:
    """B9, B11 and B12."""
    folder = ImageFolder(root, "val", cache=False)
    *_, last = shrink(root, root / "packed", Shrinking(SHORT), workers=0)
    assert not last.left_out, last.left_out[0]
    packed = ImageFolder(root / "packed", "val", cache=False)
    boxes, small_boxes = boxes_for(folder), boxes_for(packed)
    papers = Papers([folder.paths.text(index) for index in range(len(folder))], boxes)
    works: dict[str, Work] = {
        "theirs": papers.training,
        "ours": lambda index: cut(folder[index][0], boxes[index], SIDE),
        "packed": lambda index: cut(packed[index][0], small_boxes[index], SIDE),
        "their evaluation": papers.validation,
        "our evaluation": lambda index: centre_crop(folder[index][0], SIDE, SHORT),
    }
    speed = by_turns(works, len(folder), repeats)
    for name, ours, theirs in (("B9", "ours", "theirs"), ("B11", "our evaluation", "their evaluation")):
        apart = difference(works[theirs], works[ours], len(folder))
        assert apart <= NEAR, f"{ours}: pixels differ by {apart:.3f} of 255 on average"
        yield Result(name, speed[theirs], speed[ours], apart)
    apart = difference(papers.validation, lambda index: centre_crop(packed[index][0], SIDE, SHORT), len(folder))
    yield Result("B12", speed["theirs"], speed["packed"], apart)


def measure_loaders(root: Path, workers: int, repeats: int) -> Result:
    """B10: passes by turns, the best of each; loading processes are up and running before the clock is."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, SCALE, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            Papers.finish,
        ]
    )
    theirs = TorchvisionFolder(root / "train", augment)
    ours = RandomCrops(ImageFolder(root, "train", cache=False), SIDE, scale=SCALE, noise=196)
    best = {"theirs": 0.0, "ours": 0.0}
    for _ in range(repeats):
        sampler = RandomSampler(theirs, replacement=True, num_samples=10**6)
        loader = DataLoader(theirs, BATCH, sampler=sampler, num_workers=workers, drop_last=True)
        best["theirs"] = max(best["theirs"], _rate(iter(loader)))
        best["ours"] = max(best["ours"], _rate(Batches(ours, BATCH, 0, workers=workers).starting_at(0)))
    return Result("B10", **best)


def _rate(batches: Iterator[object]) -> float:
    """Images a second over some batches, after the first."""
    next(batches)
    begun = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return BATCH * BATCHES / (time.perf_counter() - begun)


# ---------------------------------------------------------------------------------------------------------------- main


def measure(root: Path, workers: int, repeats: int) -> Iterator[Result]:
    """Every ratio."""
    yield from measure_one_core(root, repeats)
    yield measure_loaders(root, workers, repeats)


def show(result: Result) -> None:
    """A line for a ratio."""
    target = TARGETS[result.name]
    apart = "" if result.difference is None else f"; pixels differ by {result.difference:.3f} of 255"
    print(
        f"{result.name:<4} {target.what}: papers' pipeline {result.theirs:,.0f} img/s, ours {result.ours:,.0f}: "
        f"{result.ratio:.2f}x  (floor {target.floor}, aim {target.aim}, limit {target.limit}){apart}",
        flush=True,
    )


def given(paths: Sequence[Path]) -> list[Path]:
    """The JPEG files among `paths` and below them."""
    inside = (sorted(path.rglob("*.[jJ][pP]*[gG]")) if path.is_dir() else [path] for path in paths)
    return [file for files in inside for file in files]


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", type=Path, nargs="*", metavar="FILE|DIR")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = given(options.paths) or make_up(Path(temporary))
        size = sum(file.stat().st_size for file in files) / len(files)
        root = linked(files, Path(temporary) / "data")
        kind = "given" if options.paths else "made up"
        if not options.json:
            print(f"{device_name(torch.device('cpu'))}, {options.workers} workers")
            print(f"{len(files)} images ({kind}) of {size / 1e3:.0f} KB", flush=True)
        results = []
        for result in measure(root, options.workers, options.repeats):
            results.append(result)
            if not options.json:
                show(result)
    if options.json:
        lines = [{**asdict(result), "ratio": result.ratio, **asdict(TARGETS[result.name])} for result in results]
        print(json.dumps(lines))
    return int(not all(result.holds for result in results))


if __name__ == "__main__":
    sys.exit(main())

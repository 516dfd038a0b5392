"""Photographs in folders of classes, as ImageNet is laid out, and the crops that pretraining takes from them.

    ROOT/train/<class>/...  ROOT/val/<class>/...     ImageNet; classes are numbered by ROOT/train, sorted by name
    ROOT/<class>/...                                 no splits: both splits are all images, and a warning says so

Images are uint8 tensors (3, H, W), RGB, values 0..255, all the way to the device, where `normalise` makes them the
floats an encoder wants: a quarter of the bytes to move, and twice the speed of the usual PIL and float pipeline.
JPEG, PNG and WebP are decoded by torchvision, other formats by Pillow; greyscale, palette and CMYK become RGB. EXIF
orientation is ignored, as in torchvision's ImageFolder, unless asked for.

Small images that are all of one size (the whole folder in at most `CACHE_BYTES`) are decoded once and kept in memory.
"""

from __future__ import annotations

import io
import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from engine.bar import track
from engine.datasets import Split, image_root, unfit

log = logging.getLogger(__name__)

# N images, B images of a batch, H x W their size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 512 * 2**20
PILLOW_SUFFIXES = frozenset({".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".gif"})
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"}) | PILLOW_SUFFIXES


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """uint8 images (B, 3, H, W) as floats, `(image / 255 - mean) / std`, on the device they are on."""
    mean_C11 = torch.tensor(mean, device=images.device).view(3, 1, 1) * 255
    std_C11 = torch.tensor(std, device=images.device).view(3, 1, 1) * 255
    return images.float().sub_(mean_C11).div_(std_C11)


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | Path, *, upright: bool = False) -> Tensor:
    """The image at `path` as a uint8 tensor (3, H, W), RGB; `upright` turns it as its EXIF data say.

    Raises:
        FileNotFoundError: if there is no such file.
        UnfitError: (a ValueError) naming the file, if it is cut short or not an image.
    """
    from torchvision.io import ImageReadMode, decode_image

    name = os.fspath(path)
    with open(name, "rb") as file:  # noqa: PTH123 (pathlib takes as long as decoding a small image)
        encoded = file.read()
    try:
        if not encoded or _suffix(name) in PILLOW_SUFFIXES:
            return _read_with_pillow(encoded, upright)
        buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        image = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=upright)
    except (RuntimeError, OSError, ValueError) as error:
        raise unfit(Path(path), _fault(error), "replace or delete this file") from None
    return image if image.dtype == torch.uint8 else (image.int() >> 8).to(torch.uint8)  # PNG with 16 bits


def _read_with_pillow(encoded: bytes, upright: bool) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(encoded)) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return torch.from_numpy(np.array(turned.convert("RGB"))).permute(2, 0, 1).contiguous()


def _fault(error: Exception) -> str:
    text = str(error).lower()
    cut_short = "truncated" in text or "incomplete" in text
    return "the image is cut short" if cut_short else "is not an image that can be read"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (as above)


class Paths:
    """Many paths in one block of memory: a list of a million strings would be copied by every loading process."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root = root
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(index))

    def text(self, index: int) -> str:
        """The path as a string, which is made and opened faster."""
        start = self._ends[index - 1] if index else 0
        return f"{self.root}/{os.fsdecode(self._names[start : self._ends[index]])}"


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of one split and the numbers of their classes, in the order of class and file name.

    Item `i` is (uint8 image (3, H, W), label).

    Attributes:
        classes: names of the classes; a label is a place in this list.
        labels: int64 (N,).
        paths: the files.
        pixels: uint8 (N, 3, H, W) when the images are kept in memory, else None.
        splitless: the directory has no train/ and val/, so that both splits are all of it.
    """

    def __init__(self, root: str | Path, split: Split, *, cache: bool | None = None) -> None:
        """Open `split` of the data set at `root`.

        `cache`: keep decoded images in memory; None does so when they are all of one size and fit in `CACHE_BYTES`.

        Raises:
            FileNotFoundError: if `root` or the split is not there.
            UnfitError: (a ValueError) if it holds no images or no classes, or (when kept in memory) one that is broken.
        """
        self.root, self.split = Path(root), split
        directory, self.splitless = split_directory(self.root, split)
        if self.splitless and split == "val":
            log.warning("%s has no train/ and val/: accuracy is measured on the images it is trained on", root)
        self.classes = class_names(split_directory(self.root, "train")[0] if _has(self.root, "train") else directory)
        names, labels = labelled_files(directory, self.classes)
        self.paths, self.labels = Paths(directory, names), torch.tensor(labels, dtype=torch.int64)
        self.pixels = None if cache is False else self._decode_all(insist=bool(cache))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pixels[index] if self.pixels is not None else read_image(self.paths.text(index))
        return image, int(self.labels[index])

    def _decode_all(self, insist: bool) -> Tensor | None:
        """Every image in one tensor; None if they differ in size or (unless `insist`) would fill too much memory."""
        first = read_image(self.paths.text(0))
        if not insist and first.numel() * len(self) > CACHE_BYTES:
            return None
        pixels = torch.empty((len(self), *first.shape), dtype=torch.uint8)
        for index in track(range(len(self)), f"reading {self.split} images of {self.root.name}", len(self)):
            image = read_image(self.paths.text(index))
            if image.shape != first.shape:
                if insist:
                    raise unfit(self.paths[index], "has another size than the first image", "leave out cache=True")
                return None
            pixels[index] = image
        return pixels


def _has(root: Path, split: Split) -> bool:
    return (image_root(root) / split).is_dir()


def split_directory(root: Path, split: Split) -> tuple[Path, bool]:
    """The folder that holds the classes of `split`, and whether the data set has no splits.

    Raises:
        FileNotFoundError: if `root` is not there, or has the other split only.
    """
    inner = image_root(root)
    if not inner.is_dir():
        raise FileNotFoundError(f"{root} does not exist; name a directory with train/ and val/, folders of classes")
    if (inner / split).is_dir():
        return inner / split, False
    other: Split = "val" if split == "train" else "train"
    if (inner / other).is_dir():
        raise FileNotFoundError(f"{inner} has {other}/ but no {split}/; add the {split} images, in class folders")
    return inner, True


def class_names(directory: Path) -> list[str]:
    """The class folders in `directory`, sorted.

    Raises:
        UnfitError: (a ValueError) if there are none.
    """
    with os.scandir(directory) as entries:
        found = list(entries)
    names = sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        loose = sum(_is_image(entry.name) for entry in found)
        what = f"has {loose} images but no class folders" if loose else "holds no images"
        raise unfit(directory, what, f"put the images of each class into a folder of their own, {directory}/<class>/")
    return names


def labelled_files(directory: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths under `directory` of its images, and their labels as places in `classes`.

    Raises:
        UnfitError: (a ValueError) if there are no images, or a class that is not one of `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    for name in class_names(directory):
        if name not in numbers:
            raise unfit(directory / name, "is a class the training split does not have", "add it there, or remove it")
        files = sorted(_image_files(directory, name))
        names += files
        labels += [numbers[name]] * len(files)
    if not names:
        raise unfit(directory, "holds no images", f"they end in {', '.join(sorted(SUFFIXES))}")
    return names, labels


def _is_image(name: str) -> bool:
    return _suffix(name) in SUFFIXES and not name.startswith(".")


def _image_files(root: Path, inner: str) -> Iterator[str]:
    """Paths of images below `root/inner`, relative to `root`."""
    with os.scandir(root / inner) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _image_files(root, f"{inner}/{entry.name}")
            elif _is_image(entry.name):
                yield f"{inner}/{entry.name}"


# ------------------------------------------------------------------------------------------------------------ crops


class Box(NamedTuple):
    """Where a crop is cut from its image, in pixels, and whether it is mirrored afterwards."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], flip: bool = True) -> Box:
    """A random crop of an image, distributed as torchvision's RandomResizedCrop and RandomHorizontalFlip have it.

    Up to ten times an area (a uniform share of the image in `scale`) and an aspect (log-uniform in `ratio`) are drawn
    until they fit; otherwise it is the largest central crop within `ratio`. Drawn from Python's `random`, which
    `SeededDataset` seeds for each item (and which is ten times as quick here as torch's).
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.randint(0, height - h), random.randint(0, width - w)
            return Box(top, left, h, w, flip and random.random() < 0.5)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w, flip and random.random() < 0.5)


def cut(image: Tensor, box: Box, side: int) -> Tensor:
    """The crop `box` of a uint8 image (3, H, W), resized (bicubic, antialiased) to (3, side, side).

    Bit for bit torchvision's `resized_crop`, less its dispatch, which takes as long as the work for a 32-pixel crop.
    """
    crop = _resize(image[:, box.top : box.top + box.height, box.left : box.left + box.width], side, side)
    return crop.flip(-1) if box.flip else crop


def centre_crop(image: Tensor, side: int, short: int) -> Tensor:
    """The middle (3, side, side) of a uint8 image (3, H, W) after its short side is resized to `short` >= side pixels.

    The evaluation crop, as torchvision's Resize (bicubic, antialiased) and CenterCrop make it; 256 and 224 as a rule.
    """
    height, width = image.shape[-2:]
    if min(height, width) != short:
        small = min(height, width)
        height, width = (int(short * size / small) if size != small else short for size in (height, width))
        image = _resize(image, height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image[:, top : top + side, left : left + side].contiguous()


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


class RandomCrops(Dataset[tuple[Tensor, int]]):
    """Random crops of a folder's images, for pretraining: item `i` is (uint8 crop (3, side, side), label).

    Random numbers are Python's, so that each item wants seeding: `SeededDataset(RandomCrops(...), seed)`.
    """

    def __init__(
        self,
        folder: ImageFolder,
        side: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        """`scale`, `ratio`: as in `draw_box`; MAE and CrossMAE pretrain with the defaults."""
        self.folder, self.side, self.scale, self.ratio, self.flip = folder, side, scale, ratio, flip

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.folder[index]
        height, width = image.shape[-2:]
        return cut(image, draw_box(height, width, self.scale, self.ratio, self.flip), self.side), label

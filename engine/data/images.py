"""Images in class folders, as in ImageNet, and the random crops for pretraining.

    ROOT/train/<class>/...  ROOT/val/<class>/...     ImageNet; classes are numbered by ROOT/train, sorted by name
    ROOT/<class>/...                                 no splits: both splits are all images, with a warning
    ROOT/train/00000.tar ...                         either of these, packed by `mimbench data shrink` (shards.py)
    ...                                              ImageNet's tars, CIFAR, WebDataset: layouts/recognise.py

Images stay uint8 tensors (3, H, W), RGB, values 0..255, until they are on the device, where `normalise` turns them into
floats: this moves a quarter of the bytes and is twice as fast as the usual pipeline of PIL and floats. They are stored
by pixel (channels last), as decoders write them and torch's uint8 kernels read them.

torchvision decodes JPEG and WebP, Pillow all other formats. Pillow also decodes PNG: a damaged file crashes the process
in torchvision 0.29, and pixels and speed hardly differ. Greyscale, palette and CMYK become RGB, and values of more than
8 bits become 8 bits (see decoding.py). EXIF orientation is ignored by default, as in torchvision's ImageFolder. With
`decoder="pil"` Pillow decodes and crops, so that pixels equal those of the papers' code exactly; torchvision's differ
by .05 of 255 on average.

Images of equal size are decoded once and kept in memory if the whole folder fits into `CACHE_BYTES`.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.engine.data.datasets import Split, UnfitError, unfit
from mimbench.engine.data.decoding import UnreadableError, decode_with_pillow, orientation, turned
from mimbench.engine.data.folders import PILLOW_SUFFIXES, read_bytes, suffix
from mimbench.engine.data.layouts.recognise import open_listing
from mimbench.engine.data.pillow import resize_with_pillow
from mimbench.engine.run.bar import track
from mimbench.engine.run.uploads import constant

log = logging.getLogger(__name__)

# N images, B images of a batch, H x W their size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 512 * 2**20
PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of the format

Decoder = Literal["torchvision", "pil"]
Resizing = Literal["bicubic", "bilinear"]  # of a crop; always antialiased


def normalise(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Return uint8 images (B, 3, H, W) as floats, `(image / 255 - mean) / std`, on the same device."""
    kind = torch.get_default_dtype()
    mean_C, std_C = (constant(tuple(values), kind, images.device) * 255 for values in (mean, std))
    floats = images.float()
    if floats.is_contiguous() or not floats.is_contiguous(memory_format=torch.channels_last):
        floats.sub_(mean_C.view(3, 1, 1)).div_(std_C.view(3, 1, 1))
    else:  # as rows, because torch's inner loop over 3 colours takes four times as long
        width = floats.shape[3]
        floats.permute(0, 2, 3, 1).flatten(2).sub_(mean_C.repeat(width)).div_(std_C.repeat(width))
    return floats


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | Path, *, upright: bool = False) -> Tensor:
    """Return the image at `path` as a uint8 tensor (3, H, W), RGB; `upright` applies its EXIF orientation.

    Raises:
        FileNotFoundError: if the file does not exist.
        UnfitError: (a ValueError) naming the file, if it is truncated or not an image.
    """
    name = str(path)
    return decode(read_bytes(name), name, upright=upright)


def decode(encoded: bytearray, name: str, *, upright: bool = False, decoder: Decoder = "torchvision") -> Tensor:
    """Return the image in the bytes of the file `name`, as `read_image` does.

    Raises:
        UnfitError: (a ValueError) naming the file, if it is truncated or not an image.
    """
    try:
        if not encoded or decoder == "pil" or suffix(name) in PILLOW_SUFFIXES or encoded.startswith(PNG):
            return _by_pixel(decode_with_pillow(encoded, upright=upright))
        return _decode_with_torchvision(encoded, upright)
    except UnreadableError as error:
        raise unfit(Path(name), error.what, error.remedy) from None
    except (RuntimeError, OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise unfit(Path(name), _fault(error), "replace or delete this file") from None


def _decode_with_torchvision(encoded: bytearray, upright: bool) -> Tensor:
    """Decode with torchvision, or with Pillow if that fails: the file may be a BMP, TIFF or AVIF with another ending.

    torchvision rotates only JPEG, and only if EXIF is the first metadata, so Pillow reads the orientation.
    """
    from torchvision.io import ImageReadMode, decode_image

    buffer = torch.frombuffer(encoded, dtype=torch.uint8)
    try:
        image = decode_image(buffer, ImageReadMode.RGB)
    except RuntimeError as error:
        if _is_cut_short(error):
            raise
        return _by_pixel(decode_with_pillow(encoded, upright=upright))
    first = image if image.ndim == 3 else image[0]  # of an animation
    turn = orientation(encoded) if upright else 1
    return first if turn == 1 else _by_pixel(turned(first.permute(1, 2, 0).numpy(), turn))


def _from_pillow(image: Any) -> Tensor:
    return _by_pixel(np.array(image))


def _by_pixel(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _fault(error: Exception) -> str:
    return "the image is cut short" if _is_cut_short(error) else "is not an image that can be read"


def _is_cut_short(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "incomplete" in text


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of one split and their class numbers, in the order of class and file name.

    Item `i` is (uint8 image (3, H, W), label).

    Attributes:
        classes: names of the classes; a label is an index into this list.
        labels: int64 (N,).
        paths: the files.
        pixels: uint8 (N, 3, H, W) if the images are kept in memory, else None.
        splitless: whether the directory has no train/ and val/, so that both splits are all images.
        layout: the recognised layout of the data set.
        decoder: the library that decodes and crops the images.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        cache: bool | None = None,
        decoder: Decoder = "torchvision",
        subset: str | Path | None = None,
    ) -> None:
        """Open `split` of the data set at `root`.

        `cache`: keep decoded images in memory; None: if they have one size and fit in `CACHE_BYTES`.
        `subset`: a text file that names the images to use (engine/data/layouts/subset.py).

        Raises:
            FileNotFoundError: if `root` or the split does not exist.
            UnfitError: (a ValueError) if it holds no images or no classes, or is damaged.
        """
        self.root, self.split, self.decoder = Path(root), split, decoder
        listing = open_listing(self.root, split, subset)
        if listing.splitless and split == "val":
            log.warning("%s has no train/ and val/: accuracy is measured on the training images", root)
        self.paths, self.labels, self.classes = listing.files, listing.labels, listing.classes
        self.splitless, self.layout, self._made = listing.splitless, listing.layout, listing.facts
        self._faults: dict[int, UnfitError] = {}
        self.pixels = None
        if cache is not False:
            self.pixels = self._decode_all(insist=bool(cache)) if listing.pixels is None else listing.pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self._faults:
            raise self._faults[index]
        image = self.pixels[index] if self.pixels is not None else self._decode(index)
        return image, int(self.labels[index])

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.paths.text(index)

    def facts(self) -> dict[str, object]:
        """Return unusual image processing that changes the numbers, for `result.json`."""
        return self._made if self.decoder == "torchvision" else {**self._made, "decoder": self.decoder}

    def _decode(self, index: int) -> Tensor:
        return decode(self.paths.encoded(index), self.paths.text(index), decoder=self.decoder)

    def _decode_all(self, insist: bool) -> Tensor | None:
        """Return all images in one tensor; None if they differ in size or (unless `insist`) need too much memory.

        An image that cannot be decoded raises its error when the item is read.
        """
        pixels: Tensor | None = None
        for index in track(range(len(self)), f"reading {self.split} images of {self.root.name}", len(self)):
            try:
                image = self._decode(index)
            except UnfitError as error:
                self._faults[index] = error
                continue
            if pixels is None:
                if not insist and image.numel() * len(self) > CACHE_BYTES:
                    return None
                pixels = torch.zeros(len(self), *image.shape[1:], 3, dtype=torch.uint8).permute(0, 3, 1, 2)
            if image.shape != pixels.shape[1:]:
                if insist:
                    raise unfit(self.paths[index], "differs in size from the first image", "remove cache=True")
                return None
            pixels[index] = image
        return pixels


# ------------------------------------------------------------------------------------------------------------ crops


class Box(NamedTuple):
    """The position and size of a crop in its image, in pixels, and whether it is mirrored afterwards."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class Crop(NamedTuple):
    """The `Box` of an item and the size of its image; in a batch each is a tensor (B,)."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    image_height: int
    image_width: int


class Sample(NamedTuple):
    """An item of `RandomCrops`; in a batch each is a tensor with B in front, `crop` a `Crop` of tensors (B,).

    `noise` is drawn with the crop, so neither depends on the process that loads the item or trains on it.
    """

    image: Tensor  # uint8 (3, side, side)
    label: int
    place: int  # index in the folder; of a replaced item, the index of its replacement
    crop: Crop
    noise: Tensor  # float32 (N,), uniform in [0, 1); N is 0 by default


def draw_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], flip: bool = True) -> Box:
    """Return a random crop of an image, distributed as torchvision's RandomResizedCrop and RandomHorizontalFlip.

    An area (a uniform share of the image in `scale`) and an aspect (log-uniform in `ratio`) are drawn up to ten times
    until they fit; if none fits, the crop is the largest central one within `ratio`. Uses Python's `random`, which
    `SeededDataset` seeds for each item (and which is ten times faster here than torch's).
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


def cut(image: Tensor, box: Box, side: int, decoder: Decoder = "torchvision", resizing: Resizing = "bicubic") -> Tensor:
    """Return the crop `box` of a uint8 image (3, H, W), resized (antialiased) to (3, side, side).

    Equals torchvision's `resized_crop` of the tensor bit for bit, but without its dispatch, which takes as long as the
    work for a 32-pixel crop; with `decoder="pil"`, equals `resized_crop` of a PIL image.
    """
    inner = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    crop = (_resize_with_pillow if decoder == "pil" else resize)(inner, side, side, resizing)
    return crop.flip(-1) if box.flip else crop


def _resize_with_pillow(image: Tensor, height: int, width: int, resizing: Resizing = "bicubic") -> Tensor:
    from PIL import Image

    pixels_HWC = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    whole = Image.fromarray(pixels_HWC)
    return _from_pillow(resize_with_pillow(whole, width, height, Image.Resampling[resizing.upper()]))


def centre_crop(image: Tensor, side: int, short: int, decoder: Decoder = "torchvision") -> Tensor:
    """Return the centre (3, side, side) of a uint8 image (3, H, W) whose short side is resized to `short` >= side.

    This is the evaluation crop of torchvision's Resize (bicubic, antialiased) and CenterCrop for a tensor, or with
    `decoder="pil"` for a PIL image; usually 256 and 224.
    """
    image = shortened(image, short, decoder)
    height, width = image.shape[-2:]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image.permute(1, 2, 0)[top : top + side, left : left + side].contiguous().permute(2, 0, 1)


def shortened(image: Tensor, short: int, decoder: Decoder = "torchvision") -> Tensor:
    """Return a uint8 image (3, H, W) resized so that its short side has `short` pixels, as by torchvision's Resize."""
    height, width = image.shape[-2:]
    small = min(height, width)
    if small == short:
        return image
    new_height, new_width = (int(short * size / small) if size != small else short for size in (height, width))
    if decoder == "pil":
        return _resize_with_pillow(image, new_height, new_width)
    return resize(image, new_height, new_width)


def resize(image: Tensor, height: int, width: int, resizing: Resizing = "bicubic") -> Tensor:
    """Return a uint8 image (3, H, W), or a window of one, resized to (3, height, width) with torchvision's pixels."""
    by_pixel = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)  # saves a third of the time or more
    return F.interpolate(by_pixel, (height, width), mode=resizing, antialias=True, align_corners=False)[0]


class RandomCrops(Dataset[Sample]):
    """Random crops of a folder's images, for pretraining: item `i` is a `Sample`.

    Crops use Python's `random` and noise uses torch's generator, so each item needs seeding:
    `SeededDataset(RandomCrops(...), seed)`.
    """

    def __init__(
        self,
        folder: ImageFolder,
        side: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        noise: int = 0,
        resizing: Resizing = "bicubic",
    ) -> None:
        """`scale`, `ratio`: as in `draw_box`; MAE and CrossMAE use the defaults. `noise`: random numbers per item, one
        for each patch that may be masked.
        """
        self.folder, self.side, self.scale, self.ratio, self.flip, self.noise = folder, side, scale, ratio, flip, noise
        self.resizing = resizing

    def __len__(self) -> int:
        return len(self.folder)

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.folder.image_name(index)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.folder[index]
        height, width = image.shape[-2:]
        box = draw_box(height, width, self.scale, self.ratio, self.flip)
        crop = Crop(*box, image_height=height, image_width=width)
        pixels = cut(image, box, self.side, self.folder.decoder, self.resizing)
        return Sample(pixels, label, index, crop, torch.rand(self.noise))

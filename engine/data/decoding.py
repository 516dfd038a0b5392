"""Decode images with Pillow to 8-bit RGB, also those that Pillow's own conversion would distort.

    pixels = decode_with_pillow(encoded, upright=True)     # uint8 (H, W, 3)

Greyscale of more than 8 bits is scaled; Pillow would clip it at 255:

| file | value of white |
|---|---|
| 16 bits (TIFF, PNG, PGM) | 65535; only the higher byte of each value is used, as torchvision reads PNG |
| 12 bits (TIFF) | 4095 |
| 16 bits with sign (TIFF) | 32767; values below 0 are black |
| floats (TIFF) | 1, 255 or 65535, the first that is no less than all values |
| 32 bits (TIFF) | 255, 65535 or the type's largest, the first that is no less than all values |

Floats outside these ranges are refused, because their white is unknown. A TIFF whose 0 is white is inverted.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Pixels = NDArray[np.uint8]

LARGEST = 2**30  # pixels; their RGB takes 3 GiB, and Pillow another 4 while it decodes
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1  # values of the last two
KINDS = {  # first bytes of files often found among images that are no images or not supported
    b"II*\0": "a TIFF variant", b"MM\0*": "a TIFF variant", b"II+\0": "a BigTIFF variant",
    b"MM\0+": "a BigTIFF variant", b"\xff\x0a": "a JPEG XL", b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"%PDF": "a PDF", b"8BPS": "a Photoshop file", b"v/1\x01": "an OpenEXR file", b"<svg": "an SVG",
}  # fmt: skip
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

# of rows and columns, by EXIF orientation; from 5 on both are exchanged first
STEPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


class _Limit:
    """Pillow's limit of pixels, a global of the process: lifted while any thread decodes."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let Pillow open and decode images of any size inside the `with` block."""
        with self._lock:
            if not self._users:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    Image.MAX_IMAGE_PIXELS = self._before


_LIMIT = _Limit()


class UnreadableError(ValueError):
    """An unusable image file: `what` is wrong with its content, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


@contextmanager
def opened(encoded: bytes | bytearray) -> Iterator[Image.Image]:
    """Yield the image in a file's bytes, not yet decoded, of up to `LARGEST` pixels.

    Raises:
        UnreadableError: (a ValueError) if it is larger, or its format is not supported.
        OSError: if it is not an image.
    """
    with _LIMIT.lifted():
        try:
            image = Image.open(io.BytesIO(encoded))
        except Image.UnidentifiedImageError:
            if (kind := _kind(encoded)) is None:
                raise
            raise UnreadableError(f"is {kind}: this format is not supported", "convert it to PNG or JPEG") from None
        with image:
            width, height = image.size
            if width * height > LARGEST:
                what = f"has {width} x {height} pixels; the limit is {LARGEST:,}"
                raise UnreadableError(what, "shrink it, or cut it into tiles")
            yield image


def decode_with_pillow(encoded: bytes | bytearray, *, upright: bool = False) -> Pixels:
    """Return the first image in a file's bytes as uint8 (H, W, 3), RGB; `upright` applies its EXIF orientation.

    Raises:
        UnreadableError: (a ValueError) if it has no correct conversion to 8 bits, or is too large.
        OSError, SyntaxError, ValueError: if it is damaged or not an image.
    """
    with opened(encoded) as image:
        turn = orientation_of(image) if upright and image.format != "TIFF" else 1  # Pillow turns a TIFF by itself
        return turned(_rgb(image), turn)


def orientation(encoded: bytes | bytearray) -> int:
    """Return an image's orientation, 1 (upright) to 8, from its EXIF data, or from XMP without EXIF."""
    try:
        with opened(encoded) as image:
            return orientation_of(image)
    except (OSError, ValueError, SyntaxError):
        return 1


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of an opened image; 1 if its EXIF data cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data can make Pillow's parser raise anything
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels (H, W, C) rotated and mirrored for an EXIF orientation: 6 is a quarter turn clockwise."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = STEPS[orientation]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_scaled(image)[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        return np.array(_from_lab(image))
    try:
        return np.array(image.convert("RGB"))
    except ValueError:  # a few rare modes have no direct conversion
        return np.array(image.convert("RGBA").convert("RGB"))


def _scaled(image: Image.Image) -> Pixels:
    """Return greyscale of more than 8 bits as 8 bits (H, W)."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16 if image.mode != "I" or image.format != "TIFF" else 32,))[0]
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    signed = _first(tags.get(SAMPLE_FORMAT, UNSIGNED)) != UNSIGNED
    values = np.array(image)
    if image.mode == "F":
        grey = _of_floats(values)
    elif bits == 32:
        grey = _of_long(values if signed else values.view(np.uint32))
    else:
        grey = (values.astype(np.int32).clip(min=0) >> (bits - 8 - signed)).clip(max=255).astype(np.uint8)
    return 255 - grey if inverted else grey


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _of_floats(values: NDArray[np.float32]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    for white in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= white:
            return np.rint(values * (255.0 / white)).astype(np.uint8)
    what = f"holds floats from {low:g} to {high:g}, so the values of black and white are unknown"
    raise UnreadableError(what, "scale them to 0 .. 1, or save the image with 8 or 16 bits")


def _of_long(values: NDArray[Any]) -> Pixels:
    """Return 32-bit values as 8 bits; most such files use fewer than 32 bits."""
    largest = int(values.max())
    signed = values.dtype == np.int32
    bits = next((bits for bits in (8, 16) if largest < 2**bits), 32 - signed)
    return (values.clip(min=0) >> (bits - 8)).astype(np.uint8)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    changed = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert changed is not None
    return changed


def _kind(encoded: bytes | bytearray) -> str | None:
    """Return the apparent type of a file that Pillow does not recognise; None if unknown."""
    head = bytes(encoded[:64])
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        return "a HEIC image"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not an image"
    return next((kind for begin, kind in KINDS.items() if head.startswith(begin)), None)

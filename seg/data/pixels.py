"""Decode, resize and recolour images and label maps with OpenCV, as mmsegmentation does.

OpenCV comes with mmengine, so it adds no dependency. Only with OpenCV do the training images equal the originals' byte
for byte: its bilinear kernel has no antialiasing, its nearest neighbour rounds down, and its HSV has 180 hues.

Images are uint8 (H, W, 3) in OpenCV's order, blue first, until they leave this package.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimbench.engine.data.datasets import unfit

Image = NDArray[np.uint8]  # (H, W, 3), blue, green, red
Labels = NDArray[np.uint8]  # (H, W)
Size = tuple[int, int]  # height, width

EXIF_ORIENTATION = 0x0112
REPLACE = "replace or delete this file"


@cache
def opencv() -> ModuleType:
    """Return OpenCV set to one thread, because there are many loading processes."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def decode_image(encoded: bytes | bytearray, name: str) -> Image:
    """Decode the image in the file `name`, rotated according to its EXIF data.

    Raises:
        UnfitError: (a ValueError) naming the file, if OpenCV cannot read it.
    """
    cv2 = opencv()
    buffer = np.frombuffer(encoded, dtype=np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None
    if image is None:
        raise unfit(Path(name), "is not an image that can be read", REPLACE)
    return np.asarray(image, dtype=np.uint8)


def decode_labels(encoded: bytes | bytearray, name: str) -> Labels:
    """Decode the label map in the PNG file `name`: its grey values, or the indices of its palette.

    A grey value is what the file stores: 0 to 15 with 4 bits, which Pillow and OpenCV multiply by 17.

    Raises:
        UnfitError: (a ValueError) naming the file, if it is damaged, a JPEG, in colour or has 16 bits.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(encoded)) as file:
            mode, kind, values = file.mode, file.format, np.asarray(file)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        raise unfit(Path(name), "is not an image that can be read", REPLACE) from None
    if kind == "JPEG":
        raise unfit(Path(name), "is a JPEG, which changes ids", "write the ids as an 8-bit PNG")
    if mode in ("L", "P") and values.ndim == 2:
        return values.astype(np.uint8, copy=False) // np.uint8(_grey_step(encoded))
    if mode == "1":
        return values.astype(np.uint8)
    raise unfit(Path(name), *_not_labels(mode))


def _grey_step(encoded: bytes | bytearray) -> int:
    """Return by how much Pillow multiplies the grey values of a PNG with fewer than 8 bits; 1 for other images."""
    header = bytes(encoded[:26])  # signature, length and name of the first chunk, width, height, bits, kind of colour
    if not header.startswith(b"\x89PNG") or len(header) < 26 or header[25] != 0:
        return 1
    return {2: 85, 4: 17}.get(header[24], 1)


def decode_mat(encoded: bytes | bytearray, name: str) -> Labels:
    """Decode the label map in SBD's MATLAB file `name`: `GTcls.Segmentation`.

    Raises:
        UnfitError: (a ValueError) naming the file, if it is damaged or holds something else.
    """
    from scipy.io import loadmat

    try:
        found = np.asarray(loadmat(io.BytesIO(encoded))["GTcls"][0]["Segmentation"][0])
    except Exception:  # of many types, on damaged bytes
        raise unfit(Path(name), "is not a label map of SBD (GTcls.Segmentation)", REPLACE) from None
    if found.ndim != 2 or found.dtype != np.uint8:
        raise unfit(
            Path(name), f"holds labels of type {found.dtype} and shape {found.shape}, not uint8 (H, W)", REPLACE
        )
    return found


def _not_labels(mode: str) -> tuple[str, str]:
    if mode.startswith("I") or mode == "F":
        return "is a label map with 16 bits or more", "write the ids as an 8-bit PNG"
    what = f"is a colour image ({mode}), not a map of class ids"
    return (
        what,
        "write an 8-bit PNG of ids, using the data set's list of colours; Pillow's convert('P') gives wrong ids",
    )


def rescaled_size(size: Size, long: float, short: float) -> Size:
    """Return the size of an image fitted into `long` x `short`, in either orientation (mmcv's rescale_size).

    A side that would round to zero is one pixel; the original fails there.
    """
    height, width = size
    factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_image(image: Image, size: Size) -> Image:
    """Resize an image bilinearly, without antialiasing."""
    cv2 = opencv()
    resized: Any = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_labels(labels: Labels, size: Size) -> Labels:
    """Resize a label map by nearest neighbour, rounding down."""
    cv2 = opencv()
    resized: Any = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, dtype=np.uint8)


def to_hsv(image: Image) -> Image:
    """Convert to hue 0..179, saturation and value 0..255."""
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), dtype=np.uint8)


def from_hsv(image: Image) -> Image:
    """Convert back from `to_hsv`, up to rounding."""
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_HSV2BGR), dtype=np.uint8)


def look_up(values: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `table[values]`, computed by OpenCV, which is several times faster."""
    return np.asarray(opencv().LUT(values, table), dtype=np.uint8)


def look_up_channel(image: Image, channel: int, table: NDArray[np.uint8]) -> Image:
    """Replace a channel of an image by `table[channel]`, in place; return the image."""
    cv2 = opencv()
    cv2.insertChannel(look_up(cv2.extractChannel(image, channel), table), image, channel)
    return image


def mirrored(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image or a label map mirrored from left to right."""
    return np.asarray(opencv().flip(values, 1), dtype=np.uint8)


def red_first(image: Image) -> Image:
    """Return an image with its channels in the opposite order: red, green, blue."""
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def histogram(labels: Labels) -> NDArray[np.int64]:
    """Return the number of pixels of each id, (256,), counted by OpenCV, which is several times faster."""
    counted: Any = opencv().calcHist([labels], [0], None, [256], [0, 256])  # single precision: exact to 16 million
    return np.asarray(counted, dtype=np.int64).ravel()


def exif_turns(encoded: bytes | bytearray) -> bool:
    """Whether the EXIF data rotate the image by a quarter turn."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(encoded)) as file:
            return file.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return False

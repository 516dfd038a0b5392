"""Images and label maps as arrays, decoded, resized and recoloured with OpenCV's arithmetic, as mmsegmentation does it.

OpenCV comes with mmengine, so it costs no dependency; it is used because its bilinear kernel has no antialiasing, its
nearest neighbour rounds down, and its HSV has 180 hues: training bytes equal the originals' with nothing less.

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
    """OpenCV, on one thread: loading processes are many."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def decode_image(encoded: bytes | bytearray, name: str) -> Image:
    """The image that the file `name` holds, turned as its EXIF data say.

    Raises:
        UnfitError: (a ValueError) naming the file, if it is not an image that OpenCV reads.
    """
    cv2 = opencv()
    buffer = np.frombuffer(encoded, dtype=np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None
    if image is None:
        raise unfit(Path(name), "is not an image that can be read", REPLACE)
    return np.asarray(image, dtype=np.uint8)


def decode_labels(encoded: bytes | bytearray, name: str) -> Labels:
    """The label map in the PNG file `name`: its grey values, or the indices of its palette.

    Raises:
        UnfitError: (a ValueError) naming the file, if it is damaged, in colour or of 16 bits.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(encoded)) as file:
            mode, values = file.mode, np.asarray(file)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        raise unfit(Path(name), "is not an image that can be read", REPLACE) from None
    if mode in ("L", "P") and values.ndim == 2:
        return values.astype(np.uint8, copy=False)
    if mode == "1":
        return values.astype(np.uint8)
    raise unfit(Path(name), *_not_labels(mode))


def _not_labels(mode: str) -> tuple[str, str]:
    if mode.startswith("I") or mode == "F":
        return "is a label map of 16 bits or more", "write ids as an 8-bit PNG; cutting values off would change them"
    what = f"is a picture in colour ({mode}), not a map of class ids"
    return (
        what,
        "write one 8-bit PNG with an id per pixel, from the data set's list of colours; convert('P') makes it up",
    )


def rescaled_size(size: Size, long: float, short: float) -> Size:
    """The size of an image fitted into `long` x `short`, whichever way round it lies (mmcv's rescale_size)."""
    height, width = size
    factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image: Image, size: Size) -> Image:
    """Bilinear without antialiasing."""
    cv2 = opencv()
    resized: Any = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_labels(labels: Labels, size: Size) -> Labels:
    """The nearest neighbour, rounded down."""
    cv2 = opencv()
    resized: Any = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, dtype=np.uint8)


def to_hsv(image: Image) -> Image:
    """Hue 0..179, saturation and value 0..255."""
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), dtype=np.uint8)


def from_hsv(image: Image) -> Image:
    """The inverse of `to_hsv`, as far as it goes."""
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_HSV2BGR), dtype=np.uint8)


def look_up(values: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`table[values]`, by OpenCV, which is several times as fast."""
    return np.asarray(opencv().LUT(values, table), dtype=np.uint8)


def exif_turns(encoded: bytes | bytearray) -> bool:
    """Whether EXIF data say that the image lies on its side."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(encoded)) as file:
            return file.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return False

"""Write a matplotlib figure as a PNG that matplotlib accepts, whatever the number and the shape of its images.

    heights = row_heights(sizes)          # in widths of an image
    write_figure(path, figure, 110)

A picture is drawn after hours of training, so a very tall image or a long list of images must not end the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mimbench.engine.run.atomic import write_with

TALLEST = 4.0  # height of a row in widths; an image taller than that is drawn narrower
LONGEST = 65_000  # pixels; matplotlib refuses a picture with a side of 65,536


def row_heights(sizes: Iterable[tuple[int, int]]) -> list[float]:
    """Return the height of each row, as a multiple of the width of its image, for images of `sizes` (H, W)."""
    return [min(height / width, TALLEST) for height, width in sizes]


def printable(text: str) -> str:
    """Return `text` with "?" for what matplotlib cannot draw: the bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write_figure(path: Path, figure: Any, dpi: float, **options: Any) -> None:
    """Replace `path` with `figure` as PNG, at `dpi` or at less if a side would be too long for matplotlib.

    Raises:
        OSError: if the file cannot be written.
    """
    dpi = min(dpi, LONGEST / max(figure.get_size_inches()))
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi, **options))

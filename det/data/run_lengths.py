"""Check masks of run lengths, one by one or many at once, and bring them into COCO's compressed form.

    run_lengths({"size": [480, 640], "counts": "PYf0..."}, 480, 640)      # None, or what is wrong, and the remedy
    fill([b"PYf0...", ...], [480 * 640, ...])                             # whether all of these fill their images

A data set of run lengths alone has a text for each of its objects. numpy takes as long for one of them as for a
thousand, so `fill` checks them together: four times as fast for small masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

# T text, N number in a text, C character of a text

Entry = dict[str, Any]
Ints = NDArray[np.int64]

TOGETHER = 2**17  # characters checked at once: their numbers fit in a core's cache


def run_lengths(mask: Entry, height: int, width: int) -> tuple[str, str] | None:
    """Return what is wrong with a mask of run lengths, and the remedy; None if nothing is."""
    counts, size = mask.get("counts"), mask.get("size")
    if size != [height, width]:
        return f"has a mask of size {size} in an image of {[height, width]}", "size must be [height, width]"
    if isinstance(counts, list):
        whole = bool(counts) and set(map(type, counts)) <= {int, bool} and min(counts) >= 0
        if not whole or sum(counts) != height * width:
            return "has run lengths that do not fill the image", f"they must add up to {height * width}"
    elif not isinstance(counts, str) or not counts:
        return "has a mask without counts", "counts must be a list of run lengths or pycocotools' compressed text"
    elif not counts.isascii() or not fill([counts.encode()], [height * width]):
        return "has compressed run lengths that do not fill the image", f"they must add up to {height * width}"
    return None


def compressed(region: Entry) -> bytes:
    """Return the counts of an RLE region in COCO's compressed form, from any of the three forms."""
    counts = region["counts"]
    if isinstance(counts, list):
        encoded: bytes = coco_masks.frPyObjects(region, *region["size"])["counts"]
        return encoded
    return counts.encode() if isinstance(counts, str) else counts


def fill(texts: Sequence[bytes], areas: Sequence[int]) -> bool:
    """Return whether all compressed `texts` are valid and each fills an image of so many pixels."""
    lengths_T = np.fromiter(map(len, texts), np.int64, len(texts))
    areas_T = np.array(areas, dtype=np.int64)
    return bool(lengths_T.all()) and all(
        _fill(b"".join(texts[part]), lengths_T[part], areas_T[part]) for part in blocks(lengths_T, TOGETHER, TOGETHER)
    )


def blocks(lengths: Ints, pieces: int, total: int) -> Iterator[slice]:
    """Yield consecutive parts of the pieces with these `lengths`.

    Args:
        lengths: of each piece.
        pieces: in a part, at most.
        total: sum of the lengths in a part, at most; a single piece may be longer.
    """
    bounds, begin, before = np.cumsum(lengths), 0, 0
    while begin < len(lengths):
        fitting = int(np.searchsorted(bounds, before + total, side="right"))
        end = max(begin + 1, min(begin + pieces, fitting))
        yield slice(begin, end)
        begin, before = end, int(bounds[end - 1])


def _fill(joined: bytes, lengths_T: Ints, areas_T: Ints) -> bool:
    """Return whether texts, one after the other in `joined`, are valid and fill their images.

    A number has one character per 5 bits, the lowest first: 48 plus the bits, plus 32 if more characters follow; bit 16
    of the last character is the sign. From the fourth number on, each is the difference to the number two before.
    """
    codes_C = np.frombuffer(joined, dtype=np.uint8).astype(np.int64) - 48
    last_C, stops_T = codes_C & 32 == 0, np.cumsum(lengths_T)  # of a number, of a text
    if codes_C.min() < 0 or codes_C.max() > 63 or not last_C[stops_T - 1].all():
        return False
    ends_N = np.flatnonzero(last_C) + 1
    begins_N = np.concatenate([[0], ends_N[:-1]])
    digits_N = ends_N - begins_N
    if digits_N.max() > 7:  # beyond 32 bits
        return False
    places_C = np.arange(len(codes_C)) - np.repeat(begins_N, digits_N)
    numbers_N = np.add.reduceat((codes_C & 31) << (5 * places_C), begins_N)
    numbers_N -= np.where(codes_C[ends_N - 1] & 16, 1 << (5 * digits_N), 0)
    behind_T = np.searchsorted(ends_N, stops_T, side="right")  # the numbers of each text and those before it
    counts_T = np.diff(behind_T, prepend=0)
    first_T = behind_T - counts_T
    places_N = np.arange(len(numbers_N)) - np.repeat(first_T, counts_T)
    for chosen_N, of_text_T in ((places_N % 2 == 1, counts_T // 2), (_even(places_N), (counts_T - 1) // 2)):
        sums = np.concatenate([[0], numbers_N[chosen_N].cumsum()])
        before_T = np.cumsum(of_text_T) - of_text_T
        numbers_N[chosen_N] = sums[1:] - np.repeat(sums[before_T], of_text_T)
    return bool((numbers_N >= 0).all() and (np.add.reduceat(numbers_N, first_T) == areas_T).all())


def _even(places_N: Ints) -> NDArray[np.bool_]:
    """Return the third, fifth ... number of each text."""
    even: NDArray[np.bool_] = (places_N % 2 == 0) & (places_N > 0)
    return even

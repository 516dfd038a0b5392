"""Read a COCO annotation file of the usual form into arrays, without an object for each of its numbers.

    columns = read_columns(file, masks=True)     # None: the file has an error or an unusual form

The file is decoded once by msgspec, which leaves bbox and segmentation of each annotation as text; these are decoded in
groups and moved to flat arrays. This takes about half the time and half the memory of reading entry by entry
(benchmarks/annotations.py).

The errors of `det.data.annotations` are searched for in all entries at once. If there is one, or an unusual form
(numbers beyond 63 bits, `true` as a number, another encoding than UTF-8), the result is None. The caller then reads the
file entry by entry with json, which names the faulty entry (`coco.read_split`). Arrays, order and warnings are the same
either way (tests/det/test_columns.py).
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.det.data.annotations import OVERHANG, in_usual_form, odd_box, run_lengths
from mimbench.det.data.contradictions import Boxes, polygon_spans
from mimbench.det.data.findings import Fault
from mimbench.det.data.lvis import as_coco

# I image, A annotation, P polygon

Entry = dict[str, Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GROUP = 256  # annotations decoded at once: their numbers fit in a core's cache; 4096 take a fifth longer
LARGE = 1e300  # beyond it, sums and differences of coordinates may not be finite


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: msgspec.Raw
    segmentation: msgspec.Raw = msgspec.Raw()  # empty: missing
    area: int | float = math.nan  # missing
    iscrowd: int | float = 0
    ignore: Any = 0


class _File(msgspec.Struct):
    images: list[Entry]
    annotations: list[_Annotation]
    categories: list[Entry]


_FILES = msgspec.json.Decoder(_File)
_BOXES = msgspec.json.Decoder(list[tuple[float, float, float, float]])
_SEGMENTATIONS = msgspec.json.Decoder(list[list[list[float]] | Entry])


class _UnusualError(msgspec.MsgspecError):
    """The file has an error or an unusual form."""


@dataclass(frozen=True)
class Shapes:
    """The masks of A annotations, in the fields of `coco.CocoSplit`; `spans` (A, 4): x0 y0 x1 y1 of each, or NaN."""

    parts: Ints
    corners: Ints
    numbers: Floats
    runs: Ints
    encoded: bytes
    spans: Floats


@dataclass(frozen=True)
class Columns:
    """A checked annotation file. Annotations are in the order of their images' ids, then in that of the file."""

    images: list[Entry]  # in the order of the file
    categories: list[Entry]
    ids: Ints  # (A,)
    image: Ints  # (A,) rank of the image's id
    category: Ints  # (A,) rank of the category's id
    xywh: Floats  # (A, 4)
    areas: Floats  # (A,) NaN if missing
    crowd: NDArray[np.bool_]  # (A,)
    ignored: NDArray[np.bool_]  # (A,)
    shapes: Shapes
    in_file: Ints  # (A,) where the first, second, ... annotation of the file is
    odd: tuple[tuple[str, str], ...]  # kind and description of boxes that are warned of, in the order of the file

    def warnings(self, file: str) -> Iterator[Fault]:
        """Yield the warnings about single annotations."""
        for kind, what in self.odd:
            yield Fault(kind, file, what, severity="warning")

    def boxes(self) -> Boxes:
        """Return the annotations in the order of the file, as the search for contradictions takes them."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in self.images}
        sizes_I2 = np.array([sizes[identity] for identity in sorted(sizes)], dtype=np.float64)
        at = self.in_file
        return Boxes(
            ids=self.ids[at],
            kinds=(self.image * len(self.categories) + self.category)[at],
            sizes=sizes_I2[self.image[at]],
            xywh=self.xywh[at],
            spans=self.shapes.spans[at],
            areas=self.areas[at],
            crowd=self.crowd[at],
            ignored=self.ignored[at],
        )


def read_columns(file: Path, masks: bool, *, lvis: bool = False) -> Columns | None:
    """Return the content of an annotation file; None if it does not exist, has an error or an unusual form.

    Args:
        masks: read masks; if false, segmentations are ignored.
        lvis: take the images' names from their COCO URLs.
    """
    if not file.is_file():
        return None
    try:
        content = _FILES.decode(file.read_bytes())
        if lvis:
            content.images = as_coco({"images": content.images})["images"]
        return _columns(content, masks)
    except (msgspec.MsgspecError, OverflowError, RecursionError):  # RecursionError: brackets thousands deep
        return None


def _columns(content: _File, masks: bool) -> Columns:
    _require(in_usual_form("images", content.images) and in_usual_form("categories", content.categories))
    image_ids, category_ids = (_ids(listed) for listed in (content.images, content.categories))
    ids = _numbers(content.annotations, "id", np.int64)
    for numbers in (image_ids, category_ids, ids):
        ascending = np.sort(numbers)  # `np.unique` takes 60 times as long
        _require(not (ascending[1:] == ascending[:-1]).any())
    image = _ranks(_numbers(content.annotations, "image_id", np.int64), image_ids)
    category = _ranks(_numbers(content.annotations, "category_id", np.int64), category_ids)
    crowd = _numbers(content.annotations, "iscrowd", np.float64)
    _require(bool(((crowd == 0) | (crowd == 1)).all()))
    areas = _numbers(content.annotations, "area", np.float64)
    _require(not (areas < 0).any())
    ignored = np.fromiter(map(bool, map(attrgetter("ignore"), content.annotations)), np.bool_, len(ids))
    order = np.argsort(image, kind="stable")
    in_file = np.empty_like(order)
    in_file[order] = np.arange(len(order))
    entries = [content.annotations[place] for place in order.tolist()]
    content.annotations = []  # in another order from here on
    sizes_A2 = _sizes(content.images, image_ids)[image[order]]
    xywh = _boxes(entries, sizes_A2)
    odd = _odd(entries, xywh, sizes_A2, order)
    shapes = _shapes(entries, sizes_A2) if masks else no_shapes(len(entries))
    return Columns(
        images=content.images, categories=content.categories, ids=ids[order], image=image[order],
        category=category[order], xywh=xywh, areas=areas[order], crowd=crowd[order] == 1, ignored=ignored[order],
        shapes=shapes, in_file=in_file, odd=odd,
    )  # fmt: skip


def _require(usual_form: bool) -> None:
    if not usual_form:
        raise _UnusualError


def _ids(listed: Sequence[Entry]) -> Ints:
    return np.fromiter((entry["id"] for entry in listed), np.int64, len(listed))


def _numbers(entries: Sequence[_Annotation], field: str, kind: Any) -> NDArray[Any]:
    return np.fromiter(map(attrgetter(field), entries), kind, len(entries))


def _ranks(values_A: Ints, ids: Ints) -> Ints:
    """Return the rank among `ids` of each value; all must be there."""
    ascending = np.sort(ids)
    places_A = np.searchsorted(ascending, values_A).clip(max=len(ascending) - 1)
    _require(bool((ascending[places_A] == values_A).all()))
    return places_A


def _sizes(images: Sequence[Entry], image_ids: Ints) -> Ints:
    """Return height and width of the images in the order of their ids: (I, 2)."""
    return np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)[np.argsort(image_ids)]


def _groups(texts: Sequence[msgspec.Raw], decoder: msgspec.json.Decoder[Any]) -> Iterator[list[Any]]:
    """Yield the decoded texts, a group at a time."""
    for begin in range(0, len(texts), GROUP):
        yield decoder.decode(b"[" + b",".join(texts[begin : begin + GROUP]) + b"]")


def _append(flat: array[float], pieces: Iterable[Iterable[float]], count: int) -> None:
    """Append the `count` numbers of all pieces; numpy takes half the time of `array.extend`."""
    flat.frombytes(np.fromiter(chain.from_iterable(pieces), np.float64, count).tobytes())


def _boxes(entries: Sequence[_Annotation], sizes_A2: Ints) -> Floats:
    """Return the boxes x y w h, (A, 4); none may lie outside its image."""
    flat = array("d")
    for group in _groups([one.bbox for one in entries], _BOXES):
        _append(flat, group, 4 * len(group))
    xywh = np.frombuffer(flat, dtype=np.float64).reshape(-1, 4) if flat else np.zeros((0, 4))
    _require(bool((np.abs(xywh) < LARGE).all()))
    low, side, image = xywh[:, :2], xywh[:, 2:], sizes_A2[:, ::-1]
    _require(not ((side < 0) | (low >= image) | (low + side < 0)).any())
    return xywh


def _odd(entries: Sequence[_Annotation], xywh: Floats, sizes_A2: Ints, order: Ints) -> tuple[tuple[str, str], ...]:
    """Return kind and description of each box without area or partly outside its image, in the order of the file."""
    low, side = xywh[:, :2], xywh[:, 2:]
    odd_A = ((side == 0) | (low < -OVERHANG) | (low + side > sizes_A2[:, ::-1] + OVERHANG)).any(1)
    places = np.flatnonzero(odd_A)
    found = []
    for place in places[np.argsort(order[places])].tolist():
        annotation = entries[place]
        sizes = {annotation.image_id: tuple(sizes_A2[place].tolist())}
        odd = odd_box({"bbox": json.loads(bytes(annotation.bbox)), "image_id": annotation.image_id}, sizes)
        assert odd is not None
        found.append((odd[0], f"annotation {annotation.id} {odd[1]}"))
    return tuple(found)


def no_shapes(annotations: int) -> Shapes:
    """Return the shapes of annotations whose masks are not read."""
    nothing = np.zeros(annotations + 1, dtype=np.int64)
    return Shapes(nothing, ends([]), np.zeros(0), nothing.copy(), b"", np.full((annotations, 4), np.nan))


def _shapes(entries: Sequence[_Annotation], sizes_A2: Ints) -> Shapes:
    """Return the checked masks as flat arrays."""
    _require(all(map(len, map(attrgetter("segmentation"), entries))))
    flat, encoded = array("d"), bytearray()
    corners, begin = array("q"), 0
    parts_A, runs_A = np.zeros(len(entries), dtype=np.int64), np.zeros(len(entries), dtype=np.int64)
    spans_A4 = np.full((len(entries), 4), np.nan)
    for group in _groups(list(map(attrgetter("segmentation"), entries)), _SEGMENTATIONS):
        regions = [(place, region) for place, region in enumerate(group) if isinstance(region, dict)]
        for place, region in regions:
            at = begin + place
            _require(run_lengths(region, *sizes_A2[at].tolist()) is None)
            counts = compressed(region)
            x, y, width, height = coco_masks.toBbox({"size": region["size"], "counts": counts})
            spans_A4[at], runs_A[at] = (x, y, x + width, y + height), len(counts)
            encoded += counts
            group[place] = []  # no polygons
        polygons = list(chain.from_iterable(group))
        lengths = list(map(len, polygons))
        parts_A[begin : begin + len(group)] = list(map(len, group))
        corners.fromlist(lengths)
        _append(flat, polygons, sum(lengths))
        begin += len(group)
    lengths_P, numbers = np.array(corners, dtype=np.int64), np.frombuffer(flat) if flat else np.zeros(0)
    drawn_A = parts_A > 0
    _require(bool((drawn_A | (runs_A > 0)).all()))
    _require(bool((lengths_P >= 6).all() and (lengths_P % 2 == 0).all()))
    _require(not len(numbers) or max(-numbers.min(), numbers.max()) < LARGE)
    spans_A4[drawn_A] = polygon_spans(numbers, lengths_P, parts_A[drawn_A])
    return Shapes(ends(parts_A), ends(lengths_P), numbers, ends(runs_A), bytes(encoded), spans_A4)


def compressed(region: Entry) -> bytes:
    """Return the counts of an RLE region in COCO's compressed form, from any of the three forms."""
    counts = region["counts"]
    if isinstance(counts, list):
        encoded: bytes = coco_masks.frPyObjects(region, *region["size"])["counts"]
        return encoded
    return counts.encode() if isinstance(counts, str) else counts


def ends(lengths: Sequence[int] | Ints) -> Ints:
    """Return the offsets of consecutive pieces of these lengths, and the end of the last piece."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

"""Read a COCO annotation file of the usual form into arrays, without keeping an object for each of its numbers.

    columns = read_columns(file, masks=True)     # None: the file has an error or an unusual form

msgspec finds the annotations in the file and leaves each as text. These are decoded in groups, and the numbers of a
group are moved to flat arrays while they are in the core's cache (benchmarks/annotations.py).

The errors of `det.data.annotations` are searched for in all entries at once. If there is one, or an unusual form
(numbers beyond 63 bits, `true` as a number, another encoding than UTF-8), the result is None. The caller then reads the
file entry by entry with json, which names the faulty entry (`coco.read_split`). Arrays, order and warnings are the same
either way (tests/det/test_columns.py).
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.det.data.annotations import OVERHANG, in_usual_form, odd_box
from mimbench.det.data.contradictions import Boxes, polygon_spans
from mimbench.det.data.findings import Fault
from mimbench.det.data.lvis import as_coco
from mimbench.det.data.run_lengths import TOGETHER, blocks, compressed, fill, run_lengths

# I image, A annotation, P polygon

Entry = dict[str, Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_Kind = TypeVar("_Kind", bound=np.generic)

GROUP = 512  # annotations decoded at once: their numbers fit in a core's cache
BLOCK = 4096  # annotations rearranged at once
KINDS = {
    "id": np.int64, "image_id": np.int64, "category_id": np.int64, "area": np.float64, "iscrowd": np.float64,
    "ignore": np.bool_,
}  # fmt: skip
LARGE = 1e300  # beyond it, sums and differences of coordinates may not be finite


class _Annotation(msgspec.Struct, gc=False, kw_only=True):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: int | float = math.nan  # missing
    iscrowd: int | float = 0
    ignore: Any = 0


class _Drawn(_Annotation, gc=False, kw_only=True):
    segmentation: list[list[float]] | Entry


class _File(msgspec.Struct):
    images: list[Entry]
    annotations: list[msgspec.Raw]
    categories: list[Entry]


_FILES = msgspec.json.Decoder(_File)
_ANNOTATIONS = msgspec.json.Decoder(list[_Annotation])
_DRAWN = msgspec.json.Decoder(list[_Drawn])


class _UnusualError(msgspec.MsgspecError):
    """The file has an error or an unusual form."""


@dataclass(frozen=True)
class Shapes:
    """The masks of A annotations, in the fields of `coco.CocoSplit`; `spans` (A, 4): x0 y0 x1 y1 of each, or NaN."""

    parts: Ints
    corners: Ints
    numbers: Floats
    runs: Ints
    encoded: NDArray[np.uint8]
    spans: Floats

    def taken(self, order: Ints) -> Shapes:
        """Return the masks of the annotations `order`."""
        numbers_of_A = self.corners[self.parts]  # where the numbers of each annotation begin
        return Shapes(
            parts=ends(np.diff(self.parts)[order]),
            corners=ends(_pieces(np.diff(self.corners), self.parts, order)),
            numbers=_pieces(self.numbers, numbers_of_A, order),
            runs=ends(np.diff(self.runs)[order]),
            encoded=_pieces(self.encoded, self.runs, order),
            spans=self.spans[order],
        )


@dataclass(frozen=True)
class Columns:
    """A checked annotation file; all in the order of the file."""

    images: list[Entry]
    categories: list[Entry]
    ids: Ints  # (A,)
    image: Ints  # (A,) rank of the image's id
    category: Ints  # (A,) rank of the category's id
    xywh: Floats  # (A, 4)
    areas: Floats  # (A,) NaN if missing
    crowd: NDArray[np.bool_]  # (A,)
    ignored: NDArray[np.bool_]  # (A,)
    shapes: Shapes
    odd: tuple[tuple[str, str], ...]  # kind and description of boxes that are warned of

    def warnings(self, file: str) -> Iterator[Fault]:
        """Yield the warnings about single annotations."""
        for kind, what in self.odd:
            yield Fault(kind, file, what, severity="warning")

    def boxes(self) -> Boxes:
        """Return the annotations as the search for contradictions takes them."""
        sizes_I2 = _sizes(self.images)[:, ::-1].astype(np.float64)
        return Boxes(
            ids=self.ids,
            kinds=self.image * len(self.categories) + self.category,
            sizes=sizes_I2[self.image],
            xywh=self.xywh,
            spans=self.shapes.spans,
            areas=self.areas,
            crowd=self.crowd,
            ignored=self.ignored,
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
    arrays, shapes = _read(content, masks)
    for numbers in (image_ids, category_ids, arrays["id"]):
        ascending = np.sort(numbers)  # `np.unique` takes 60 times as long
        _require(not (ascending[1:] == ascending[:-1]).any())
    image, category = _ranks(arrays["image_id"], image_ids), _ranks(arrays["category_id"], category_ids)
    crowd, areas = arrays["iscrowd"], arrays["area"]
    _require(bool(((crowd == 0) | (crowd == 1)).all()))
    _require(not (areas < 0).any())
    sizes_A2 = _sizes(content.images)[image]
    _check_boxes(arrays["bbox"], sizes_A2)
    return Columns(
        images=content.images, categories=content.categories, ids=arrays["id"], image=image, category=category,
        xywh=arrays["bbox"], areas=areas, crowd=crowd == 1, ignored=arrays["ignore"], shapes=shapes,
        odd=_odd(content.annotations, arrays["bbox"], sizes_A2),
    )  # fmt: skip


def _read(content: _File, masks: bool) -> tuple[dict[str, NDArray[Any]], Shapes]:
    """Decode all annotations; return the fields `KINDS` and bbox, (A,) and (A, 4), and the masks."""
    decoder: msgspec.json.Decoder[Any] = _DRAWN if masks else _ANNOTATIONS
    names = (*KINDS, "bbox", *(["segmentation"] if masks else []))
    pieces: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in KINDS.items()}
    pieces["bbox"] = [np.zeros((0, 4))]
    drawn = _Masks({image["id"]: (image["height"], image["width"]) for image in content.images})
    for begin in range(0, len(content.annotations), GROUP):
        group = decoder.decode(b"[" + b",".join(content.annotations[begin : begin + GROUP]) + b"]")
        columns = dict(zip(names, zip(*map(attrgetter(*names), group), strict=True), strict=True))
        for name, kind in KINDS.items():
            pieces[name].append(np.fromiter(columns[name], kind, len(group)))
        pieces["bbox"].append(_flat(columns["bbox"], 4 * len(group)).reshape(-1, 4))
        if masks:
            drawn.add(columns["segmentation"], columns["image_id"])
    arrays = {name: np.concatenate(found) for name, found in pieces.items()}
    return arrays, drawn.shapes() if masks else no_shapes(len(arrays["id"]))


def _require(usual_form: bool) -> None:
    if not usual_form:
        raise _UnusualError


def _ids(listed: Sequence[Entry]) -> Ints:
    return np.fromiter((entry["id"] for entry in listed), np.int64, len(listed))


def _ranks(values_A: Ints, ids: Ints) -> Ints:
    """Return the rank among `ids` of each value; all must be there."""
    ascending = np.sort(ids)
    places_A = np.searchsorted(ascending, values_A).clip(max=len(ascending) - 1)
    _require(bool((ascending[places_A] == values_A).all()))
    return places_A


def _sizes(images: Sequence[Entry]) -> Ints:
    """Return height and width of the images in the order of their ids: (I, 2)."""
    return np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)[np.argsort(_ids(images))]


def _check_boxes(xywh: Floats, sizes_A2: Ints) -> None:
    """Require boxes x y w h, (A, 4), of which none lies outside its image."""
    _require(bool((np.abs(xywh) < LARGE).all()))
    low, side, image = xywh[:, :2], xywh[:, 2:], sizes_A2[:, ::-1]
    _require(not ((side < 0) | (low >= image) | (low + side < 0)).any())


def _odd(texts: Sequence[msgspec.Raw], xywh: Floats, sizes_A2: Ints) -> tuple[tuple[str, str], ...]:
    """Return kind and description of each box without area or partly outside its image."""
    low, side = xywh[:, :2], xywh[:, 2:]
    odd_A = ((side == 0) | (low < -OVERHANG) | (low + side > sizes_A2[:, ::-1] + OVERHANG)).any(1)
    found = []
    for place in np.flatnonzero(odd_A).tolist():
        annotation = json.loads(bytes(texts[place]))
        odd = odd_box(annotation, {annotation["image_id"]: tuple(sizes_A2[place].tolist())})
        assert odd is not None
        found.append((odd[0], f"annotation {annotation['id']} {odd[1]}"))
    return tuple(found)


class _Masks:
    """The masks of annotations that are added group by group."""

    def __init__(self, sizes: Mapping[int, tuple[int, int]]) -> None:
        """`sizes`: height and width of each image."""
        self._sizes, self._encoded = sizes, bytearray()
        nothing = np.zeros(0, dtype=np.int64)
        self._parts, self._runs, self._corners = [nothing], [nothing], [nothing]
        self._numbers, self._spans = array("d"), [np.zeros((0, 4))]  # numbers are most of the memory: never twice

    def add(self, segmentations: Sequence[Any], images: Sequence[int]) -> None:
        """Add the masks of a group; `images`: the id of the image of each."""
        shapes = list(segmentations)
        runs, spans_A4 = np.zeros(len(shapes), dtype=np.int64), np.full((len(shapes), 4), np.nan)
        if encoded := [place for place, region in enumerate(shapes) if type(region) is dict]:
            sizes = [self._sizes.get(images[place]) for place in encoded]
            _require(None not in sizes)
            runs[encoded], spans_A4[encoded] = self._add_encoded([shapes[place] for place in encoded], sizes)
            for place in encoded:
                shapes[place] = []  # no polygons
        polygons = list(chain.from_iterable(shapes))
        parts, corners = _lengths(shapes), _lengths(polygons)
        _require(bool(((parts > 0) | (runs > 0)).all() and (corners >= 6).all() and (corners % 2 == 0).all()))
        numbers = _flat(polygons, int(corners.sum()))
        spans_A4[parts > 0] = polygon_spans(numbers, corners, parts[parts > 0])
        _require(not (np.abs(spans_A4) >= LARGE).any())
        self._parts.append(parts)
        self._corners.append(corners)
        self._numbers.frombytes(numbers.view(np.uint8).data)
        self._runs.append(runs)
        self._spans.append(spans_A4)

    def _add_encoded(self, regions: Sequence[Entry], sizes: Sequence[Any]) -> tuple[Ints, Floats]:
        """Add masks of run lengths in images of `sizes`; return the bytes of each, and x0 y0 x1 y1 of each."""
        texts = [type(region.get("counts")) is str for region in regions]
        for region, size, text in zip(regions, sizes, texts, strict=True):
            _require(region.get("size") == [*size] if text else run_lengths(region, *size) is None)
        try:
            counts = [compressed(region) for region in regions]
        except UnicodeEncodeError:  # half of a pair of surrogates
            raise _UnusualError from None
        areas = [height * width for height, width in sizes]
        _require(fill(list(compress(counts, texts)), list(compress(areas, texts))))
        runs, boxes_A4 = _lengths(counts), np.zeros((len(regions), 4))
        found = [{"size": size, "counts": text} for size, text in zip(sizes, counts, strict=True)]
        for part in blocks(runs, TOGETHER, TOGETHER):
            boxes_A4[part] = coco_masks.toBbox(found[part])
        boxes_A4[:, 2:] += boxes_A4[:, :2]
        self._encoded += b"".join(counts)
        return runs, boxes_A4

    def shapes(self) -> Shapes:
        """Return all masks."""
        return Shapes(
            parts=ends(np.concatenate(self._parts)),
            corners=ends(np.concatenate(self._corners)),
            numbers=np.frombuffer(self._numbers) if self._numbers else np.zeros(0),
            runs=ends(np.concatenate(self._runs)),
            encoded=np.frombuffer(self._encoded, dtype=np.uint8),
            spans=np.concatenate(self._spans),
        )


def _lengths(pieces: Sequence[Sequence[Any]]) -> Ints:
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def _flat(pieces: Iterable[Iterable[float]], count: int) -> Floats:
    """Return the `count` numbers of all pieces; `np.fromiter` takes half as long again."""
    return np.frombuffer(struct.pack(f"{count}d", *chain.from_iterable(pieces)))


def no_shapes(annotations: int) -> Shapes:
    """Return the shapes of annotations whose masks are not read."""
    nothing = np.zeros(annotations + 1, dtype=np.int64)
    unknown = np.full((annotations, 4), np.nan)
    return Shapes(nothing, ends([]), np.zeros(0), nothing.copy(), np.zeros(0, dtype=np.uint8), unknown)


def _pieces(values: NDArray[_Kind], bounds: Ints, order: Ints) -> NDArray[_Kind]:
    """Return the pieces values[bounds[a] : bounds[a + 1]] of each a in `order`, one after the other."""
    offsets = ends(np.diff(bounds)[order])
    found = np.empty(offsets[-1], dtype=values.dtype)
    for part in blocks(np.diff(offsets), BLOCK, TOGETHER):  # a mask alone may have as many numbers as a usual block
        block = offsets[part.start : part.stop + 1]
        shifts = bounds[order[part]] - block[:-1]
        found[block[0] : block[-1]] = values[np.arange(block[0], block[-1]) + np.repeat(shifts, np.diff(block))]
    return found


def ends(lengths: Sequence[int] | Ints) -> Ints:
    """Return the offsets of consecutive pieces of these lengths, and the end of the last piece."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

"""Find contradictions within a COCO annotation file, and values with the wrong unit or form, with counts.

Each is handled in one way and reported:

| found | what happens |
|---|---|
| boxes or polygons in fractions of the image | an error if they are the majority, else a warning |
| boxes as [x0, y0, x1, y1] | an error |
| a mask entirely outside its image | an error: it cannot be trained on or detected |
| a mask partly outside | clipped at the border |
| a box that contradicts its mask | training uses the box of the mask, box AP the box of the file |
| an area larger than its box, or of 0 | used unchanged, as in pycocotools: it decides what is small or large |
| `ignore: 1` | has no effect, as in pycocotools and detectron2 |
| the same object twice | both count, as in pycocotools: a detector that finds it once misses the other |
| annotation id 0 | harmless: annotations are renumbered for the evaluators (`det.evaluation.numbering`) |
| two categories with one name, an image listed twice | both are kept |
"""

# A annotation, P polygon

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.engine.data.datasets import Finding, Severity

Entry = dict[str, Any]
Floats = NDArray[np.float64]
Chosen = Any  # NDArray[np.bool_]; numpy's types declare .all(1) also as a scalar

OVERHANG = 1.0  # pixels by which COCO's rounded boxes may exceed the image
AGREE = 0.5  # IoU below which a box contradicts its mask
MOST = 0.5  # share of the annotations from which a fault is the file's convention, not a single mistake
STICKING_OUT = 0.25  # share of boxes outside their images that suggests [x0, y0, x1, y1], if that fits
FEW = 3  # with fewer boxes, the convention cannot be inferred


@dataclass(frozen=True)
class Boxes:
    """The annotations of a file as arrays. `spans`: x0 y0 x1 y1 of the masks, NaN without a mask."""

    ids: Sequence[int] | NDArray[np.int64]
    kinds: NDArray[np.int64]  # (A,) equal for the same category on the same image
    sizes: Floats  # (A, 2) width, height of the image
    xywh: Floats  # (A, 4)
    spans: Floats  # (A, 4)
    areas: Floats  # (A,) NaN if missing
    crowd: Chosen  # (A,)
    ignored: Chosen  # (A,) `ignore` is set


def contradictions(content: Entry, file: str, masks: bool = True) -> Iterator[Finding]:
    """Yield findings on the structurally valid `content` of the annotation file `file`; `masks`: check masks too."""
    yield from repeated_names(content["images"], content["categories"], file)
    if content["annotations"]:
        yield from contradicting_boxes(_arrays(content, masks), file)


def contradicting_boxes(boxes: Boxes, file: str) -> Iterator[Finding]:
    """Yield findings on the annotations of the file `file`; there must be one at least."""
    columns = {name: np.asfortranarray(getattr(boxes, name)) for name in ("sizes", "xywh", "spans")}
    boxes = replace(boxes, **columns)  # a third of the time: sums over coordinates are then sums of long rows
    found = [one for one in _units(boxes) if one[0].any()]
    if not any(severity == "error" for *_, severity in found):  # an error would cause all further findings
        found += [*_masks(boxes), *_areas(boxes), *_kinds(boxes)]
    for chosen_A, what, remedy, severity in found:
        if count := int(chosen_A.sum()):
            text = what.format(count=f"{count:,} of {len(chosen_A):,}", first=_first(boxes, chosen_A))
            yield Finding(severity, file, text, remedy)


_Found = tuple[Chosen, str, str, Severity]


def _first(boxes: Boxes, chosen_A: Chosen) -> str:
    """Return the description of the first chosen annotation."""
    place = int(chosen_A.argmax())
    width, height = boxes.sizes[place]
    text = f"annotation {boxes.ids[place]}: bbox {_numbers(boxes.xywh[place])} in {width:g} x {height:g}"
    spans = boxes.spans[place]
    return text if np.isnan(spans).any() else f"{text}, mask from {_numbers(spans[:2])} to {_numbers(spans[2:])}"


def _numbers(values: Floats) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _arrays(content: Entry, masks: bool) -> Boxes:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = content["annotations"]
    spans = _spans([one["segmentation"] for one in annotations]) if masks else np.full((len(annotations), 4), np.nan)
    kinds = [(one["image_id"], one["category_id"]) for one in annotations]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return Boxes(
        ids=[one["id"] for one in annotations],
        kinds=np.array([numbers[kind] for kind in kinds], dtype=np.int64),
        sizes=np.array([sizes[one["image_id"]] for one in annotations], dtype=np.float64),
        xywh=np.array([one["bbox"] for one in annotations], dtype=np.float64),
        spans=spans,
        areas=np.array([one.get("area", np.nan) for one in annotations], dtype=np.float64),
        crowd=np.array([bool(one.get("iscrowd", 0)) for one in annotations]),
        ignored=np.array([bool(one.get("ignore", 0)) for one in annotations]),
    )


def _spans(segmentations: Sequence[Any]) -> Floats:
    """Return x0 y0 x1 y1 of polygons and run lengths: (A, 4)."""
    spans_A4 = np.full((len(segmentations), 4), np.nan)
    drawn = [place for place, one in enumerate(segmentations) if isinstance(one, list)]
    polygons = [polygon for place in drawn for polygon in segmentations[place]]
    if polygons:
        flat = array("d")  # a Python list of COCO's numbers would need a gigabyte
        for polygon in polygons:
            flat.fromlist(polygon)  # twice as fast as extend
        lengths, parts = [len(polygon) for polygon in polygons], [len(segmentations[place]) for place in drawn]
        spans_A4[drawn] = polygon_spans(np.frombuffer(flat), np.array(lengths), np.array(parts))
    for place, one in enumerate(segmentations):
        if isinstance(one, dict):
            counts = one["counts"]
            region = coco_masks.frPyObjects(one, *one["size"]) if isinstance(counts, list) else one
            x, y, width, height = coco_masks.toBbox(region)
            spans_A4[place] = (x, y, x + width, y + height)
    return spans_A4


def polygon_spans(numbers: Floats, lengths_P: NDArray[np.int64], parts_A: NDArray[np.int64]) -> Floats:
    """Return x0 y0 x1 y1 of annotations with `parts_A` polygons of `lengths_P` numbers x0 y0 x1 y1 ... each: (A, 4)."""
    if not len(parts_A):
        return np.zeros((0, 4))
    begins = np.cumsum(lengths_P // 2) - lengths_P // 2
    axes = (numbers[::2], numbers[1::2])  # four reductions of a row take a third of the time of two of pairs
    spans_P4 = [end.reduceat(axis, begins) for end in (np.minimum, np.maximum) for axis in axes]
    begins = np.cumsum(parts_A) - parts_A
    ends = (np.minimum, np.minimum, np.maximum, np.maximum)
    return np.stack([end.reduceat(spans_P, begins) for end, spans_P in zip(ends, spans_P4, strict=True)], axis=1)


def _units(boxes: Boxes) -> Iterator[_Found]:
    """Yield boxes and polygons in fractions instead of pixels, and boxes with corners instead of sizes."""
    corners_A4, overlap = boxes.xywh, _overlap(_cornered(boxes.xywh), boxes.spans)
    has_area_A = (boxes.xywh[:, 2:] > 0).all(1)
    fractions_A = has_area_A & (boxes.xywh <= 1).all(1) & (boxes.xywh >= 0).all(1)
    remedy = "multiply x and width by the image's width, y and height by its height"
    yield fractions_A, "{count} boxes are fractions of the image, not pixels ({first})", remedy, _if_most(fractions_A)
    drawn_A = (boxes.spans <= 1).all(1) & (boxes.spans >= 0).all(1) & (boxes.sizes > 2).all(1)
    drawn_A &= (boxes.spans[:, 2:] > boxes.spans[:, :2]).all(1)
    yield drawn_A, "{count} polygons are fractions of the image, not pixels ({first})", remedy, _if_most(drawn_A)
    fits_A = (corners_A4[:, 2:] >= corners_A4[:, :2]).all(1) & (corners_A4[:, 2:] <= boxes.sizes + OVERHANG).all(1)
    sticks_out_A = (corners_A4[:, :2] + corners_A4[:, 2:] > boxes.sizes + OVERHANG).any(1)
    by_masks_A = (_overlap(corners_A4, boxes.spans) > 0.9) & (overlap < 0.9) & fits_A
    by_boxes = fits_A.all() and sticks_out_A.sum() >= FEW and sticks_out_A.mean() >= STICKING_OUT
    chosen_A = np.ones_like(fits_A) if by_boxes else by_masks_A
    if by_boxes or by_masks_A.mean() >= MOST:
        remedy = "COCO's bbox is [x, y, width, height]: subtract x0 from x1 and y0 from y1"
        yield chosen_A, "{count} boxes are [x0, y0, x1, y1] ({first})", remedy, "error"


def _masks(boxes: Boxes) -> Iterator[_Found]:
    """Yield masks outside their images, or away from their boxes."""
    spans_A4, sizes_A2 = boxes.spans, boxes.sizes
    outside_A = (spans_A4[:, :2] >= sizes_A2).any(1) | (spans_A4[:, 2:] <= 0).any(1)
    empty_A = (spans_A4[:, 2:] <= spans_A4[:, :2]).any(1)
    remedy = "points are x, y in pixels from the upper left corner; correct it or remove the annotation"
    yield outside_A & ~empty_A, "{count} masks lie outside their images ({first})", remedy, "error"
    partly_A = (spans_A4[:, :2] < -OVERHANG).any(1) | (spans_A4[:, 2:] > sizes_A2 + OVERHANG).any(1)
    what = "{count} masks lie partly outside their images ({first})"
    yield partly_A & ~outside_A, what, "they are clipped at the border", "warning"
    apart_A = _overlap(_cornered(boxes.xywh), spans_A4) < AGREE
    remedy = "training uses the box of the mask, box AP the box of the file: correct the wrong one"
    yield apart_A & ~empty_A, "{count} boxes contradict their masks ({first})", remedy, "warning"


def _areas(boxes: Boxes) -> Iterator[_Found]:
    """Yield areas that misclassify objects as small or large."""
    span_A = np.nan_to_num((boxes.spans[:, 2:] - boxes.spans[:, :2]).prod(1))
    box_A, image_A = np.maximum(boxes.xywh[:, 2:].prod(1), span_A), boxes.sizes.prod(1)
    remedy = "AP of small, medium and large objects uses area: write the mask's area, or remove all areas"
    whole_A = (np.abs(boxes.areas - image_A) <= 0.01 * image_A) & (box_A < 0.9 * image_A)
    yield whole_A, "{count} areas equal the whole image ({first})", remedy, "warning"
    large_A = (boxes.areas > 1.1 * box_A + 10) & ~whole_A
    yield large_A, "{count} areas are larger than the box ({first})", remedy, "warning"
    yield (boxes.areas == 0) & (box_A > 0), "{count} areas are 0 ({first})", remedy, "warning"
    missing_A = np.isnan(boxes.areas)
    yield missing_A, "{count} annotations have no area", "the box's area is used", "note"


def _kinds(boxes: Boxes) -> Iterator[_Found]:
    """Yield findings about objects' ids, ignore flags and duplicates."""
    ignored_A = boxes.ignored & ~boxes.crowd
    remedy = "ignore has no effect, as in pycocotools: they are trained on and evaluated; iscrowd: 1 excludes objects"
    yield ignored_A, "{count} annotations have ignore: 1 ({first})", remedy, "warning"
    twice_A = _repeated(boxes) & ~boxes.crowd
    what = "{count} objects are duplicates, with the same category and box on the same image ({first})"
    yield twice_A, what, "a detector that finds them once misses the duplicates: remove them", "warning"
    zero_A = np.asarray(boxes.ids) == 0
    what = "an annotation has id 0, which pycocotools treats as unmatched ({first})"
    yield zero_A, what, "annotations are renumbered for the evaluators", "note"


def _repeated(boxes: Boxes) -> Chosen:
    """Find annotations with the image, category, box and mask extent of an earlier one, without crowd regions."""
    columns = [boxes.kinds, boxes.crowd, *boxes.xywh.T, *np.nan_to_num(boxes.spans).T]
    sums_A = np.zeros(len(boxes.kinds))  # equal rows have equal sums, and sorting these is fast
    for number, column_A in enumerate(columns):
        sums_A += np.sqrt(2 + number) * column_A
    _, place_A, count_A = np.unique(sums_A, return_inverse=True, return_counts=True)
    seen: set[tuple[float, ...]] = set()
    repeated_A = np.zeros(len(sums_A), dtype=np.bool_)
    for place in np.flatnonzero(count_A[place_A] > 1).tolist():
        key = tuple(column_A[place].item() for column_A in columns)
        repeated_A[place] = key in seen
        seen.add(key)
    return repeated_A


def repeated_names(images: Sequence[Entry], categories: Sequence[Entry], file: str) -> Iterator[Finding]:
    """Yield categories and images that are listed twice."""
    names = Counter(one["name"] for one in categories)
    for name in [name for name, count in names.items() if count > 1]:
        remedy = "each is a separate category; merge them if they mean the same"
        yield Finding("warning", file, f"{names[name]} categories are called {name!r}", remedy)
    listed = Counter(one["file_name"] for one in images)
    if twice := [name for name, count in listed.items() if count > 1]:
        what = f"{len(twice):,} of {len(listed):,} images are listed twice (the first: {twice[0]})"
        yield Finding("warning", file, what, "each counts as a separate image; merge their annotations")


def _if_most(chosen_A: Chosen) -> Severity:
    return "error" if chosen_A.mean() >= MOST else "warning"


def _cornered(boxes_A4: Floats) -> Floats:
    """Convert x y w h to x0 y0 x1 y1."""
    return np.concatenate([boxes_A4[:, :2], boxes_A4[:, :2] + boxes_A4[:, 2:]], axis=1)


def _overlap(one_A4: Floats, other_A4: Floats) -> Floats:
    """Return the pairwise IoU of boxes x0 y0 x1 y1, a pixel wider so that thin boxes overlap; NaN stays NaN."""
    low_A2, high_A2 = np.maximum(one_A4[:, :2], other_A4[:, :2]), np.minimum(one_A4[:, 2:], other_A4[:, 2:])
    shared_A = (high_A2 - low_A2 + OVERHANG).clip(min=0).prod(1)
    area_of = [(boxes[:, 2:] - boxes[:, :2] + OVERHANG).clip(min=0).prod(1) for boxes in (one_A4, other_A4)]
    overlap_A: Floats = shared_A / np.maximum(area_of[0] + area_of[1] - shared_A, 1e-9)
    return overlap_A

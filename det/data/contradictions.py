"""What entries of a COCO annotation file say against each other, or against what they are taken for, with counts.

Each is decided one way, and said:

| found | what happens |
|---|---|
| boxes in fractions of the image, boxes or polygons | an error, once they are most; a warning below that |
| boxes as [x0, y0, x1, y1] | an error |
| a mask all outside its image | an error: nothing of it can be learned or found |
| a mask partly outside | it is cut off at the border |
| a box that contradicts its mask | training takes the box of the mask, box AP the box of the file |
| an area that its box cannot hold, or of 0 | taken as it is, as in pycocotools: it says what is small or large |
| `ignore: 1` | not looked at, as in pycocotools and detectron2 |
| the same object twice | both count, as in pycocotools: one is missed by a detector that finds it once |
| annotation id 0 | harmless here: the evaluators get numbers of ours (`det.evaluation.numbering`) |
| two categories of one name, an image listed twice | both are kept |
"""

# A annotation, P polygon

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.engine.data.datasets import Finding, Severity

Entry = dict[str, Any]
Floats = NDArray[np.float64]
Chosen = Any  # NDArray[np.bool_]; numpy's types know .all(1) as a scalar, too

OVERHANG = 1.0  # pixels by which COCO's rounded boxes may stick out
AGREE = 0.5  # overlap below which a box contradicts its mask
MOST = 0.5  # of the annotations: from here on it is how the file was written, not a slip
STICKING_OUT = 0.25  # share of boxes outside their images that, with the rest fitting, says [x0, y0, x1, y1]
FEW = 3  # boxes, below which nothing is concluded from them all


@dataclass(frozen=True)
class _Boxes:
    """The annotations of a file in arrays. `spans`: x0 y0 x1 y1 of the masks, NaN where there is none."""

    ids: Sequence[int]
    sizes: Floats  # (A, 2) width, height of the image
    xywh: Floats  # (A, 4)
    spans: Floats  # (A, 4)
    areas: Floats  # (A,) NaN where the file has none
    crowd: Chosen  # (A,)


def contradictions(content: Entry, file: str, masks: bool = True) -> Iterator[Finding]:
    """Findings on the sound `content` of the annotation file `file`; masks are looked at if `masks`."""
    yield from _lists(content, file)
    if not content["annotations"]:
        return
    boxes = _arrays(content, masks)
    found = [one for one in _units(boxes) if one[0].any()]
    if not any(severity == "error" for *_, severity in found):  # else all the rest follows from it
        found += [*_masks(boxes), *_areas(boxes), *_kinds(content, boxes)]
    for chosen_A, what, remedy, severity in found:
        if count := int(chosen_A.sum()):
            text = what.format(count=f"{count:,} of {len(chosen_A):,}", first=_first(boxes, chosen_A))
            yield Finding(severity, file, text, remedy)


_Found = tuple[Chosen, str, str, Severity]


def _first(boxes: _Boxes, chosen_A: Chosen) -> str:
    """The first of the chosen annotations, in words."""
    place = int(chosen_A.argmax())
    width, height = boxes.sizes[place]
    text = f"annotation {boxes.ids[place]}: bbox {_numbers(boxes.xywh[place])} in {width:g} x {height:g}"
    spans = boxes.spans[place]
    return text if np.isnan(spans).any() else f"{text}, mask from {_numbers(spans[:2])} to {_numbers(spans[2:])}"


def _numbers(values: Floats) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _arrays(content: Entry, masks: bool) -> _Boxes:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = content["annotations"]
    spans = _spans([one["segmentation"] for one in annotations]) if masks else np.full((len(annotations), 4), np.nan)
    return _Boxes(
        ids=[one["id"] for one in annotations],
        sizes=np.array([sizes[one["image_id"]] for one in annotations], dtype=np.float64),
        xywh=np.array([one["bbox"] for one in annotations], dtype=np.float64),
        spans=spans,
        areas=np.array([one.get("area", np.nan) for one in annotations], dtype=np.float64),
        crowd=np.array([bool(one.get("iscrowd", 0)) for one in annotations]),
    )


def _spans(segmentations: Sequence[Any]) -> Floats:
    """(A, 4): x0 y0 x1 y1 of polygons and run lengths."""
    spans_A4 = np.full((len(segmentations), 4), np.nan)
    drawn = [place for place, one in enumerate(segmentations) if isinstance(one, list)]
    polygons = [polygon for place in drawn for polygon in segmentations[place]]
    if polygons:
        flat = array("d")  # a list of COCO's numbers would take a gigabyte
        for polygon in polygons:
            flat.extend(polygon)
        numbers = np.frombuffer(flat, dtype=np.float64).reshape(-1, 2)
        begins = np.cumsum([0, *(len(polygon) // 2 for polygon in polygons[:-1])])
        low_P2, high_P2 = np.minimum.reduceat(numbers, begins), np.maximum.reduceat(numbers, begins)
        begins = np.cumsum([0, *(len(segmentations[place]) for place in drawn[:-1])])
        spans_A4[drawn, :2] = np.minimum.reduceat(low_P2, begins)
        spans_A4[drawn, 2:] = np.maximum.reduceat(high_P2, begins)
    for place, one in enumerate(segmentations):
        if isinstance(one, dict):
            counts = one["counts"]
            region = coco_masks.frPyObjects(one, *one["size"]) if isinstance(counts, list) else one
            x, y, width, height = coco_masks.toBbox(region)
            spans_A4[place] = (x, y, x + width, y + height)
    return spans_A4


def _units(boxes: _Boxes) -> Iterator[_Found]:
    """Fractions for pixels, corners for sizes."""
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


def _masks(boxes: _Boxes) -> Iterator[_Found]:
    """Masks outside their images, or elsewhere than their boxes."""
    spans_A4, sizes_A2 = boxes.spans, boxes.sizes
    outside_A = (spans_A4[:, :2] >= sizes_A2).any(1) | (spans_A4[:, 2:] <= 0).any(1)
    empty_A = (spans_A4[:, 2:] <= spans_A4[:, :2]).any(1)
    remedy = "points are x, y in pixels from the upper left corner; correct it or remove the annotation"
    yield outside_A & ~empty_A, "{count} masks lie outside their images ({first})", remedy, "error"
    partly_A = (spans_A4[:, :2] < -OVERHANG).any(1) | (spans_A4[:, 2:] > sizes_A2 + OVERHANG).any(1)
    what = "{count} masks lie partly outside their images ({first})"
    yield partly_A & ~outside_A, what, "they are cut off at the border", "warning"
    apart_A = _overlap(_cornered(boxes.xywh), spans_A4) < AGREE
    remedy = "training takes the box of the mask, box AP the box of the file: correct whichever is wrong"
    yield apart_A & ~empty_A, "{count} boxes contradict their masks ({first})", remedy, "warning"


def _areas(boxes: _Boxes) -> Iterator[_Found]:
    """Areas that decide wrongly what is small and what is large."""
    span_A = np.nan_to_num((boxes.spans[:, 2:] - boxes.spans[:, :2]).prod(1))
    box_A, image_A = np.maximum(boxes.xywh[:, 2:].prod(1), span_A), boxes.sizes.prod(1)
    remedy = "AP of small, medium and large objects goes by area: write that of the mask, or leave out all of them"
    whole_A = (np.abs(boxes.areas - image_A) <= 0.01 * image_A) & (box_A < 0.9 * image_A)
    yield whole_A, "{count} areas are that of the whole image ({first})", remedy, "warning"
    large_A = (boxes.areas > 1.1 * box_A + 10) & ~whole_A
    yield large_A, "{count} areas are larger than the box ({first})", remedy, "warning"
    yield (boxes.areas == 0) & (box_A > 0), "{count} areas are 0 ({first})", remedy, "warning"
    missing_A = np.isnan(boxes.areas)
    yield missing_A, "{count} annotations have no area", "that of the box is taken", "note"


def _kinds(content: Entry, boxes: _Boxes) -> Iterator[_Found]:
    """What is said of an object besides where it is."""
    annotations = content["annotations"]
    ignored_A = np.array([bool(one.get("ignore", 0)) for one in annotations]) & ~boxes.crowd
    remedy = "ignore is not looked at, as in pycocotools: they are learned and measured; iscrowd: 1 leaves objects out"
    yield ignored_A, "{count} annotations have ignore: 1 ({first})", remedy, "warning"
    twice_A = _repeated(content, boxes) & ~boxes.crowd
    what = "{count} objects are there twice, with the same category and box on the same image ({first})"
    yield twice_A, what, "a detector that finds them once misses the others: remove them", "warning"
    zero_A = np.array([identity == 0 for identity in boxes.ids])
    what = "an annotation has id 0, which pycocotools takes for no match ({first})"
    yield zero_A, what, "annotations are numbered anew for the evaluators", "note"


def _repeated(content: Entry, boxes: _Boxes) -> Chosen:
    """Annotations like an earlier one: of the same image, category, box and extent of the mask, and no crowd either."""
    identities = [(one["image_id"], one["category_id"]) for one in content["annotations"]]
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(identities))}
    rows = np.column_stack([[numbers[one] for one in identities], boxes.crowd, boxes.xywh, np.nan_to_num(boxes.spans)])
    weights = np.sqrt(np.arange(2, 2 + rows.shape[1]))  # rows that are equal have equal sums; sorting sums is fast
    _, place_A, count_A = np.unique(rows @ weights, return_inverse=True, return_counts=True)
    seen: set[bytes] = set()
    repeated_A = np.zeros(len(rows), dtype=np.bool_)
    for place in np.flatnonzero(count_A[place_A] > 1).tolist():
        key = rows[place].tobytes()
        repeated_A[place] = key in seen
        seen.add(key)
    return repeated_A


def _lists(content: Entry, file: str) -> Iterator[Finding]:
    """Names that stand twice."""
    names = Counter(one["name"] for one in content["categories"])
    for name in [name for name, count in names.items() if count > 1]:
        remedy = "each is a category of its own; merge them if they mean the same"
        yield Finding("warning", file, f"{names[name]} categories are called {name!r}", remedy)
    listed = Counter(one["file_name"] for one in content["images"])
    if twice := [name for name, count in listed.items() if count > 1]:
        what = f"{len(twice):,} of {len(listed):,} images are listed twice (the first: {twice[0]})"
        yield Finding("warning", file, what, "each counts as an image of its own; merge their annotations")


def _if_most(chosen_A: Chosen) -> Severity:
    return "error" if chosen_A.mean() >= MOST else "warning"


def _cornered(boxes_A4: Floats) -> Floats:
    """x y w h to x0 y0 x1 y1."""
    return np.concatenate([boxes_A4[:, :2], boxes_A4[:, :2] + boxes_A4[:, 2:]], axis=1)


def _overlap(one_A4: Floats, other_A4: Floats) -> Floats:
    """Intersection over union of boxes x0 y0 x1 y1, pair by pair, a pixel wider so that thin ones meet; NaN stays."""
    low_A2, high_A2 = np.maximum(one_A4[:, :2], other_A4[:, :2]), np.minimum(one_A4[:, 2:], other_A4[:, 2:])
    shared_A = (high_A2 - low_A2 + OVERHANG).clip(min=0).prod(1)
    area_of = [(boxes[:, 2:] - boxes[:, :2] + OVERHANG).clip(min=0).prod(1) for boxes in (one_A4, other_A4)]
    overlap_A: Floats = shared_A / np.maximum(area_of[0] + area_of[1] - shared_A, 1e-9)
    return overlap_A

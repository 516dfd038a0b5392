"""The detections of a split as flat arrays: 50 bytes and its mask's run lengths for each, instead of a dictionary.

    results = Results.made_of(joined(parts, masks=True), image_ids, category_ids)    # or of dictionaries: Results.of
    results[7]                    # {"image_id": ..., "category_id": ..., "bbox": ..., "score": ...}, COCO's form
    results.of_image(139)         # those of one image, as dictionaries
    results.write(path)           # COCO's results file

It is a sequence of COCO results, made when asked for, so that functions of `list[Result]` take either.
"""

# N detection, I image, K category

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray

from mimbench.engine.run.atomic import replacing

Result = dict[str, Any]  # image_id, category_id, bbox (x y w h), score, segmentation (RLE, with masks)
AT_ONCE = 10_000  # results written at once


@dataclass(frozen=True, eq=False)
class Arrays:
    """The detections' arrays, which ranks send to the first."""

    images: NDArray[np.int32]  # (N,) place in `image_ids`
    categories: NDArray[np.int32]  # (N,) place in `category_ids`
    boxes: NDArray[np.floating[Any]]  # (N, 4) x y w h
    scores: NDArray[np.floating[Any]]  # (N,)
    sizes: NDArray[np.int32]  # (N, 2) height and width of a mask's image; (N, 0) without masks
    lengths: NDArray[np.int32]  # (N,) bytes of a mask's compressed run lengths
    counts: NDArray[np.uint8]  # these bytes, of all masks

    def named(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, eq=False)
class Results(Sequence[Result]):
    """Detections on the images `image_ids`."""

    arrays: Arrays
    begins: NDArray[np.int64]  # (N,) of each mask's bytes in `arrays.counts`
    image_ids: Sequence[int]  # any whole numbers
    category_ids: Sequence[int]

    @classmethod
    def made_of(cls, arrays: Arrays, image_ids: Sequence[int], category_ids: Sequence[int]) -> Results:
        """Return the detections of `arrays`, in their order."""
        ends = np.cumsum(arrays.lengths, dtype=np.int64)
        return cls(arrays, ends - arrays.lengths, image_ids, category_ids)

    @classmethod
    def of(cls, results: Sequence[Result]) -> Results:
        """Return COCO results as arrays; masks are kept if every result has one."""
        if isinstance(results, cls):
            return results
        image_ids = sorted({result["image_id"] for result in results})
        category_ids = sorted({result["category_id"] for result in results})
        place = {identity: number for number, identity in enumerate(image_ids)}
        label = {identity: number for number, identity in enumerate(category_ids)}
        regions = [_compressed(result["segmentation"]) for result in results if "segmentation" in result]
        masks = regions if len(regions) == len(results) else []
        arrays = Arrays(
            images=np.array([place[result["image_id"]] for result in results], dtype=np.int32),
            categories=np.array([label[result["category_id"]] for result in results], dtype=np.int32),
            boxes=np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4),
            scores=np.array([result["score"] for result in results], dtype=np.float64),
            **region_arrays(masks, len(results)),
        )
        return cls.made_of(arrays, image_ids, category_ids)

    @property
    def has_masks(self) -> bool:
        """Whether the detections have masks."""
        return self.arrays.sizes.shape[1] > 0

    def __len__(self) -> int:
        return len(self.arrays.scores)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        """Return one result, or a list of results, in COCO's form."""
        if isinstance(index, slice):
            return self.listed(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} results, no number {index}")
        return self.listed(np.array([index]))[0]

    def __iter__(self) -> Iterator[Result]:
        for begin in range(0, len(self), AT_ONCE):
            yield from self.listed(np.arange(begin, min(begin + AT_ONCE, len(self))))

    def listed(self, chosen: NDArray[np.int64]) -> list[Result]:
        """Return the results at the indices `chosen` in COCO's form."""
        arrays = self.arrays
        rows = zip(
            arrays.images[chosen].tolist(),
            arrays.categories[chosen].tolist(),
            arrays.boxes[chosen].tolist(),
            arrays.scores[chosen].tolist(),
            strict=True,
        )
        found: list[Result] = [
            {
                "image_id": int(self.image_ids[image]),
                "category_id": int(self.category_ids[category]),
                "bbox": box,
                "score": score,
            }
            for image, category, box, score in rows
        ]
        if self.has_masks:
            for result, region in zip(found, self.regions(chosen), strict=True):
                result["segmentation"] = region
        return found

    def regions(self, chosen: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the masks of the results at the indices `chosen` as compressed RLE, `counts` as str."""
        counts, begins, lengths = self.arrays.counts, self.begins[chosen], self.arrays.lengths[chosen]
        return [
            {"size": size, "counts": counts[begin : begin + length].tobytes().decode()}
            for size, begin, length in zip(
                self.arrays.sizes[chosen].tolist(), begins.tolist(), lengths.tolist(), strict=True
            )
        ]

    def sorted(self) -> Results:
        """Return the same results image by image; within an image their order is kept."""
        return self.taken(self.arrays.images.argsort(kind="stable"))

    def taken(self, chosen: NDArray[np.int64]) -> Results:
        """Return the results at the indices `chosen`, which share the masks' bytes with these."""
        named = {name: array[chosen] for name, array in self.arrays.named().items() if name != "counts"}
        return replace(self, arrays=replace(self.arrays, **named), begins=self.begins[chosen])

    @cached_property
    def _by_image(self) -> dict[int, NDArray[np.int64]]:
        order = self.arrays.images.argsort(kind="stable")
        ends = np.searchsorted(self.arrays.images[order], np.arange(len(self.image_ids) + 1))
        return {int(identity): order[ends[n] : ends[n + 1]] for n, identity in enumerate(self.image_ids)}

    def of_image(self, image_id: int) -> list[Result]:
        """Return the results of one image; none if it has none or is unknown."""
        return self.listed(self._by_image.get(image_id, np.zeros(0, dtype=np.int64)))

    def write(self, path: Path) -> None:
        """Replace `path` with the results as a JSON list, as `json.dumps` writes it, a part at a time."""
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write("[")
            for begin in range(0, len(self), AT_ONCE):
                file.write(", " if begin else "")
                file.write(json.dumps(self[begin : begin + AT_ONCE])[1:-1])
            file.write("]")


def region_arrays(regions: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Return `sizes`, `lengths` and `counts` of `count` compressed regions; without regions, those of no masks."""
    if not regions:
        return {
            "sizes": np.zeros((count, 0), dtype=np.int32),
            "lengths": np.zeros(count, dtype=np.int32),
            "counts": np.zeros(0, dtype=np.uint8),
        }
    texts = [each["counts"] if isinstance(each["counts"], bytes) else each["counts"].encode() for each in regions]
    return {
        "sizes": np.array([each["size"] for each in regions], dtype=np.int32),
        "lengths": np.array([len(text) for text in texts], dtype=np.int32),
        "counts": np.frombuffer(b"".join(texts), dtype=np.uint8),
    }


def _compressed(region: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a region with compressed run lengths."""
    if not isinstance(region.get("counts"), list):
        return region
    encoded: Mapping[str, Any] = coco_masks.frPyObjects(dict(region), *region["size"])
    return encoded


def pieces_of(parts: Iterable[Arrays], *, masks: bool) -> dict[str, list[NDArray[Any]]]:
    """Return the arrays of all parts by name, at least one of each; `masks` says whether the detections have masks."""
    named = [part.named() for part in (_empty(masks), *parts)]
    return {name: [each[name] for each in named] for name in named[0]}


def joined(parts: Iterable[Arrays], *, masks: bool) -> Arrays:
    """Return the detections of all parts, in their order."""
    return Arrays(**{name: np.concatenate(pieces) for name, pieces in pieces_of(parts, masks=masks).items()})


def _empty(masks: bool) -> Arrays:
    return Arrays(
        images=np.zeros(0, dtype=np.int32),
        categories=np.zeros(0, dtype=np.int32),
        boxes=np.zeros((0, 4), dtype=np.float32),
        scores=np.zeros(0, dtype=np.float32),
        sizes=np.zeros((0, 2 if masks else 0), dtype=np.int32),
        lengths=np.zeros(0, dtype=np.int32),
        counts=np.zeros(0, dtype=np.uint8),
    )

"""COCO-style data sets: one split's images and instances, read once into a few flat arrays.

    split = read_split(locate("coco"), "val")
    image = split.read_image(0)                    # uint8 (3, H, W)
    labels, shapes = split.objects(0)              # without crowd regions

The layout is COCO 2017's, annotations/instances_{train,val}2017.json beside train2017/ and val2017/, or another one of
`engine.data.coco_layouts`. Category ids may be any integers; labels are their ranks, 0 to classes - 1, and
`category_ids` maps back. Images are in the order of their ids, as in detectron2.

The arrays of a large file are kept beside it, and read instead of it from then on (`det.data.annotation_cache`).

Arrays make many loader processes cheap: forked workers share their memory. Lists and dictionaries would be copied,
because reading them changes their reference counts.
"""

from __future__ import annotations

import gc
import json
import logging
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pycocotools.mask as coco_masks
from numpy.typing import NDArray
from torch import Tensor

from mimbench.det.data.annotation_cache import Kept, content_of, keep, read_kept
from mimbench.det.data.annotations import annotation_findings
from mimbench.det.data.columns import Columns, ends, read_columns
from mimbench.det.data.contradictions import contradicting_boxes, repeated_names
from mimbench.det.data.findings import grouped
from mimbench.det.data.image_files import missing_images, with_images
from mimbench.det.data.lvis import as_coco, lvis_files, lvis_findings
from mimbench.det.data.run_lengths import compressed
from mimbench.det.model.masks import Bitmap, Polygons
from mimbench.engine.data.coco_layouts import others
from mimbench.engine.data.datasets import CocoFiles, Finding, Severity, Split, coco_files, require, unfit
from mimbench.engine.data.folders import Paths
from mimbench.engine.data.images import read_image
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)

LISTED = 5  # files in a message
ONE_CATEGORY: list[dict[str, Any]] = [{"id": 1, "name": "object", "supercategory": "object"}]
Shape = Polygons | Bitmap
Region = dict[str, Any]  # {"size": [H, W], "counts"}: compressed run lengths
Benchmark = Literal["coco", "lvis"]


@dataclass(frozen=True)
class CocoSplit:
    """One split of a COCO data set. Image `i` is the one with the i-th smallest id; A annotations, P polygons."""

    files: CocoFiles
    category_ids: tuple[int, ...]  # as in the file, ascending
    categories: tuple[str, ...]  # their names
    image_ids: NDArray[Any]  # (I,) as in the file: int64, or Python's integers where one is beyond 63 bits
    sizes: NDArray[np.int32]  # (I, 2) height, width
    paths: Paths
    first: NDArray[np.int64]  # (I + 1,) annotations of image i are first[i] .. first[i + 1]
    labels: NDArray[np.int64]  # (A,) rank of the category
    crowd: NDArray[np.bool_]  # (A,) regions of many objects, neither trained on nor counted as missed
    boxes: NDArray[np.float64]  # (A, 4) x0 y0 x1 y1, as in the file
    parts: NDArray[np.int64]  # (A + 1,) polygons of annotation a are parts[a] .. parts[a + 1]; none for an RLE region
    corners: NDArray[np.int64]  # (P + 1,) numbers of polygon p are corners[p] .. corners[p + 1] of `numbers`
    numbers: NDArray[np.float64]  # x0 y0 x1 y1 ... of all polygons
    runs: NDArray[np.int64]  # (A + 1,) bytes of annotation a's compressed RLE in `encoded`
    encoded: bytes

    def __len__(self) -> int:
        return len(self.image_ids)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of image `index`."""
        height, width = self.sizes[index].tolist()
        return height, width

    def read_image(self, index: int) -> Tensor:
        """Return image `index`, rotated upright by its EXIF orientation, as uint8 (3, H, W).

        Raises:
            FileNotFoundError: if the file does not exist.
            UnfitError: (a ValueError) if the file cannot be read or its size differs from the annotations'.
        """
        path = self.paths[index]
        image = read_image(path, upright=True)
        if tuple(image.shape[1:]) != self.size(index):
            (height, width), (said_height, said_width) = image.shape[1:], self.size(index)
            what = f"is {width} x {height}, but {self.files.annotations} says {said_width} x {said_height}"
            raise unfit(path, what, "correct the annotation file, or restore the image")
        return image

    def objects(self, index: int) -> tuple[NDArray[np.int64], list[Shape]]:
        """Return labels (N,) and shapes of the objects of image `index`, without crowd regions.

        A shape is a list of polygons, each a float64 array x0 y0 x1 y1 ..., or a bitmap uint8 (H, W); an empty list if
        masks were not read.
        """
        annotations = self._objects(index)
        return self.labels[annotations], [self._shape(a, index) for a in annotations.tolist()]

    def boxed_objects(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return labels (N,) and the file's boxes (N, 4) of the objects of image `index`."""
        annotations = self._objects(index)
        return self.labels[annotations], self.boxes[annotations]

    def objects_labels(self, index: int) -> NDArray[np.int64]:
        """Return labels (N,) of the objects of image `index`."""
        return self.labels[self._objects(index)]

    def _objects(self, index: int) -> NDArray[np.int64]:
        annotations = np.arange(self.first[index], self.first[index + 1])
        return annotations[~self.crowd[annotations]]

    def _shape(self, annotation: int, index: int) -> Shape:
        begin, end = self.parts[annotation : annotation + 2].tolist()
        if begin == end:
            region = self._region(annotation, index)
            bitmap: Bitmap | None = None if region is None else coco_masks.decode(region)
            return [] if bitmap is None else bitmap  # only a box, no polygons
        return [self.numbers[self.corners[part] : self.corners[part + 1]] for part in range(begin, end)]

    def regions(self, index: int) -> list[Region | None]:
        """Return the masks of the same objects as compressed run lengths (little memory); None if not read."""
        return [self._region(annotation, index) for annotation in self._objects(index).tolist()]

    def _region(self, annotation: int, index: int) -> Region | None:
        begin, end = self.parts[annotation : annotation + 2].tolist()
        if begin == end:
            counts = self.encoded[self.runs[annotation] : self.runs[annotation + 1]]
            return {"size": list(self.size(index)), "counts": counts} if counts else None
        polygons = [self.numbers[self.corners[part] : self.corners[part + 1]].tolist() for part in range(begin, end)]
        region: Region = coco_masks.merge(coco_masks.frPyObjects(polygons, *self.size(index)))
        return region

    def images_showing(self) -> NDArray[np.int64]:
        """Return the number of images with each category, (K,); crowd regions do not count."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.first))[~self.crowd]
        pairs = np.unique(np.stack([owner, self.labels[~self.crowd]]), axis=1)
        return np.bincount(pairs[1], minlength=len(self.category_ids))

    def with_objects(self) -> NDArray[np.int64]:
        """Return the images with at least one object that is not a crowd region: those used in training."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.first))
        return np.unique(owner[~self.crowd])


def read_split(
    directory: Path, split: Split, single_class: bool = False, *, masks: bool = True, benchmark: Benchmark = "coco"
) -> CocoSplit:
    """Return the annotations of a split of the data set in `directory`.

    Args:
        single_class: give all objects the same category.
        masks: read masks; if false, segmentations are ignored.
        benchmark: "lvis" reads LVIS's files.

    Raises:
        FileNotFoundError: if the annotation file or an image is missing.
        UnfitError: (a ValueError) the first error of the annotations.
    """
    files = lvis_files(directory, split) if benchmark == "lvis" else coco_files(directory, split)
    options = {"single_class": single_class, "masks": masks, "benchmark": benchmark}
    content = content_of(files.annotations)
    kept = read_kept(files.annotations, content, options)
    if kept is not None and not any(missing_images(_listed(kept), files)):
        notes, found = _restored(kept, files)
    else:
        with _collector_paused():
            notes, found = _read_checked(files, single_class, masks, benchmark)
        if found.files == files and rank_and_world()[0] == 0:
            keep(files.annotations, content, options, _to_keep(found, notes))
    for note in notes if rank_and_world()[0] == 0 else []:
        log.warning("%s", note)
    return found


def _read_checked(
    files: CocoFiles, single_class: bool, masks: bool, benchmark: Benchmark
) -> tuple[list[Finding], CocoSplit]:
    """Parse and check an annotation file; return the findings that stop no run, and its content."""
    columns = read_columns(files.annotations, masks, lvis=benchmark == "lvis")
    if columns is not None:
        return _checked(columns, files, single_class, benchmark)
    content = read_annotations(files.annotations)
    content = as_coco(content) if benchmark == "lvis" else content
    content, files, notes = with_images(content, files)
    notes += annotation_findings(content, files, masks)
    require(notes)
    if benchmark == "lvis":
        require(lvis_findings(content, files))
    return notes, arranged(of_one_category(content) if single_class else content, files, masks)


def _checked(
    columns: Columns, files: CocoFiles, single_class: bool, benchmark: Benchmark
) -> tuple[list[Finding], CocoSplit]:
    """Check what `columns` did not; return the findings that stop no run, and the content as a split."""
    content, files, notes = with_images({"images": columns.images}, files)
    images, file = content["images"], str(files.annotations)
    notes += grouped(missing_images(images, files))
    require(notes)
    notes += [*grouped(columns.warnings(file)), *repeated_names(images, columns.categories, file)]
    if len(columns.ids):
        notes += contradicting_boxes(columns.boxes(), file)
    require(notes)
    if benchmark == "lvis":
        require(lvis_findings({"images": images, "categories": columns.categories}, files))
    return notes, _arranged(columns, images, files, single_class)


def _arranged(columns: Columns, images: Sequence[dict[str, Any]], files: CocoFiles, single_class: bool) -> CocoSplit:
    """Return columns as a split; `images` are theirs, named as the files."""
    images = sorted(images, key=lambda image: image["id"])
    categories = ONE_CATEGORY if single_class else sorted(columns.categories, key=lambda category: category["id"])
    order = np.argsort(columns.image, kind="stable")
    shapes = columns.shapes.taken(order)
    labels = np.zeros_like(columns.category) if single_class else columns.category
    return CocoSplit(
        files=files,
        category_ids=tuple(category["id"] for category in categories),
        categories=tuple(category["name"] for category in categories),
        image_ids=_ids([image["id"] for image in images]),
        sizes=np.array([(image["height"], image["width"]) for image in images], dtype=np.int32),
        paths=Paths(files.images, [image["file_name"] for image in images]),
        first=ends(np.bincount(columns.image, minlength=len(images))),
        labels=labels[order],
        crowd=columns.crowd[order],
        boxes=_corners(columns.xywh[order]),
        parts=shapes.parts,
        corners=shapes.corners,
        numbers=shapes.numbers,
        runs=shapes.runs,
        encoded=shapes.encoded.tobytes(),
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector: it would visit millions of annotations, which hold no circles, again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


ARRAYS = ("image_ids", "sizes", "first", "labels", "crowd", "boxes", "parts", "corners", "numbers", "runs")


def _to_keep(split: CocoSplit, notes: Sequence[Finding]) -> Kept:
    """Return a split as the cache holds it."""
    arrays = {name: getattr(split, name) for name in ARRAYS}
    return Kept(
        arrays={**arrays, "encoded": np.frombuffer(split.encoded, dtype=np.uint8)},
        names=tuple(map(split.paths.name, range(len(split)))),
        categories=tuple(zip(split.category_ids, split.categories, strict=True)),
        notes=tuple((note.severity, note.what, note.remedy) for note in notes),
    )


def _restored(kept: Kept, files: CocoFiles) -> tuple[list[Finding], CocoSplit]:
    """Return the findings and the split that the cache holds."""
    split = CocoSplit(
        files=files,
        category_ids=tuple(number for number, _ in kept.categories),
        categories=tuple(name for _, name in kept.categories),
        paths=Paths(files.images, kept.names),
        **{name: kept.arrays[name] for name in ARRAYS},
        encoded=kept.arrays["encoded"].tobytes(),
    )
    severities = {severity: severity for severity in get_args(Severity)}
    file = str(files.annotations)
    return [Finding(severities[severity], file, what, remedy) for severity, what, remedy in kept.notes], split


def _listed(kept: Kept) -> list[dict[str, Any]]:
    """Return the images of the file, as far as finding them on disk needs."""
    numbers = kept.arrays["image_ids"].tolist()
    return [{"id": number, "file_name": name} for number, name in zip(numbers, kept.names, strict=True)]


def read_annotations(file: Path) -> dict[str, Any]:
    """Return the parsed annotation file.

    Raises:
        FileNotFoundError: if it does not exist; describes COCO's layout.
        UnfitError: (a ValueError) if it is not JSON.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; {layout_hint(file)}")
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise unfit(file, f"is not JSON: {error}", "restore the file") from None
    return content


def layout_hint(file: Path) -> str:
    """Return where a missing annotation file should be, and which files exist there."""
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    text = (
        "a COCO data set has annotations/instances_train2017.json and instances_val2017.json beside the folders "
        "train2017 and val2017 (LVIS: lvis_v1_train.json, ...), or annotations/train.json and val.json beside images/"
    )
    if there := others(root):
        listed = ", ".join(there[:LISTED]) + (f" and {len(there) - LISTED:,} more" if len(there) > LISTED else "")
        text += f"; found {listed}: rename the right file so that its name or folder contains train or val"
    return text


def of_one_category(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` of an annotation file with the single category `object`, id 1, for every object."""
    return {
        **content,
        "categories": ONE_CATEGORY,
        "annotations": [{**annotation, "category_id": 1} for annotation in content["annotations"]],
    }


def arranged(content: dict[str, Any], files: CocoFiles, masks: bool = True) -> CocoSplit:
    """Return the content of a checked annotation file as flat arrays, with or without masks."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    rank = {category["id"]: number for number, category in enumerate(categories)}
    images = sorted(content["images"], key=lambda image: image["id"])
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    annotations = [annotation for image in images for annotation in of_image[image["id"]]]
    return CocoSplit(
        files=files,
        category_ids=tuple(rank),
        categories=tuple(str(category["name"]) for category in categories),
        image_ids=_ids([image["id"] for image in images]),
        sizes=np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2),
        paths=Paths(files.images, [image["file_name"] for image in images]),
        first=ends([len(of_image[image["id"]]) for image in images]),
        labels=np.array([rank[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
        crowd=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], dtype=np.bool_),
        boxes=_corners([annotation["bbox"] for annotation in annotations]),
        **_shapes([annotation["segmentation"] if masks else [] for annotation in annotations]),
    )


def _ids(values: Sequence[int]) -> NDArray[Any]:
    return np.array(values, dtype=np.int64 if all(-(2**63) <= value < 2**63 for value in values) else object)


def _corners(boxes: Any) -> NDArray[np.float64]:
    """Convert x y w h to x0 y0 x1 y1."""
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners


def _shapes(segmentations: Sequence[Any]) -> dict[str, Any]:
    """Return polygons (lists of lists of numbers) and RLE regions (dictionaries) as flat arrays."""
    numbers, encoded = array("d"), bytearray()
    parts, corners, runs = [], [], []
    for segmentation in segmentations:
        polygons = segmentation if isinstance(segmentation, list) else []
        counts = compressed(segmentation) if isinstance(segmentation, dict) else b""
        parts.append(len(polygons))
        runs.append(len(counts))
        corners += [len(polygon) for polygon in polygons]
        for polygon in polygons:
            numbers.fromlist(polygon)
        encoded += counts
    flat = np.frombuffer(numbers, dtype=np.float64) if numbers else np.zeros(0)
    return {
        "parts": ends(parts),
        "corners": ends(corners),
        "numbers": flat,
        "runs": ends(runs),
        "encoded": bytes(encoded),
    }

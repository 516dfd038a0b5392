"""Ids of our own for the evaluators, which do not stand every id that an annotation file may have.

    numbering = Numbering.of(content)
    truth = numbering.truth(content)            # images, categories and annotations numbered from 1
    found = numbering.results(results)          # copies with the same numbers

pycocotools takes an object whose annotation id is 0 for one that nothing matched (cocoapi#507): the ground truth itself
then scores less than 100. It loads results by 64-bit ids, and faster-coco-eval keeps ids in unsigned numbers, so that
negative ones and those beyond 63 bits end in a crash. Numbers are given in the order of the ids, so that ties are
resolved as they would be with the ids of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.det.data.lvis import ABOUT_IMAGES

Entry = dict[str, Any]
UNKNOWN = 0  # the number of a category that the file does not have; the evaluators ignore its results


@dataclass(frozen=True)
class Numbering:
    """The number of each image and category, by its id in the file."""

    images: dict[int, int]
    categories: dict[int, int]

    @classmethod
    def of(cls, content: Entry) -> Numbering:
        """Numbers from 1 in the order of the ids in the annotation file `content`."""
        return cls(_ranks(content["images"]), _ranks(content["categories"]))

    def truth(self, content: Entry) -> Entry:
        """`content` with our numbers for ids, and with what COCOeval needs and a file may lack.

        That is `iscrowd` (0) and `area` (of the box).
        """
        return {
            **content,
            "images": [self._image(image) for image in content["images"]],
            "categories": [{**one, "id": self.categories[one["id"]]} for one in content["categories"]],
            "annotations": [
                self._annotation(annotation, number) for number, annotation in enumerate(content["annotations"], 1)
            ],
        }

    def results(self, results: Iterable[Entry]) -> list[Entry]:
        """Copies of COCO results with our numbers for ids."""
        return [
            {
                **result,
                "image_id": self.images[result["image_id"]],
                "category_id": self.categories.get(result["category_id"], UNKNOWN),
            }
            for result in results
        ]

    def _image(self, image: Entry) -> Entry:
        about = {
            key: [self.categories[category] for category in image[key] if category in self.categories]
            for key in ABOUT_IMAGES
            if isinstance(image.get(key), list)
        }
        return {**image, "id": self.images[image["id"]], **about}

    def _annotation(self, annotation: Entry, number: int) -> Entry:
        _, _, width, height = annotation["bbox"]
        return {
            "iscrowd": 0,
            "area": width * height,
            **annotation,
            "id": number,
            "image_id": self.images[annotation["image_id"]],
            "category_id": self.categories[annotation["category_id"]],
        }


def _ranks(entries: Sequence[Entry]) -> dict[int, int]:
    return {identity: number for number, identity in enumerate(sorted(entry["id"] for entry in entries), start=1)}

"""Renumber ids for the evaluators, which fail on some ids that an annotation file may have.

    numbering = Numbering.of(content)
    truth = numbering.truth(content)            # images, categories and annotations numbered from 1

pycocotools treats an object with annotation id 0 as unmatched (cocoapi#507), so the ground truth itself scores below
100. The evaluators hold ids in 64 bits, some without a sign, so negative ids and ids
beyond 63 bits crash. The new numbers keep the order of the ids, so ties are resolved as with the file's ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.det.data.lvis import ABOUT_IMAGES

Entry = dict[str, Any]


@dataclass(frozen=True)
class Numbering:
    """The new number of each image and category, by its id in the file."""

    images: dict[int, int]
    categories: dict[int, int]

    @classmethod
    def of(cls, content: Entry) -> Numbering:
        """Return numbers from 1 in the order of the ids in the annotation file `content`."""
        return cls(_ranks(content["images"]), _ranks(content["categories"]))

    def truth(self, content: Entry) -> Entry:
        """Return `content` with new numbers as ids, and with keys that COCOeval needs and a file may lack:

        `iscrowd` (0) and `area` (of the box).
        """
        return {
            **content,
            "images": [self._image(image) for image in content["images"]],
            "categories": [{**one, "id": self.categories[one["id"]]} for one in content["categories"]],
            "annotations": [
                self._annotation(annotation, number) for number, annotation in enumerate(content["annotations"], 1)
            ],
        }

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

"""DINOv3's transforms: bytes equal to those of dinov3/eval/segmentation/transforms.py for the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from mimbench.seg.config import Augment, Inference
from mimbench.seg.data.augment_dinov3 import augmented_as_dinov3
from mimbench.seg.data.batches import views_of
from mimbench.seg.data.split import label_table
from tests.seg.rules import golden, sha
from tests.seg.test_pixels import picture, picture_labels

GOLDEN = golden("dinov3")


@pytest.mark.parametrize("case", list(GOLDEN["train"]))
def test_training_images(case: str) -> None:
    wanted, (lies, seed) = GOLDEN["train"][case], case.split()
    image, labels = picture(), label_table(150, zero_is_ignored=True)[picture_labels()]
    if lies == "tall":
        image, labels = image.transpose(1, 0, 2), labels.T
    np.random.seed(int(seed))
    blue_first = np.ascontiguousarray(image[..., ::-1])
    made, made_labels = augmented_as_dinov3(blue_first, np.ascontiguousarray(labels), Augment(), 64)
    assert list(made_labels.shape) == wanted["shape"]
    assert sha(made_labels) == wanted["labels"]
    assert (int(made.sum()), sha(made[..., ::-1])) == (wanted["sum"], wanted["image"])


def test_validation_images() -> None:
    wanted = GOLDEN["val"]
    [view] = views_of(np.ascontiguousarray(picture()[..., ::-1]), Inference(resizing="pillow"), 64)
    made = view.image.permute(1, 2, 0).numpy()
    assert list(made.shape[:2]) == wanted["shape"]
    assert sha(made) == wanted["image"]

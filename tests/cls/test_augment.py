"""RandAugment gives what timm gives on Pillow 12, and says which operation failed."""

from __future__ import annotations

import json
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, RandAugment

from mimbench.cls.data.augment import FinetuneTransform, Operation
from mimbench.engine.data.faults import AugmentationError
from mimbench.engine.data.pillow import resize_with_pillow
from tests.cls.golden import randaugment as golden

GOLDEN = json.loads((Path(golden.__file__).with_suffix(".json")).read_text())
PAPERS = "rand-m9-mstd0.5-inc1"


def test_every_operation_at_every_magnitude_is_timms_on_pillow_12() -> None:
    assert GOLDEN["packages"]["pillow"].startswith("12.")
    found = golden.operations(Operation)
    assert {name.split()[0] for name in GOLDEN["operations"]} == set(auto_augment.NAME_TO_OP)
    assert found == GOLDEN["operations"]


def test_whole_pipelines_are_timms_on_pillow_12() -> None:
    found = golden.pipelines(lambda text: FinetuneTransform(golden.SIDE, smallest=0.08, flip=True, randaugment=text))
    assert found == GOLDEN["pipelines"]


def test_resizing_is_pillow_12s() -> None:
    assert golden.resizes(resize_with_pillow) == GOLDEN["resizes"]


@pytest.mark.parametrize("bits", [-3, 0])
def test_no_bits_are_black(bits: int) -> None:
    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8))
    operation = Operation(AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10))
    operation.op.level_fn = lambda magnitude, hparams: (bits,)
    assert not np.asarray(operation(image)).any()


def test_nothing_of_timm_is_changed() -> None:
    transform = FinetuneTransform(16, smallest=0.08, flip=True, randaugment=PAPERS)
    assert auto_augment.NAME_TO_OP["Posterize"] is auto_augment.posterize
    [augment] = [step for step in transform.steps if isinstance(step, RandAugment)]
    assert len(augment.ops) == 15
    image = golden.pictures()[0]
    golden.seed(3)
    first = transform(image)
    golden.seed(3)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), first), "it goes to loading processes"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SolarizeIncreasing", r"SolarizeIncreasing at magnitude 9\.\d+ failed: no light"),
        ("Invert", "Invert failed: no"),
    ],
)
def test_an_operation_that_fails_is_named_with_its_magnitude(name: str, says: str) -> None:
    def broken(image: Any, *arguments: Any, **options: Any) -> Any:
        raise ValueError("no\nlight")

    timms = AugmentOp(name, prob=1.0, magnitude=9.2, hparams={"magnitude_std": 0.1})
    timms.aug_fn = broken
    random.seed(0)
    with pytest.raises(AugmentationError, match=says):
        Operation(timms)(golden.pictures()[0])


def test_a_step_that_fails_is_named() -> None:
    transform = FinetuneTransform(16, smallest=0.08, flip=True, randaugment=None)
    with pytest.raises(AugmentationError, match=re.escape("Crop failed: TypeError")):
        transform("no image")

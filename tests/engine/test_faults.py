"""An error met while images are loaded says which image it was, whichever process met it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset

from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.faults import AugmentationError, DataError, Fault, LoadingError, image_of
from mimbench.engine.data.images import ImageFolder, RandomCrops


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Six images of unequal sizes, so that none is kept in memory."""
    for number in range(6):
        file = tmp_path / "train" / "a" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + number, 20, 3), 40 * number, np.uint8)).save(file)
    return ImageFolder(tmp_path, "train")


class Failing(RandomCrops):
    """Crops of which that of image 4 fails, with a data set's error or with another."""

    def __init__(self, folder: ImageFolder, error: Exception) -> None:
        super().__init__(folder, 8)
        self.error = error

    def __getitem__(self, index: int):
        if index == 4:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ValueError("has\nno colours"), DataError, "has no colours"),
        (OSError("no space"), DataError, "no space"),
        (TypeError("'int' object is not iterable"), LoadingError, "TypeError: 'int' object is not iterable"),
        (AugmentationError("Invert failed: no"), LoadingError, "Invert failed: no"),
    ],
)
def test_the_image_is_named(
    folder: ImageFolder, caplog: pytest.LogCaptureFixture, workers: int, error: Exception, kind: type, says: str
) -> None:
    crops, file = Failing(folder, error), str(folder.paths[4])
    batches = Batches(crops, 3, seed=0, workers=workers, shuffle=False)
    with caplog.at_level(logging.DEBUG, "mimbench.engine.data.faults"), pytest.raises(kind) as caught:
        list(zip(range(2), batches.starting_at(0), strict=False))
    assert str(caught.value) == f"{file}: {says}"
    assert caught.value.image == file
    assert "in __getitem__" in caplog.text, "the traceback is for the log"
    with pytest.raises(kind) as caught:
        list(evaluation_loader(Subset(crops, [0, 1, 4]), 2, workers))
    assert caught.value.image == file
    assert len(list(evaluation_loader(Subset(crops, [0, 1, 5]), 2, workers))) == 2


def test_a_damaged_image_is_named_once(folder: ImageFolder) -> None:
    file = folder.paths[2]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        next(Batches(RandomCrops(folder, 8), 6, seed=0, workers=1).starting_at(0))
    assert str(caught.value).count(str(file)) == 1
    assert caught.value.image == str(file)


def test_out_of_memory_stays_what_it_is(folder: ImageFolder) -> None:
    with pytest.raises(MemoryError):
        next(Batches(Failing(folder, MemoryError("800 GiB")), 6, seed=0, workers=1).starting_at(0))


def test_what_knows_no_files_names_none() -> None:
    assert image_of(range(5), 3) is None
    assert Fault.of(ValueError("no"), None).why == "no"


def test_the_file_at_fault_is_named_alone() -> None:
    """Where it is not the image, as the label map beside it."""
    error = unfit(Path("labels/3.png"), "has id 9", "write 255")
    assert Fault.of(error, "images/3.jpg").why == "labels/3.png: has id 9; write 255"
    assert Fault.of(ValueError("no"), "images/3.jpg").why == "images/3.jpg: no"

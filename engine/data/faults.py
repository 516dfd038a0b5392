"""Errors while loading images, as one line that names the image and the failed step.

A DataLoader forwards an error of its processes as a traceback that does not name the image. So a loading process
returns a `Fault` instead of its batch, and the training process raises the error that the fault describes:

    DataError       the data set is at fault: an image is missing, damaged or of another size than declared
    LoadingError    our code or a library is at fault: an augmentation failed, or something unexpected

Both name the image in `image`, so that a run can tell that it fails twice at the same image (jobs/runs/execute.py).
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mimbench.engine.data.datasets import UnfitError

log = logging.getLogger(__name__)


class AugmentationError(Exception):
    """A failed step of an augmentation; the message names the step, its magnitude and the reason."""


class DataError(ValueError):
    """A fault in the data, in one line. `image` is the file concerned, if any."""

    def __init__(self, message: str, image: str | None = None) -> None:
        super().__init__(message)
        self.image = image


class LoadingError(RuntimeError):
    """An error while loading `image` that is not a fault in the data, in one line."""

    def __init__(self, message: str, image: str | None = None) -> None:
        super().__init__(message)
        self.image = image


@runtime_checkable
class Named(Protocol):
    """A data set that knows the file of each item."""

    def image_name(self, index: int) -> str | None: ...


def image_of(dataset: Any, index: int) -> str | None:
    """Return the file of item `index` of `dataset`, also of a torch `Subset`; None if unknown."""
    if isinstance(dataset, Named):
        return dataset.image_name(index)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        return image_of(dataset.dataset, dataset.indices[index])
    return None


@dataclass(frozen=True)
class Fault:
    """The replacement of a batch that could not be loaded."""

    why: str  # one line
    image: str | None
    of_data: bool  # else our code or a library is at fault
    traceback: str

    @classmethod
    def of(cls, error: Exception, image: str | None) -> Fault:
        """Return the fault for `error`, raised while `image` was loaded."""
        of_data = isinstance(error, ValueError | OSError)
        line = " ".join(str(error).split())
        if not of_data and not isinstance(error, AugmentationError):
            line = f"{type(error).__name__}: {line}"
        named = isinstance(error, UnfitError)  # it names the file at fault, which may be the label map of the image
        why = line if image is None or named or image in line else f"{image}: {line}"
        return cls(why, image, of_data, "".join(traceback.format_exception(error)))

    def error(self) -> DataError | LoadingError:
        """Return the error to raise, and log its traceback."""
        log.debug("while loading an image:\n%s", self.traceback)
        return DataError(self.why, self.image) if self.of_data else LoadingError(self.why, self.image)

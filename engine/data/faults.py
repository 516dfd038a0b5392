"""Errors while images are loaded: which image it was and what was being done to it, in one line.

A DataLoader passes an error of its processes on as the text of a traceback, from which nobody can tell the image. So a
loading process returns a `Fault` in place of its batch, and the training process raises what the fault describes:

    DataError       the data set is at fault: an image is missing, damaged or not of the size that was said
    LoadingError    our code, or a library, is: an augmentation failed, or something that is not foreseen

Both say which image it was in `image`, by which a run that fails twice at one image knows it (jobs/runs/execute.py).
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

log = logging.getLogger(__name__)


class AugmentationError(Exception):
    """A step of an augmentation failed; the message names the step, its magnitude and the reason."""


class DataError(ValueError):
    """A fault in the data, in one line. `image` is the file it is about, if it is about one."""

    def __init__(self, message: str, image: str | None = None) -> None:
        super().__init__(message)
        self.image = image


class LoadingError(RuntimeError):
    """An error that is not the data's, met while `image` was loaded, in one line."""

    def __init__(self, message: str, image: str | None = None) -> None:
        super().__init__(message)
        self.image = image


@runtime_checkable
class Named(Protocol):
    """A data set that knows which file each of its items is made from."""

    def image_name(self, index: int) -> str | None: ...


def image_of(dataset: Any, index: int) -> str | None:
    """The file that item `index` of `dataset` is made from, of a torch `Subset` too; None if it does not say."""
    if isinstance(dataset, Named):
        return dataset.image_name(index)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        return image_of(dataset.dataset, dataset.indices[index])
    return None


@dataclass(frozen=True)
class Fault:
    """What stands in the place of a batch that could not be loaded."""

    why: str  # one line
    image: str | None
    of_data: bool  # else of our code, or of a library
    traceback: str

    @classmethod
    def of(cls, error: Exception, image: str | None) -> Fault:
        """The fault that `error` is, met while `image` was loaded."""
        of_data = isinstance(error, ValueError | OSError)
        line = " ".join(str(error).split())
        if not of_data and not isinstance(error, AugmentationError):
            line = f"{type(error).__name__}: {line}"
        why = line if image is None or image in line else f"{image}: {line}"
        return cls(why, image, of_data, "".join(traceback.format_exception(error)))

    def error(self) -> DataError | LoadingError:
        """The error to raise; where it came from goes to the log."""
        log.debug("while an image was loaded:\n%s", self.traceback)
        return DataError(self.why, self.image) if self.of_data else LoadingError(self.why, self.image)

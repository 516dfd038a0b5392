"""Images that cannot be decoded, met in the middle of a training: skipped, counted and named.

Another image takes the place of one that cannot be decoded. Which one comes from (seed, epoch, index), so that every
process, and a run that was resumed, puts the same one there. More than a set share of the images stops the run, for
then something is wrong with the data set, or with the disk. Errors other than `UnfitError` are not skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)

IN_A_ROW = 20  # where so many images cannot be decoded one after another, it is no matter of single files
NAMED = 20  # images in the result
SLOTS = 256  # of loading processes that may say at the same time that they found something


class Skipped:
    """Which samples of a data set could not be read, known to the process that trains and to all that load for it.

    Args:
        samples: in the data set.
        share: of the samples that may be skipped; 0 skips none.
    """

    def __init__(self, samples: int, share: float) -> None:
        self.samples, self.share = samples, share
        self._found_N = torch.zeros(samples if share else 0, dtype=torch.bool).share_memory_()
        self._finds = torch.zeros(SLOTS, dtype=torch.int64).share_memory_()  # by loading process; others only read it
        self._finds_known = 0
        self._faults: dict[int, str] = {}  # of the samples that have been logged

    def add(self, index: int, fault: UnfitError) -> None:
        """Sample `index` cannot be read; called where it was to be loaded.

        Raises:
            UnfitError: `fault` itself if none is to be skipped.
            ValueError: if by now there are too many.
        """
        if not self.share:
            raise fault
        self._found_N[index] = True
        worker = get_worker_info()
        self._finds[(worker.id + 1) % SLOTS if worker else 0] += 1
        if (count := self.count) > self.share * self.samples:
            raise ValueError(
                f"{count} of {self.samples} images cannot be decoded, more than skip={self.share:g} allows; "
                f"the last: {fault}"
            )

    @property
    def count(self) -> int:
        """Samples that could not be read."""
        return int(self._found_N.sum())

    def tell(self, fault_of: Callable[[int], str]) -> None:
        """Log what the loading processes found since the last call; `fault_of(index)` says what is wrong with one."""
        finds = int(self._finds.sum())
        if finds != self._finds_known:
            self._finds_known = finds
            for index in self._indices():
                if index not in self._faults:
                    self._faults[index] = fault_of(index)
                    if rank_and_world()[0] == 0:
                        log.warning("skipped, another image in its place: %s", self._faults[index])

    def gather(self) -> None:
        """Let every rank know what the others found; to be called by all of them."""
        if dist.is_initialized() and self.share:
            found: list[Any] = [None] * rank_and_world()[1]
            dist.all_gather_object(found, self._indices())
            for indices in found:
                self._mark(indices)

    def facts(self) -> dict[str, object]:
        """For `result.json`: how many, and what was wrong with the first of them."""
        if not self.share:
            return {}
        named = [self._faults[index] for index in sorted(self._faults)[:NAMED]]
        return {"skipped_images": self.count, **({"skipped": named} if named else {})}

    def state_dict(self) -> dict[str, list[int]]:
        """What a checkpoint keeps."""
        return {"found": self._indices()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """The inverse of `state_dict`."""
        self._mark(state["found"])

    def _indices(self) -> list[int]:
        return self._found_N.nonzero().flatten().tolist()

    def _mark(self, indices: Sequence[int]) -> None:
        if new := [index for index in indices if index < len(self._found_N) and not self._found_N[index]]:
            self._found_N[new] = True
            self._finds[0] += len(new)

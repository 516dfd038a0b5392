"""Images that cannot be decoded during a training: skipped, counted and reported.

Another image replaces one that cannot be decoded. It is drawn from (seed, epoch, index), so every process, and a
resumed run, uses the same replacement. If more than a set share of the images is skipped, the run stops, because then
the data set or the disk is at fault. Only `UnfitError` is skipped, no other error.
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

IN_A_ROW = 20  # if so many images in a row cannot be decoded, the fault is not in single files
NAMED = 20  # most images named in the result
SLOTS = 256  # loading processes that may report at the same time


class Skipped:
    """The unreadable samples of a data set, shared between the training process and its loading processes.

    Args:
        samples: number of samples in the data set.
        share: share of the samples that may be skipped; 0 skips none.
    """

    def __init__(self, samples: int, share: float) -> None:
        self.samples, self.share = samples, share
        self._found_N = torch.zeros(samples if share else 0, dtype=torch.bool).share_memory_()
        self._finds = torch.zeros(SLOTS, dtype=torch.int64).share_memory_()  # each loading process writes its slot
        self._finds_known = 0
        self._faults: dict[int, str] = {}  # of the samples that have been logged

    def add(self, index: int, fault: UnfitError) -> None:
        """Record that sample `index` cannot be read; called in the process that loads it.

        Raises:
            UnfitError: `fault` itself if `share` is 0.
            ValueError: if too many have been skipped.
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
        """The number of samples that could not be read."""
        return int(self._found_N.sum())

    def tell(self, fault_of: Callable[[int], str]) -> None:
        """Log the samples skipped since the last call; `fault_of(index)` returns the fault of one."""
        finds = int(self._finds.sum())
        if finds != self._finds_known:
            self._finds_known = finds
            for index in self._indices():
                if index not in self._faults:
                    self._faults[index] = fault_of(index)
                    if rank_and_world()[0] == 0:
                        log.warning("skipped and replaced by another image: %s", self._faults[index])

    def gather(self) -> None:
        """Share the skipped samples between all ranks; all of them must call this."""
        if dist.is_initialized() and self.share:
            found: list[Any] = [None] * rank_and_world()[1]
            dist.all_gather_object(found, self._indices())
            for indices in found:
                self._mark(indices)

    def facts(self) -> dict[str, object]:
        """Return the number of skipped images and the faults of the first, for `result.json`."""
        if not self.share:
            return {}
        named = [self._faults[index] for index in sorted(self._faults)[:NAMED]]
        return {"skipped_images": self.count, **({"skipped": named} if named else {})}

    def state_dict(self) -> dict[str, list[int]]:
        """Return the state for a checkpoint."""
        return {"found": self._indices()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Restore what `state_dict` returned."""
        self._mark(state["found"])

    def _indices(self) -> list[int]:
        return self._found_N.nonzero().flatten().tolist()

    def _mark(self, indices: Sequence[int]) -> None:
        if new := [index for index in indices if index < len(self._found_N) and not self._found_N[index]]:
            self._found_N[new] = True
            self._finds[0] += len(new)

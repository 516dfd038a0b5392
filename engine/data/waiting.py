"""Measures how long a training waits for its batches, and says when data loading is the bottleneck.

On a CPU the wait is the time until the next batch is there. A GPU works through a queue, so it may be busy meanwhile:
there the wait is the time between the end of one step and the start of the next on the GPU's own clock, which is read
only when `read` is called. The first batch, for which processes are started, counts as `starting`. Evaluations that
encode images measure the same (`Encoding`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import torch

from mimbench.engine.run.cores import cores_of_process
from mimbench.engine.run.process import largest

T = TypeVar("T")

NOTABLE = 0.15  # share of the time from which data loading is called the bottleneck
LONG = 20.0  # seconds of training before that is said


class Loading(TypedDict):
    """`loading` in `result.json`."""

    workers: int  # loading processes of each training process
    cores: int  # of each training process
    waiting: float  # share of the training's time, without its start, spent waiting for data
    waiting_seconds: float
    starting_seconds: float  # until the first batch, over all attempts


@dataclass
class Waits:
    """Seconds spent waiting for batches."""

    starting: float = 0.0  # for the first batch of each attempt
    seconds: float = 0.0  # for all others

    def share(self, of: float) -> float:
        """Return the share of `of` seconds, without the start, spent waiting: 0 to 1."""
        counted = of - self.starting
        return min(1.0, self.seconds / counted) if counted > 0 else 0.0


class Waiting:
    """The waits of this process for its batches."""

    def __init__(self) -> None:
        self._waits = Waits()
        self._gaps: list[tuple[Any, Any]] = []  # pairs of events of the GPU: asked for a batch, got it

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`, and measure the time until each is there."""
        first, begun, asked = True, time.perf_counter(), None
        for batch in batches:
            took = time.perf_counter() - begun
            if first:
                self._waits.starting += took
            elif asked is None:
                self._waits.seconds += took
            else:
                self._gaps.append((asked, _event()))
            yield batch
            first, begun, asked = False, time.perf_counter(), _event()

    def read(self) -> Waits:
        """Return the waits so far; on a GPU this waits for the work queued before the last batch."""
        for asked, got in self._gaps:
            got.synchronize()
            self._waits.seconds += asked.elapsed_time(got) / 1000
        self._gaps.clear()
        return Waits(self._waits.starting, self._waits.seconds)


class Encoding:
    """The time that this process spends on encoding images, and its waits for them; `over` the batches of each loader.

    encoding = Encoding()
    for batch in encoding.over(loader, loader.num_workers):
        ...
    encoding.loading(device)          # in every process
    """

    def __init__(self) -> None:
        self._waiting, self._seconds, self._workers = Waiting(), 0.0, 0

    def over(self, batches: Iterable[T], workers: int) -> Iterator[T]:
        """Yield `batches`, which `workers` loading processes load, and measure."""
        self._workers = max(self._workers, workers)
        begun = time.perf_counter()
        yield from self._waiting.over(batches)
        self._seconds += time.perf_counter() - begun

    def loading(self, device: torch.device) -> Loading | None:
        """Return the waits of the process that waited longest, in every process; None if none encoded an image."""
        waits = self._waiting.read()
        held = (waits.starting, waits.seconds, self._seconds, float(self._workers))
        starting, seconds, whole, workers = largest(held, device)
        if not whole:
            return None
        return {
            "workers": int(workers),
            "cores": cores_of_process(),
            "waiting": Waits(starting, seconds).share(whole),
            "waiting_seconds": seconds,
            "starting_seconds": starting,
        }


def _event() -> Any:
    """Return an event recorded now in the GPU's queue; None if this process uses no GPU."""
    if not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def advice(share: float, workers: int, cores: int, fitted: int) -> str:
    """Return one line that says that data loading is the bottleneck, and what to do.

    Args:
        share: share of the time spent waiting for data.
        workers: loading processes of a training process.
        cores: cores of a training process.
        fitted: what `compute.workers=auto` means for these cores.
    """
    ways = (
        [f"compute.workers={fitted} (auto)"] if workers < fitted else [f"more cores than the {cores} of this process"]
    )
    ways.append("images made smaller by `mimbench data shrink`")
    return (
        f"data loading is the bottleneck: {share:.0%} of the time is spent waiting for {workers} loading processes; "
        f"use {' or '.join(ways)}"
    )

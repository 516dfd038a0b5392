"""What the benchmarks share: two sides timed in turns, bytes that autograd keeps, targets and how they are printed.

    target = Target(floor=0.97, aim=1.05, limit=1.10)
    ours, peer = take_turns(ours, peer, repeats=5)          # least seconds of each
    Measured("B1", "s", ours, peer, target, "loss differs by 1e-8").line()

No benchmark itself: run by hand it does nothing.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Target:
    """Ratios to reach: below `floor` the benchmark fails, `limit` is what physics allows."""

    floor: float
    aim: float
    limit: float = float("inf")


@dataclass(frozen=True)
class Measured:
    """One outcome, in `unit`; without a target nothing is asked of it."""

    name: str
    unit: str
    ours: float
    peer: float
    target: Target | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times less ours is."""
        return self.peer / self.ours

    @property
    def failed(self) -> bool:
        """Below the floor, where there is one."""
        return self.target is not None and self.ratio < self.target.floor

    def line(self) -> str:
        """For people."""
        unit, asked = self.unit, ""
        if self.target:
            verdict = "BELOW THE FLOOR" if self.failed else "ok"
            limit = "" if self.target.limit == float("inf") else f", limit {self.target.limit:.3g}"
            asked = f"(floor {self.target.floor:.3g}, aim {self.target.aim:.3g}{limit}: {verdict})  "
        return (
            f"{self.name:<13} ours {self.ours:.4g} {unit}  peer {self.peer:.4g} {unit}  "
            f"ratio {self.ratio:.2f}  {asked}{self.note}"
        ).rstrip()

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ratio": self.ratio, "failed": self.failed}


def take_turns(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, *, progress: str = "", warm: bool = False
) -> tuple[float, float]:
    """Least seconds of each, after a warm-up of each unless both are `warm`; `progress` names a line per repeat."""
    best = [float("inf"), float("inf")]
    for turn in range(int(warm), repeats + 1):
        taken = [seconds(call) for call in (ours, peer)]
        if turn:
            best = [min(pair) for pair in zip(best, taken, strict=True)]
        if progress:
            what = f"repeat {turn} of {repeats}" if turn else "warm-up"
            print(f"{progress}: {what}, ours {taken[0]:.3g} s, peer {taken[1]:.3g} s", file=sys.stderr, flush=True)
    return best[0], best[1]


def least(call: Callable[[], object], repeats: int) -> float:
    """Least seconds of `call`, after a warm-up."""
    call()
    return min(seconds(call) for _ in range(repeats))


def seconds(call: Callable[[], object]) -> float:
    """How long `call` takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak_beyond(call: Callable[[], object]) -> float:
    """MiB by which a forked process grows at most while it does `call`: what is there before does not count."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_growth, args=(call, sender))
    process.start()
    sender.close()
    grown: float = receiver.recv()
    process.join()
    return grown


def _growth(call: Callable[[], object], sender: Connection) -> None:
    before = psutil.Process().memory_info().rss
    call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send(max(peak - before, 0) / 2**20)


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of `a` from `b`, by the norm of `b`."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


class Kept:
    """Counts the bytes of distinct storages: of tensors that autograd saves within `saving()`, and of others told."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    @property
    def bytes(self) -> int:
        """Of all that was counted; a storage whose memory was used again counts once, with its last size."""
        return sum(self._known.values())

    def take(self, tensor: Tensor) -> Tensor:
        """Count `tensor`, unless it is a weight of the model."""
        storage = tensor.untyped_storage()
        if self._known.get(storage.data_ptr()) != 0:
            self._known[storage.data_ptr()] = storage.nbytes()
        return tensor

    def saving(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Within, what autograd saves is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.take, lambda tensor: tensor)


def total_failed(results: Iterable[Measured]) -> int:
    """The exit status: 1 if any is below its floor."""
    return int(any(result.failed for result in results))

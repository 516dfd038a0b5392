"""Training states written by a thread, while the training goes on.

    saver = Saver(keep=2)
    saver.save(path, state)      # copies the state to host memory and returns; a thread writes the copy
    saver.check()                # raises the error of a write that has failed
    saver.wait()                 # until the write has ended; raises its error

On a GPU the copies go to pinned memory, which is allocated once and used again, so the training waits only until they
are queued. The copy needs as much host memory as the file has bytes. One state is written at a time: `save` first waits
for the one before. A write that is cut off leaves the previous states as they are (engine/training/state.py).

Tensors in shards (engine/training/sharding.py) are gathered one after the other: every process saves, and only those
that write keep what was gathered.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.engine.training.sharding import is_shard, whole_tensor
from mimbench.engine.training.state import prune, save_state


class Saver:
    """Writes states one after another in a thread, and keeps the newest `keep` of their directory.

    Args:
        keep: how many.
        writes: whether this process writes; others only take part in gathering.
    """

    def __init__(self, keep: int, *, writes: bool = True) -> None:
        self.keep, self.writes = keep, writes
        self._copier = Copier(keeps=writes)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Copy `state` and start to write the copy to `path`; waits for the write before.

        Raises:
            OSError: of the write before, naming its file.
        """
        self.wait()
        copied, arrived = self._copier.copy(state)
        if not self.writes:
            return
        self._thread = threading.Thread(target=self._write, args=(path, copied, arrived), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that has failed, without waiting for one that goes on.

        Raises:
            OSError: naming the file that could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the state is on disk.

        Raises:
            OSError: naming the file that could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, path: Path, state: dict[str, Any], arrived: Callable[[], None]) -> None:
        try:
            arrived()
            save_state(path, state)
            prune(path.parent, self.keep)
        except BaseException as error:  # raised again by `wait`
            self._error = error


class Copier:
    """Copies states to host memory. Tensors that share their values in a state share them in its copy.

    Args:
        keeps: whether to copy; if not, tensors in shards are gathered for the others, and dropped.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self.keeps = keeps
        self._pinned: dict[tuple[Any, ...], Tensor] = {}  # by place in the state; used again for the next copy

    def copy(self, state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """Return a copy of `state`, and a function that waits until its tensors have arrived from the device."""
        devices: set[torch.device] = set()
        copied: dict[str, Any] = self._copied(state, (), {}, devices)
        events = [_mark(device) for device in devices]

        def arrived() -> None:
            for event in events:
                event.synchronize()

        return copied, arrived

    def _copied(self, value: Any, place: tuple[Any, ...], known: dict[Any, Tensor], devices: set[torch.device]) -> Any:
        if is_shard(value):
            whole = whole_tensor(value)
            return self._to_host(whole, place, devices, own=True) if self.keeps else None
        if isinstance(value, Tensor):
            key = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride())
            if key not in known:
                known[key] = self._to_host(value.detach(), place, devices)
            return known[key]
        if isinstance(value, dict):
            copied = copy.copy(value)  # with its attributes: a model's state has the versions of its modules there
            copied.update({key: self._copied(item, (*place, key), known, devices) for key, item in value.items()})
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copied(item, (*place, index), known, devices) for index, item in enumerate(value))
        return value  # numbers and strings do not change

    def _to_host(
        self, tensor: Tensor, place: tuple[Any, ...], devices: set[torch.device], *, own: bool = False
    ) -> Tensor:
        """Return a copy in host memory; a tensor that is the copier's `own` and there already, as it is."""
        if tensor.device.type != "cuda":
            return tensor if own else tensor.clone()
        devices.add(tensor.device)
        kept = self._pinned.get(place)
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            kept = self._pinned[place] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return kept.copy_(tensor, non_blocking=True)


def _mark(device: torch.device) -> torch.cuda.Event:
    """Return an event that occurs when all work queued so far on the device's current stream is done."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event

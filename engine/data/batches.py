"""Batches that depend only on the seed and their number, so that a run can resume at any of them.

The order of an epoch depends on (seed, epoch), the augmentation of a sample on (seed, epoch, index). The number of
loading processes, the step of a resume and other random draws make no difference.

    batches = Batches(dataset, batch=64, seed=0, workers=2)
    for batch in batches.starting_at(1200): ...     # endless; starts at batch 1200 without loading earlier ones
    for batch in evaluation_loader(dataset, 64, workers=2): ...    # in order, every sample exactly once

Under torchrun each process gets its part of the same global batches. A data set's error is reported as one line that
names the image, also from a loading process (engine/data/faults.py); an `UnfitError` may be skipped
(engine/data/skipped_images.py).

Loading processes live as long as the iterator, through all epochs. The order of an epoch is computed from its number in
the training process, which sends them the keys, so they keep no state from an earlier epoch.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils import collate as torch_collate

from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.faults import Fault, image_of
from mimbench.engine.data.skipped_images import IN_A_ROW, Skipped
from mimbench.engine.data.waiting import Waiting
from mimbench.engine.run.cores import Workers, cores_of_process, loading_processes
from mimbench.engine.run.process import derived_seed, rank_and_world

log = logging.getLogger(__name__)

Key = tuple[int, int]  # epoch, index
Collate = Callable[[list[Any]], Any]
T = TypeVar("T")


class MapStyle(Protocol):
    """The interface of a map-style data set: a length, and items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class SeededDataset(Dataset[Any]):
    """`base` with each item's randomness derived only from (seed, epoch, index).

    Python's, NumPy's and torch's generators are seeded for each item. In the training process their states are
    restored afterwards; a loading process does not use them otherwise.

    With `skipped`, an item that raises `UnfitError` is replaced by another item of `base`, drawn from
    (seed, epoch, index), with the randomness of the original item.
    """

    def __init__(self, base: MapStyle, seed: int, skipped: Skipped | None = None) -> None:
        self.base, self.seed = base, seed
        self.skipped = Skipped(len(base), 0.0) if skipped is None else skipped

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, key: Key) -> Any:
        """Return an item.

        Raises:
            DataError, LoadingError: if it cannot be loaded.
        """
        return unless_fault(self.__getitems__([key])[0])

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """Return the items of one batch, or only the `Fault` of the first that cannot be loaded.

        Random states are saved and restored once for the whole batch.
        """
        items = []
        with _states_kept():
            for epoch, index in keys:
                items.append(self._item(epoch, index))
                if isinstance(items[-1], Fault):
                    return items[-1:]
        return items

    def fault_of(self, index: int) -> str:
        """Return the fault of item `index` of `base`, which could not be read before."""
        with _states_kept():
            try:
                self.base[index]
            except (ValueError, OSError) as error:
                return str(error)
        return f"item {index}, which was readable on the second try"

    def _item(self, epoch: int, index: int) -> Any:
        """Return item `index`, or its first readable replacement; a `Fault` if it cannot be loaded."""
        seed, place = derived_seed(self.seed, epoch, index), index
        for attempt in range(IN_A_ROW):
            _seed(seed)
            try:
                try:
                    return self.base[place]
                except UnfitError as error:
                    unreadable = error
                self.skipped.add(place, unreadable)
            except MemoryError:
                raise
            except Exception as error:
                return Fault.of(error, image_of(self.base, place))
            place = derived_seed(self.seed, epoch, index, attempt) % len(self.base)
        many = ValueError(f"{IN_A_ROW} images in a row cannot be decoded, the last: {unreadable}")
        return Fault.of(many, None)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


class _Plain(Dataset[Any]):
    """`base` unchanged, except that an item that cannot be loaded becomes a `Fault`."""

    def __init__(self, base: MapStyle) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.base[index]
        except MemoryError:
            raise
        except Exception as error:
            return Fault.of(error, image_of(self.base, index))


@contextmanager
def _states_kept() -> Iterator[None]:
    """Restore the training process's random states after the `with` block."""
    if get_worker_info():
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def batched(samples: list[Any]) -> Any:
    """Collate samples as torch does by default, but keep the memory order of images stored by pixel.

    Stacking such images (3, H, W) in their order takes a sixth of the time of reordering each.
    """
    return torch_collate.collate(samples, collate_fn_map=_COLLATE)


def _stacked(images: Sequence[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
    """Return tensors of one shape, stacked."""
    if images[0].ndim == 3 and not images[0].is_contiguous() and images[0].permute(1, 2, 0).is_contiguous():
        by_pixel = torch_collate.collate_tensor_fn([image.permute(1, 2, 0) for image in images])
        return by_pixel.permute(0, 3, 1, 2)
    return torch_collate.collate_tensor_fn(images)


def unless_fault(batch: Any) -> Any:
    """Return `batch`.

    Raises:
        DataError, LoadingError: if it is a `Fault`.
    """
    if isinstance(batch, Fault):
        raise batch.error()
    return batch


class _Collate:
    """Collates samples with `collate`; if one of them is a `Fault`, the batch is that fault."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, Fault):
                return sample
        return self.collate(samples)


class _Loader(DataLoader[Any]):
    """A DataLoader that raises the error of a `Fault` from its processes."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.worker_init_fn = partial(_end_if_orphan, os.getpid())
        return map(unless_fault, super().__iter__())


def _end_if_orphan(parent: int, worker: int) -> None:
    """End a loading process whose parent was killed before it began: torch looks only for a parent that changes later.

    It would wait for ever, and keep its parent's output open.
    """
    if os.getppid() != parent:
        os._exit(1)


_COLLATE = {**torch_collate.default_collate_fn_map, torch.Tensor: _stacked}


class Batches:
    """An endless sequence of training batches that can start anywhere.

    Args:
        dataset: map-style; its items may be random (see `SeededDataset`).
        batch: samples in one micro-batch of this process.
        seed: seed of the order and of every item's randomness.
        accumulate: micro-batches in an optimiser step. An epoch is a whole number of optimiser steps, so the
            samples of a step do not depend on its division into micro-batches and processes.
        collate: function from a list of samples to a batch; None: `batched`.
        workers: loading processes; 0 loads in this one; "auto": `loading_workers`.
        shuffle: use a new order each epoch, else the data set's order.
        drop_last: leave out the samples that do not fill the last optimiser step of an epoch. Otherwise the last
            batch is smaller, which requires a single process without accumulation.
        paired: divide a step so that its i-th sample from the front and from the back are in the same micro-batch, at
            mirrored positions.
        prepare: function applied to each batch in the training process when it is used, possibly long after loading.
        skip: share of the samples that may be skipped because they cannot be decoded.

    Attributes:
        skipped: the skipped samples.
        workers: the number of loading processes.
        waiting: the time spent waiting for batches.

    Raises:
        ValueError: if an epoch has no batch.
    """

    def __init__(
        self,
        dataset: MapStyle,
        batch: int,
        seed: int,
        *,
        accumulate: int = 1,
        collate: Collate | None = None,
        workers: Workers = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        paired: bool = False,
        prepare: Callable[[Any], Any] | None = None,
        skip: float = 0.0,
    ) -> None:
        self.skipped = Skipped(len(dataset), skip)
        self.dataset = SeededDataset(dataset, seed, self.skipped)
        self.batch, self.seed, self.accumulate = batch, seed, accumulate
        self.collate, self.shuffle, self.prepare = collate, shuffle, prepare
        self.workers = loading_workers(workers, len(dataset))
        self.paired, self.waiting = paired, Waiting()
        self.rank, self.world = rank_and_world()
        samples, step = len(dataset), batch * self.world * accumulate
        if not drop_last and step != batch:
            raise ValueError("drop_last=False requires a single process and accumulate=1")
        whole = samples // step if drop_last else -(-samples // step)
        if not whole:
            raise ValueError(
                f"{samples} training samples do not fill one optimiser step of {step}: lower the batch or add images"
            )
        self._length = whole * accumulate

    def __len__(self) -> int:
        """Return the number of micro-batches in an epoch."""
        return self._length

    @property
    def images_per_step(self) -> int:
        """The number of samples in one optimiser step, over all processes."""
        return self.batch * self.world * self.accumulate

    def starting_at(self, position: int) -> Iterator[Any]:
        """Yield batches endlessly, from micro-batch `position` (0-based, counted over all epochs)."""
        loader = _Loader(
            self.dataset,
            batch_sampler=_Keys(self, position),
            num_workers=self.workers,
            collate_fn=_Collate(self.collate or batched),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise it would use the training's generator
        )
        for batch in self.waiting.over(loader):
            self.skipped.tell(self.dataset.fault_of)
            yield batch if self.prepare is None else self.prepare(batch)

    def facts(self) -> dict[str, object]:
        """Return the skipped samples for `result.json`; empty if skipping is off."""
        self.skipped.tell(self.dataset.fault_of)
        return self.skipped.facts()

    def order(self, epoch: int) -> torch.Tensor:
        """Return the indices of all samples in the order of `epoch`, (samples,) int64."""
        samples = len(self.dataset)
        if not self.shuffle:
            return torch.arange(samples)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch, -1))
        return torch.randperm(samples, generator=generator)


class _Keys(Sampler[list[Key]]):
    """The endless (epoch, index) keys of this process's batches, from a position."""

    def __init__(self, batches: Batches, position: int) -> None:
        self.batches = batches
        self.position = position

    def __iter__(self) -> Iterator[list[Key]]:
        batches, order, ordered = self.batches, torch.empty(0), -1
        for position in itertools.count(self.position):
            epoch, number = divmod(position, len(batches))
            if epoch != ordered:
                order, ordered = batches.order(epoch), epoch
            parts = batches.accumulate * batches.world
            step, part = divmod(number * batches.world + batches.rank, parts)
            places = step * batches.images_per_step + step_places(part, parts, batches.batch, batches.paired)
            yield [(epoch, index) for index in order[places[places < len(order)]].tolist()]


def step_places(part: int, parts: int, batch: int, paired: bool = False) -> torch.Tensor:
    """Return the positions in an optimiser step of the samples of micro-batch `part` of `parts`: (batch,).

    They are consecutive or, if `paired`, half from the front and half from the back: samples i and
    parts * batch - 1 - i of the step become i' and batch - 1 - i' of a micro-batch.
    """
    if not paired:
        return torch.arange(part * batch, (part + 1) * batch)
    half, end = batch // 2, parts * batch
    front = torch.arange(part * half, (part + 1) * half)
    return torch.cat([front, end - 1 - front.flip(0)])


def evaluation_loader(
    dataset: MapStyle, batch: int, workers: Workers, collate: Collate | None = None
) -> DataLoader[Any]:
    """Return a loader of every sample exactly once, in order; the last batch may be smaller."""
    return _Loader(
        _Plain(dataset),
        batch_size=batch,
        num_workers=min(loading_workers(workers, _length(dataset)), -(-_length(dataset) // batch)),
        collate_fn=_Collate(collate or batched),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def loading_workers(workers: Workers, samples: int) -> int:
    """Return the number of loading processes: `workers`, or for "auto" what fits this process's cores and `samples`."""
    if workers != "auto":
        return workers
    cores = cores_of_process()
    fitting = loading_processes(cores, torch.cuda.is_available(), samples)
    if rank_and_world()[0] == 0:
        _tell(fitting, cores)
    return fitting


@lru_cache
def _tell(fitting: int, cores: int) -> None:
    """Log what "auto" means here, once per process."""
    log.info("compute.workers=auto: %d data loading processes for %d cores of this process", fitting, cores)


def _length(dataset: Sized) -> int:
    return len(dataset)


def move(batch: Any, device: torch.device) -> Any:
    """Return `batch` with every tensor in its tuples, lists and dictionaries moved to `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(item, device) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(item, device) for item in batch)
    return batch

"""Repeat images of rare categories in training, as LVIS's recipes do.

factors = repeat_factors(split, images, 0.001)       # equal to detectron2's RepeatFactorTrainingSampler
batches = RepeatedBatches(dataset, factors, batch, seed)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mimbench.det.data.coco import CocoSplit
from mimbench.engine.data.batches import Batches, MapStyle
from mimbench.engine.data.faults import image_of
from mimbench.engine.run.process import derived_seed


def repeat_factors(split: CocoSplit, images: Tensor, threshold: float) -> Tensor:
    """Return the mean number of repetitions of each of `images` (indices in `split`): float32 (I,), at least 1.

    sqrt(threshold / share of `images` with the category) for the rarest category on the image (LVIS, appendix B.2).
    """
    labels_of = [set(split.objects_labels(index).tolist()) for index in images.tolist()]
    shown: dict[int, int] = {}
    for labels in labels_of:
        for label in labels:
            shown[label] = shown.get(label, 0) + 1
    of_category = {label: max(1.0, math.sqrt(threshold / (count / len(labels_of)))) for label, count in shown.items()}
    return torch.tensor([max((of_category[label] for label in labels), default=1.0) for labels in labels_of])


def drawn_once(factors: Tensor, generator: torch.Generator) -> Tensor:
    """Return image indices in random order, each repeated by its factor; a fraction is a probability.

    Draws the same numbers from `generator` as detectron2's RepeatFactorTrainingSampler for an epoch.
    """
    whole, fraction = factors.trunc(), factors - factors.trunc()
    times = whole + (torch.rand(len(fraction), generator=generator) < fraction).float()
    places = torch.repeat_interleave(torch.arange(len(factors)), times.long())
    return places[torch.randperm(len(places), generator=generator)]


class Repeated:
    """A data set whose item `i + n * len(base)` is the n-th repetition of item i, each with separate random numbers."""

    def __init__(self, base: MapStyle, times: int) -> None:
        self.base, self.times = base, times

    def __len__(self) -> int:
        return len(self.base) * self.times

    def image_name(self, index: int) -> str | None:
        """Return the file of item `index`, if `base` knows it."""
        return image_of(self.base, index % len(self.base))

    def __getitem__(self, index: int) -> Any:
        return self.base[index % len(self.base)]


class RepeatedBatches(Batches):
    """Batches with item i on average `factors[i]` times per epoch. An epoch has a fixed number of steps."""

    def __init__(self, dataset: MapStyle, factors: Tensor, batch: int, seed: int, **options: Any) -> None:
        """`options` are those of `Batches`.

        Raises:
            ValueError: if an epoch is shorter than one step.
        """
        super().__init__(Repeated(dataset, math.ceil(float(factors.max()))), batch, seed, **options)
        self.factors = factors
        steps = int(factors.double().sum()) // self.images_per_step
        if not steps:
            raise ValueError(
                f"{len(dataset)} training samples, repeated, do not fill a step of {self.images_per_step}; reduce batch"
            )
        self._length = steps * self.accumulate

    def order(self, epoch: int) -> Tensor:
        """Return the samples of `epoch` (samples,) int64: the next part of an endless sequence of `drawn_once`."""
        per_epoch = self._length * self.batch * self.world
        begin, end, before, parts = epoch * per_epoch, (epoch + 1) * per_epoch, 0, []
        draw = 0
        while before < end:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, draw, -1))
            places = drawn_once(self.factors, generator)
            if before + len(places) > begin:
                parts.append(self._numbered(places)[max(begin - before, 0) : end - before])
            before, draw = before + len(places), draw + 1
        return torch.cat(parts)

    def _numbered(self, places: Tensor) -> Tensor:
        """Replace each index by the item of its 1st, 2nd ... occurrence."""
        order = places.argsort(stable=True)
        first = torch.searchsorted(places[order], places[order])
        occurrence = torch.empty_like(places)
        occurrence[order] = torch.arange(len(places)) - first
        return places + occurrence * len(self.factors)

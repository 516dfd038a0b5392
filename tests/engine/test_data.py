"""Batches depend on the seed and their number alone."""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch

from engine.data import Batches, DataError, SeededDataset, evaluation_loader, move


class Draws:
    """Each item is its index and a draw from each generator."""

    def __init__(self, samples: int = 23) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), np.random.rand(), float(torch.rand(()))


class Broken(Draws):
    """Item 5 cannot be read."""

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        if index == 5:
            raise ValueError("photo.jpg is cut short: copy it again")
        return super().__getitem__(index)


def _plain(batch: list[torch.Tensor]) -> list[list[float]]:
    return [part.tolist() for part in batch]


def _taken(batches: Batches, position: int, count: int) -> list[list[list[float]]]:
    return [_plain(batch) for batch in itertools.islice(batches.starting_at(position), count)]


def test_a_batch_is_the_same_wherever_one_starts_and_whoever_loads() -> None:
    whole = _taken(Batches(Draws(), 4, seed=1), 0, 12)
    assert _taken(Batches(Draws(), 4, seed=1), 7, 5) == whole[7:]
    random.seed(99)
    torch.manual_seed(99)
    assert _taken(Batches(Draws(), 4, seed=1, workers=2), 3, 9) == whole[3:]
    assert _taken(Batches(Draws(), 4, seed=2), 0, 12) != whole


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    batches = Batches(Draws(24), 4, seed=0)
    assert len(batches) == 6
    epochs = [[int(i) for batch in _taken(batches, start, 6) for i in batch[0]] for start in (0, 6)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_augmentation_of_a_sample_is_new_each_epoch() -> None:
    dataset = SeededDataset(Draws(), seed=0)
    assert dataset[0, 3] == dataset[0, 3]
    assert dataset[0, 3][1:] != dataset[1, 3][1:]
    assert dataset[0, 3][1:] != dataset[0, 4][1:]


def test_loading_here_leaves_the_generators_as_they_were() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    _taken(Batches(Draws(), 4, seed=1), 0, 2)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


def test_the_samples_of_a_step_do_not_depend_on_how_it_is_cut() -> None:
    whole = _taken(Batches(Draws(30), 8, seed=0), 0, 6)  # 3 steps an epoch, 6 samples left out
    cut = _taken(Batches(Draws(30), 2, seed=0, accumulate=4), 0, 24)
    joined = [[[x for micro in cut[i : i + 4] for x in micro[k]] for k in range(4)] for i in range(0, 24, 4)]
    assert joined == whole


def test_processes_share_out_the_same_global_batches() -> None:
    whole = _taken(Batches(Draws(30), 8, seed=0), 0, 6)
    shares = []
    for rank in range(2):
        with patch("engine.data.rank_and_world", return_value=(rank, 2)):
            shares.append(_taken(Batches(Draws(30), 4, seed=0), 0, 6))
    joined = [[one[k] + two[k] for k in range(4)] for one, two in zip(*shares, strict=True)]
    assert joined == whole


def test_without_drop_last_every_sample_comes() -> None:
    batches = Batches(Draws(10), 4, seed=0, drop_last=False, shuffle=False)
    assert len(batches) == 3
    assert [len(batch[0]) for batch in _taken(batches, 0, 4)] == [4, 4, 2, 4]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 training samples do not fill one optimiser step of 8"):
        Batches(Draws(3), 4, seed=0, accumulate=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_data_is_one_line(workers: int) -> None:
    batches = Batches(Broken(), 4, seed=0, workers=workers, shuffle=False)
    with pytest.raises(ValueError) as caught:
        _taken(batches, 0, 3)
    assert str(caught.value) == "photo.jpg is cut short: copy it again"
    with pytest.raises(DataError) as caught:
        list(evaluation_loader(Broken(), 4, workers))
    assert str(caught.value) == "photo.jpg is cut short: copy it again"


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_in_order(workers: int) -> None:
    batches = [_plain(batch) for batch in evaluation_loader(Draws(10), 4, workers)]
    assert [index for batch in batches for index in batch[0]] == list(range(10))


class _Pair(NamedTuple):
    image: torch.Tensor
    name: str


def test_move_goes_through_containers() -> None:
    batch: Any = {"a": [torch.ones(2), 3], "b": _Pair(torch.zeros(1), "x")}
    moved = move(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == 3
    assert moved["b"].image.is_meta
    assert moved["b"].name == "x"

"""Batches depend on the seed and their number alone."""

from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch

from mimbench.engine.data.batches import Batches, SeededDataset, batched, evaluation_loader, move
from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.faults import DataError
from mimbench.engine.data.skipped_images import Skipped


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
        with patch("mimbench.engine.data.batches.rank_and_world", return_value=(rank, 2)):
            shares.append(_taken(Batches(Draws(30), 4, seed=0), 0, 6))
    joined = [[one[k] + two[k] for k in range(4)] for one, two in zip(*shares, strict=True)]
    assert joined == whole


def test_without_drop_last_every_sample_comes() -> None:
    batches = Batches(Draws(10), 4, seed=0, drop_last=False, shuffle=False)
    assert len(batches) == 3
    assert [len(batch[0]) for batch in _taken(batches, 0, 4)] == [4, 4, 2, 4]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 training samples .* 8"):
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


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_live_on_see_each_epochs_own_order(workers: int) -> None:
    """The originals' loader keeps its workers too, but gives epochs 0 and 1 the same order (CrossMAE on timm 0.9.7)."""
    stream = Batches(Draws(24), 4, seed=0, workers=workers).starting_at(0)
    orders = [[int(i) for _ in range(6) for i in next(stream)[0]] for _ in range(3)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders == [Batches(Draws(24), 4, seed=0).order(epoch).tolist() for epoch in range(3)]


# ----------------------------------------------------------------------------------------- samples that cannot be read


class Damaged(Draws):
    """Items 5 and 11 cannot be decoded."""

    bad: tuple[int, ...] = (5, 11)

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        item = super().__getitem__(index)
        if index in self.bad:
            raise unfit(Path(f"{index}.jpg"), "the image is cut short", "copy it again")
        return item


def test_what_cannot_be_decoded_is_replaced_and_named(caplog: pytest.LogCaptureFixture) -> None:
    batches = Batches(Damaged(24), 4, seed=0, skip=0.1)
    with caplog.at_level(logging.WARNING):
        taken = _taken(batches, 0, 6)
    places = [int(i) for batch in taken for i in batch[0]]
    asked = batches.order(0).tolist()
    changed = [(want, have) for want, have in zip(asked, places, strict=True) if want != have]
    assert sorted(want for want, _ in changed) == [5, 11]
    assert not {have for _, have in changed} & {5, 11}
    assert [record.message for record in caplog.records] == [
        f"skipped and replaced by another image: {index}.jpg: the image is cut short; copy it again"
        for index in sorted((5, 11), key=asked.index)
    ]
    assert batches.facts() == {
        "skipped_images": 2, "skipped": [f"{i}.jpg: the image is cut short; copy it again" for i in (5, 11)],
    }  # fmt: skip
    assert Batches(Draws(), 4, seed=0).facts() == {}
    assert Batches(Draws(), 4, seed=0, skip=0.1).facts() == {"skipped_images": 0}


def test_a_replacement_keeps_the_randomness_of_what_it_stands_for() -> None:
    item = SeededDataset(Damaged(24), 3, Skipped(24, 0.5))[2, 5]
    assert item[0] not in Damaged.bad
    assert item[1:] == SeededDataset(Draws(24), 3)[2, 5][1:]


def test_replacements_are_the_same_whoever_loads_and_wherever_one_starts() -> None:
    def made(rank: int = 0, world: int = 1, **settings: Any) -> Batches:
        with patch("mimbench.engine.data.batches.rank_and_world", return_value=(rank, world)):
            return Batches(Damaged(30), 8 // world, seed=0, skip=0.1, **settings)

    whole = _taken(made(), 0, 12)  # the second damaged image is in the last of them
    assert _taken(made(), 4, 8) == whole[4:]
    loaded = made(workers=2)
    assert _taken(loaded, 0, 12) == whole
    assert loaded.facts()["skipped_images"] == 2
    shares = [_taken(made(rank, 2), 0, 12) for rank in range(2)]
    assert [[one[k] + two[k] for k in range(4)] for one, two in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_the_share_stops_in_one_line(workers: int) -> None:
    expected = (
        "2 of 24 images cannot be decoded, more than skip=0.05 allows; "
        "the last: 11.jpg: the image is cut short; copy it again"
    )
    with pytest.raises(ValueError) as caught:
        _taken(Batches(Damaged(24), 4, seed=0, skip=0.05, workers=workers, shuffle=False), 0, 6)
    assert str(caught.value) == expected
    with pytest.raises(ValueError, match=r"^5\.jpg: the image is cut short; copy it again$"):
        _taken(Batches(Damaged(24), 4, seed=0, workers=workers, shuffle=False), 0, 6)


def test_a_data_set_that_is_gone_stops_at_once() -> None:
    class Gone(Damaged):
        bad = tuple(range(1000))

    with pytest.raises(ValueError, match="20 images in a row cannot be decoded, the last: "):
        _taken(Batches(Gone(1000), 4, seed=0, skip=0.9), 0, 1)
    with pytest.raises(ValueError, match=r"photo\.jpg is cut short"):  # not a matter of decoding: never skipped
        _taken(Batches(Broken(24), 4, seed=0, skip=0.9), 0, 6)


def test_what_was_skipped_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    before, after = (Batches(Damaged(24), 4, seed=0, skip=0.1) for _ in range(2))
    _taken(before, 0, 6)
    after.skipped.load_state_dict(before.skipped.state_dict())
    assert after.facts() == before.facts()
    smaller = Batches(Damaged(10), 4, seed=0, skip=0.1)
    smaller.skipped.load_state_dict(before.skipped.state_dict())
    assert smaller.facts()["skipped_images"] == 1


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("workers", [0, 1])
def test_images_stay_by_pixel_in_a_batch(workers: int) -> None:
    by_pixel = torch.arange(5 * 4 * 6 * 3).view(5, 4, 6, 3).permute(0, 3, 1, 2)
    samples = [_Pair(image, str(place)) for place, image in enumerate(by_pixel)]
    [batch] = evaluation_loader(samples, 5, workers)
    assert torch.equal(batch.image, by_pixel)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert list(batch.name) == list("01234")
    plain = batched([_Pair(image.contiguous(), "") for image in by_pixel]).image
    assert torch.equal(plain, by_pixel)
    assert plain.is_contiguous()

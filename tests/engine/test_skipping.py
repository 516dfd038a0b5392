"""What ranks tell each other of images that cannot be decoded."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.engine.data import skipped_images as skipping
from mimbench.engine.data.datasets import unfit
from mimbench.engine.data.skipped_images import Skipped

FAULT = unfit(Path("a.jpg"), "the image is cut short", "copy it again")


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_knows_what_the_others_found_and_the_first_names_it(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gathered(into: list[Any], mine: list[int]) -> None:
        into[rank], into[1 - rank] = mine, [7, 2]

    monkeypatch.setattr(skipping.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(skipping.dist, "all_gather_object", gathered)
    monkeypatch.setattr(skipping, "rank_and_world", lambda: (rank, 2))
    skipped = Skipped(10, 0.5)
    skipped.add(2, FAULT)
    with caplog.at_level(logging.WARNING):
        skipped.gather()
        skipped.tell(lambda index: f"{index}.jpg")
    assert skipped.state_dict() == {"found": [2, 7]}
    assert skipped.facts() == {"skipped_images": 2, "skipped": ["2.jpg", "7.jpg"]}
    assert len(caplog.records) == (2 if rank == 0 else 0)


def test_processes_share_what_they_know() -> None:
    skipped = Skipped(10, 0.5)
    assert skipped._found_N.is_shared()
    other = pickle.loads(pickle.dumps(Skipped(10, 0.0)))
    assert other.facts() == {}
    with pytest.raises(ValueError, match=r"^a\.jpg: the image is cut short; copy it again$"):
        other.add(3, FAULT)


def test_only_so_many_are_named_in_the_result() -> None:
    skipped = Skipped(100, 0.9)
    for index in range(50):
        skipped.add(index, FAULT)
    skipped.tell(str)
    assert skipped.facts() == {"skipped_images": 50, "skipped": [str(index) for index in range(20)]}
    assert torch.equal(skipped._found_N.nonzero().flatten(), torch.arange(50))

"""The nearest training images against a brute force in NumPy, with ties as they are defined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mimbench.cls.frozen import nearest as module
from mimbench.cls.frozen.nearest import nearest

BLOCKS = [(1024, 16_384), (5, 7), (37, 30), (1, 1)]


@pytest.fixture(params=BLOCKS, ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several sizes."""
    monkeypatch.setattr(module, "QUERIES", request.param[0])
    monkeypatch.setattr(module, "TRAINS", request.param[1])


def _brute(query: np.ndarray, train: np.ndarray, k: int) -> np.ndarray:
    """Indices (Q, K) of the most similar rows, the first among equals."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, train)]
    similarity = unit[0] @ unit[1].T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 5, 40])
def test_neighbours_are_those_of_brute_force(k: int) -> None:
    generator = np.random.default_rng(0)
    query, train = generator.normal(size=(37, 6)), generator.normal(size=(120, 6))
    value, index = nearest(torch.tensor(query), torch.tensor(train), k)
    assert index.tolist() == _brute(query, train, k).tolist()
    assert (value.diff(dim=1) <= 0).all()
    cosine = torch.cosine_similarity(torch.tensor(query)[:, None], torch.tensor(train)[index], dim=2)
    torch.testing.assert_close(value, cosine.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 3, 10, 64])
def test_of_equal_neighbours_the_first_is_nearer(k: int) -> None:
    """Rows of +-1 in 4 dimensions have similarities that floats hold exactly, and most of them are tied."""
    generator = np.random.default_rng(1)
    query, train = (generator.choice([-1.0, 1.0], size=(rows, 4)) for rows in (13, 64))
    _, index = nearest(torch.tensor(query), torch.tensor(train), k)
    assert index.tolist() == _brute(query, train, k).tolist()


@pytest.mark.usefixtures("blocks")
def test_classes_that_come_one_after_another_are_found() -> None:
    """In an image folder the nearest images come all at once, and late."""
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(8, 6)) * 3
    train = np.repeat(centres, 20, axis=0) + generator.normal(size=(160, 6))
    query = np.repeat(centres, 3, axis=0) + generator.normal(size=(24, 6))
    _, index = nearest(torch.tensor(query), torch.tensor(train), 25)
    assert index.tolist() == _brute(query, train, 25).tolist()


def test_half_precision_is_taken_as_it_is() -> None:
    torch.manual_seed(0)
    query, train = torch.randn(9, 16).half(), torch.randn(50, 16).half()
    _, index = nearest(query, train, 5)
    assert index.tolist() == _brute(query.double().numpy(), train.double().numpy(), 5).tolist()


def test_no_more_similarities_are_held_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 10)
    monkeypatch.setattr(module, "TRAINS", 16)
    widest = []
    plain = torch.mm

    def mm(*arguments: Any, out: torch.Tensor) -> torch.Tensor:
        widest.append(out.numel())
        return plain(*arguments, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    nearest(torch.randn(37, 6), torch.randn(120, 6), 4)
    assert max(widest) == 10 * 16

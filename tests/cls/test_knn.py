"""k-NN against its plain form and against scikit-learn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mimbench.cls.config import Knn
from mimbench.cls.frozen import knn, nearest
from mimbench.cls.run import run
from mimbench.engine.run.config import Compute
from tests.cls.conftest import TINY

KS = (1, 5, 10, 20)
SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu")


def _clouds(seed: int, train: int = 120, queries: int = 37) -> tuple[torch.Tensor, ...]:
    """Overlapping clouds of 4 classes in 6 dimensions, so that predictions are often wrong, and differ with k."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.arange(train + queries) % 4
    points = centres[labels] + 1.2 * torch.randn(train + queries, 6, generator=generator)
    return points[train:], labels[train:], points[:train], labels[:train]


def _plain(query: np.ndarray, train: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> list[int]:
    """One query at a time, as the protocol is written."""
    predictions = []
    for row in query:
        similarity = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
        votes = np.zeros(labels.max() + 1)
        for index in np.argsort(-similarity)[:k]:
            votes[labels[index]] += np.exp(similarity[index] / temperature)
        predictions.append(int(votes.argmax()))
    return predictions


@pytest.mark.parametrize("blocks", [(1024, 16_384), (5, 7), (37, 30)])
def test_predictions_are_those_of_the_plain_form(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (knn, nearest):
        monkeypatch.setattr(module, "QUERIES", blocks[0])
    monkeypatch.setattr(nearest, "TRAINS", blocks[1])
    for seed in range(3):
        query, _, train, labels = _clouds(seed)
        found = knn.classify(query, train, labels, classes=4, neighbours=KS, temperature=0.07)
        for k in KS:
            expected = _plain(query.double().numpy(), train.double().numpy(), labels.numpy(), k, 0.07)
            assert found[k].tolist() == expected


def test_predictions_are_those_of_scikit_learn() -> None:
    query, answers, train, labels = _clouds(8)
    found = knn.classify(query, train, labels, classes=4, neighbours=KS, temperature=0.07)
    for k in KS:
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        reference.fit(train.numpy(), labels.numpy())
        assert found[k].tolist() == reference.predict(query.numpy()).tolist()
    assert 0.2 < (found[10] == answers).float().mean() < 1


def test_labels_weigh_by_similarity_and_not_by_count() -> None:
    similarity, labels = torch.tensor([[0.9, 0.2, 0.2]]), torch.tensor([[1, 0, 0]])
    found = knn.vote(similarity, labels, 2, (1, 3), temperature=0.07)
    assert (found[1].item(), found[3].item()) == (1, 1)
    assert knn.vote(similarity, labels, 2, (3,), temperature=100)[3].item() == 0


def test_votes_count_however_far_the_neighbours_are() -> None:
    """With a low temperature exp(s / T) of distant neighbours is below what float32 holds, and so are all votes."""
    query, train = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2]])
    labels = torch.tensor([0, 1, 2])
    for temperature in (0.07, 0.01, 0.001):
        found = knn.classify(query, train, labels, classes=3, neighbours=(1, 3), temperature=temperature)
        expected = {k: _plain(query.double().numpy(), train.double().numpy(), labels.numpy(), k, 0.07) for k in (1, 3)}
        assert {k: guess.tolist() for k, guess in found.items()} == expected == {1: [2], 3: [2]}


def test_a_run_measures_every_k(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = Knn(
        data=str(folder), checkpoint=str(checkpoint), image=16, neighbours=(5, 20), compute=SMALL, eval_batch=10
    )
    outcome = run(config, new_run(config))
    assert set(outcome.metrics) == {"knn_top1", "knn_top1_k5", "knn_top1_k20"}
    assert outcome.metrics["knn_top1"] == outcome.metrics["knn_top1_k20"]
    assert outcome.metrics["knn_top1"] * 21 / 100 == pytest.approx(round(outcome.metrics["knn_top1"] * 21 / 100))
    assert outcome.metrics["knn_top1"] > 60  # colours are easy even for random weights
    assert outcome.family == "mae"
    assert outcome.facts["k"] == 20
    assert outcome.facts["feature"] == "mean of the patch tokens after the checkpoint's final norm"
    assert run(config, new_run(config)).metrics == outcome.metrics


def test_other_pools_and_blocks_are_measured_beside(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]
) -> None:
    config = Knn(
        data=str(folder), checkpoint=str(checkpoint), image=16, neighbours=(5, 20), compute=SMALL,
        more_pools=("cls", "both"), layers=2,
    )  # fmt: skip
    plain = run(replace(config, more_pools=(), layers=1), new_run(config))
    found = run(config, new_run(config)).metrics
    others = {f"knn_top1_{pool}_block{block}" for pool in ("avg", "cls", "both") for block in (1, 2)}
    assert set(found) == set(plain.metrics) | others - {"knn_top1_avg_block2"}
    assert plain.metrics.items() <= found.items()
    by_class_token = run(replace(config, pool="cls", more_pools=(), layers=1), new_run(config)).metrics
    assert found["knn_top1_cls_block2"] == by_class_token["knn_top1"]
    with pytest.raises(ValueError, match=r"layers=3 exceeds .* 2 blocks; use layers=2"):
        run(replace(config, layers=3), new_run(config))


def test_a_validation_set_that_is_the_training_set_is_found_and_said(
    folder: Path, checkpoint: Path, tmp_path: Path, new_run: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "train", tmp_path / "data" / "train")
    shutil.copytree(folder / "train", tmp_path / "data" / "val")
    config = Knn(checkpoint=str(checkpoint), image=16, neighbours=(5, 20), compute=SMALL, eval_batch=7)
    same = run(replace(config, data=str(tmp_path / "data")), new_run(config))
    assert same.facts["validation"] == "the validation images are the training images"
    assert same.facts["val_in_train"] == "72 of 72 looked for"
    assert "accuracy means little" in caplog.text
    honest = run(replace(config, data=str(folder)), new_run(config))
    assert honest.facts["val_in_train"] == "none of 21 looked for"
    assert honest.facts["validation"] == "val split"


def test_too_many_neighbours_are_refused_before_any_work(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = Knn(data=str(folder), encoder=TINY, image=16, compute=SMALL)
    with pytest.raises(ValueError, match=r"k=200 exceeds the 72 training images; .* neighbours=10,20 k=20"):
        run(config, new_run(config))

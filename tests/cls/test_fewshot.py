"""Few-shot classifiers against scikit-learn's, and the draws they are fitted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from mimbench.cls.config import FewShot
from mimbench.cls.frozen.fewshot import drawn, logistic, moments, ridge
from mimbench.cls.run import run
from mimbench.engine.run.config import Compute
from tests.cls.conftest import TINY

SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu")


def _problem(images: int, width: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping clouds: features, labels, and queries."""
    generator = torch.Generator().manual_seed(images)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.arange(images) % classes
    noise = torch.randn(images, width, generator=generator)
    return centres[labels] + noise + 0.5, labels, torch.randn(200, width, generator=generator) + 0.5


@pytest.mark.parametrize("images", [8, 40], ids=["fewer images than dimensions", "more"])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_ridge_is_that_of_scikit_learn(images: int, alpha: float) -> None:
    features, labels, queries = _problem(images)
    reference = RidgeClassifier(alpha=alpha).fit(features.double().numpy(), labels.numpy())
    scores = ridge(features, labels, 4, alpha)(queries)
    expected = (reference.decision_function(queries.double().numpy()) + 1) / 2  # its targets are -1 and 1
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert scores.argmax(1).tolist() == reference.predict(queries.numpy()).tolist()


@pytest.mark.parametrize("images", [8, 40])
@pytest.mark.parametrize("inverse_penalty", [0.1, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(images: int, inverse_penalty: float) -> None:
    features, labels, queries = _problem(images)
    reference = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=10_000)
    reference.fit(features.double().numpy(), labels.numpy())
    scores = logistic(features, labels, 4, inverse_penalty)(queries)
    expected = reference.predict_proba(queries.double().numpy())
    np.testing.assert_allclose(scores.softmax(1).numpy(), expected, atol=2e-4)
    assert scores.argmax(1).tolist() == reference.predict(queries.double().numpy()).tolist()


def test_logistic_regression_of_two_classes_is_scikit_learns_at_twice_its_c() -> None:
    features, labels, queries = _problem(20, classes=2)
    reference = LogisticRegression(C=2 * 10.0, tol=1e-10, max_iter=10_000)
    reference.fit(features.double().numpy(), labels.numpy())
    scores = logistic(features, labels, 2, 10.0)(queries)
    np.testing.assert_allclose(scores.softmax(1).numpy(), reference.predict_proba(queries.double().numpy()), atol=2e-4)


def test_every_class_is_drawn_alike_and_more_shots_hold_the_fewer() -> None:
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2, 2])
    for seed in range(4):
        more = drawn(labels, 3, 4, seed)
        assert labels[more].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert len(set(more.tolist())) == 12
        fewer = drawn(labels, 3, 2, seed)
        assert fewer.tolist() == more.view(3, 4)[:, :2].flatten().tolist()
    draws = {tuple(drawn(labels, 3, 1, seed).tolist()) for seed in range(20)}
    assert len(draws) > 5


def test_moments_are_those_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimbench.cls.frozen.fewshot.AT_ONCE", 7)
    features = torch.randn(50, 5).half() + 100
    features[:, 2] = 3.0  # never varies
    mean, deviation = moments(features)
    expected = features.double()
    torch.testing.assert_close(mean, expected.mean(0).float())
    varies = [0, 1, 3, 4]
    torch.testing.assert_close(deviation[varies], expected.std(0, unbiased=False).float()[varies])
    assert deviation[2] == 1


def test_a_run_measures_every_number_of_shots(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = FewShot(
        data=str(folder), checkpoint=str(checkpoint), image=16, shots=(1, 10), draws=3, compute=SMALL, eval_batch=10
    )
    outcome = run(config, new_run(config))
    names = {f"fewshot{n}_{kind}_{what}" for n in (1, 10) for kind in ("ridge", "logistic") for what in ("top1", "std")}
    assert set(outcome.metrics) == names
    assert outcome.metrics["fewshot10_ridge_top1"] > 80  # colours are easy even for random weights
    assert outcome.metrics["fewshot10_ridge_top1"] >= outcome.metrics["fewshot1_ridge_top1"]
    assert 0 <= outcome.metrics["fewshot1_ridge_std"] < 50
    assert outcome.facts["shots"] == [1, 10]
    assert "class token" not in outcome.facts["feature"]
    assert outcome.images_per_second is not None
    again = run(config, new_run(config))
    assert again.metrics == outcome.metrics
    assert again.images_per_second is None  # the features were there
    once = run(replace(config, draws=1, shots=(5,), classifiers=("ridge",)), new_run(config))
    assert set(once.metrics) == {"fewshot5_ridge_top1"}


def test_more_shots_than_images_are_refused_before_any_work(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = FewShot(data=str(folder), encoder=TINY, image=16, shots=(5, 30), compute=SMALL)
    with pytest.raises(ValueError, match=r"class blue has only 24 training images, .* shots=30; use shots=5"):
        run(config, new_run(config))

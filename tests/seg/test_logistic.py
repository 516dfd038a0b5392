"""CAPI's logistic regression of patches against its protocol written with scikit-learn.

The plain form: standardise, drop training patches whose most frequent label is ignored, fit on nine tenths of the
images for each C, choose by the macro Jaccard index of the held-out tenth, fit again on all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from mimbench.engine.training.logistic import logistic_regression
from mimbench.seg.config import PatchLogisticConfig
from mimbench.seg.frozen.logistic import best_strength
from mimbench.seg.frozen.patches import Patches, divided

IMAGES, EACH, PIXELS, WIDTH, IGNORE = 20, 9, 16, 6, (0, 255)
CONFIG = PatchLogisticConfig(data="x", strengths=(0.001, 0.1, 10.0), tolerance=1e-9)


def _patches(images: int, seed: int) -> Patches:
    """Patches of four classes, of which 0 is ignored, with some pixels of another class each."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, images * EACH)
    features = rng.normal(size=(images * EACH, WIDTH)) * 1.5 + np.eye(WIDTH)[classes] * 2
    labels = np.repeat(classes[:, None], PIXELS, 1)
    other = rng.random(labels.shape) < 0.2
    labels[other] = rng.choice([1, 2, 3, 255], other.sum())
    return Patches(torch.from_numpy(features), torch.from_numpy(labels.astype(np.uint8)), EACH)


def _mode(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([np.bincount(row).argmax() for row in labels])


def _jaccard(model: LogisticRegression, features: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    predicted = np.repeat(model.predict(features)[:, None], PIXELS, 1)
    known = ~np.isin(labels, IGNORE)
    return float(jaccard_score(labels[known], predicted[known], average="macro"))


def test_the_protocol_is_the_plain_one() -> None:
    train, val = _patches(IMAGES, 0), _patches(5, 1)
    chosen, tried, miou = best_strength(CONFIG, train, val, IMAGES, IGNORE)

    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(CONFIG.seed)).numpy()
    held = np.isin(np.arange(IMAGES * EACH) // EACH, order[:2])
    X, Y = train.features.numpy(), train.labels.numpy()
    scale = StandardScaler().fit(X[~held])
    kept = ~np.isin(_mode(Y), IGNORE)

    def fitted(rows: NDArray[np.bool_], C: float) -> LogisticRegression:
        model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
        return model.fit(scale.transform(X[rows & kept]), _mode(Y[rows & kept]))

    wanted = {C: _jaccard(fitted(~held, C), scale.transform(X[held]), Y[held]) for C in CONFIG.strengths}
    assert tried == pytest.approx(wanted, rel=1e-9)
    assert len(set(wanted.values())) == 3  # the penalty matters
    assert chosen == max(wanted, key=lambda C: wanted[C])
    last = fitted(np.ones_like(held), chosen)
    assert miou == pytest.approx(_jaccard(last, scale.transform(val.features.numpy()), val.labels.numpy()), rel=1e-9)


def test_the_weights_are_scikit_learns() -> None:
    train = _patches(IMAGES, 2)
    classes = torch.from_numpy(_mode(train.labels.numpy())) % 4
    weight, bias = logistic_regression(train.features, classes, 4, 0.3, tolerance=1e-10)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000).fit(train.features.numpy(), classes.numpy())
    np.testing.assert_allclose(weight.T.numpy(), theirs.coef_, atol=1e-5)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs.intercept_, atol=1e-5)


def test_nothing_to_fit_is_said() -> None:
    train, val = _patches(4, 0), _patches(2, 1)
    with pytest.raises(ValueError, match="at least two training images"):
        best_strength(CONFIG, train.of(torch.tensor([0])), val, 1, IGNORE)
    ignored = train._replace(labels=torch.zeros_like(train.labels))
    with pytest.raises(ValueError, match="every training patch is mostly ignored"):
        best_strength(CONFIG, ignored, val, 4, IGNORE)
    with pytest.raises(ValueError, match="strengths="):
        PatchLogisticConfig(data="x", strengths=(0.0,))


def test_one_image_is_always_left_to_learn_from() -> None:
    """Nine tenths of four images round to four; without the limit there was nothing to learn from."""
    parts = divided(replace(CONFIG, held_out=0.9), _patches(4, 0), _patches(2, 1), 4)
    assert (len(parts.rest.features), len(parts.held_out.features)) == (EACH, 3 * EACH)
    assert bool(parts.val.features.isfinite().all())

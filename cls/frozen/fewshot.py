"""Few-shot classification: classifiers trained on a few labelled images per class, with a frozen encoder.

    mimbench run cls/fewshot checkpoint=encoder.safetensors data=imagenet

`shots` training images of each class are drawn, several times. On their stored features
(cls/frozen/feature_store.py) a linear classifier is fitted and evaluated on the whole validation split: ridge
regression on class indicators, in closed form, and multinomial logistic regression. Both equal scikit-learn's within
its tolerance.

Each dimension of a feature is standardised by its mean and deviation over all training images (no label is used), and
divided by the square root of the width. Features then have a norm of about 1, so one penalty fits every encoder.

    fewshot5_ridge_top1, fewshot5_ridge_std     mean and sample standard deviation over draws, in percent
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.cls.config import FewShot
from mimbench.cls.frozen.encoders import sources
from mimbench.cls.frozen.stored import Frozen, open_frozen
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import derived_seed, rank_and_world, summed
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.logistic import logistic_regression

# N training image, S drawn image, Q validation image, C class, D feature

AT_ONCE = 65_536  # rows converted to float32 at a time
ITERATIONS = 500  # maximum for L-BFGS

Classifier = Callable[[Tensor], Tensor]  # features (Q, D) to scores (Q, C)


def run(config: FewShot, run: RunDir) -> Outcome:
    """Evaluate every number of shots with every classifier.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit, or a class has fewer images than shots.
    """
    frozen = open_frozen(config, run)
    require_shots(config, frozen)
    [source] = sources(config, frozen.encoder)
    frozen.store.make([source])
    train_ND, val_QD = (frozen.store.read(split, source) for split in ("train", "val"))
    return frozen.outcome(measured(config, frozen, train_ND, val_QD), facts(config, frozen))


def require_shots(config: FewShot, frozen: Frozen) -> None:
    """Check that every class has at least `shots` training images.

    Raises:
        ValueError: if not; names the smallest class.
    """
    count_C = torch.bincount(frozen.store.labels("train"), minlength=frozen.splits.classes)
    least = int(count_C.argmin())
    if count_C[least] < max(config.shots):
        fitting = [shots for shots in config.shots if shots <= count_C[least]]
        way_out = f"use shots={','.join(map(str, fitting))}" if fitting else "remove the class, or add images"
        raise ValueError(
            f"class {frozen.splits.train.classes[least]} has only {count_C[least]} training images, fewer than "
            f"shots={max(config.shots)}; {way_out}"
        )


def measured(config: FewShot, frozen: Frozen, train_ND: Tensor, val_QD: Tensor) -> dict[str, float]:
    """Return means and deviations over draws; the fits are divided among the processes."""
    device, classes = frozen.encoder.device, frozen.splits.classes
    label_N, label_Q = (frozen.store.labels(split) for split in ("train", "val"))
    mean_D, deviation_D = moments(train_ND)
    scale_D = deviation_D * train_ND.shape[1] ** 0.5

    def standardised(features: Tensor) -> Tensor:
        return ((features.float() - mean_D) / scale_D).to(device)

    queries_QD, answers_Q = standardised(val_QD), label_Q.to(device)
    cases = list(itertools.product(config.shots, config.classifiers, range(config.draws)))
    rank, world = rank_and_world()
    right = torch.zeros(len(cases), dtype=torch.int64)
    for place in track(range(rank, len(cases), world), "fitting classifiers", len(range(rank, len(cases), world))):
        shots, kind, draw = cases[place]
        index_S = drawn(label_N, classes, shots, derived_seed(config.seed, draw))
        features_SD, label_S = standardised(train_ND[index_S]), label_N[index_S].to(device)
        penalty = config.ridge if kind == "ridge" else config.logistic
        scores = {"ridge": ridge, "logistic": logistic}[kind](features_SD, label_S, classes, penalty)
        right[place] = sum((scores(part).argmax(1) == answer).sum().item() for part, answer in
                           zip(queries_QD.split(AT_ONCE), answers_Q.split(AT_ONCE), strict=True))  # fmt: skip
    top1 = [100 * count / len(label_Q) for count in summed(right.to(device)).tolist()]
    return _metrics(config, dict(zip(cases, top1, strict=True)))


def _metrics(config: FewShot, top1: dict[tuple[int, str, int], float]) -> dict[str, float]:
    metrics = {}
    for shots, kind in itertools.product(config.shots, config.classifiers):
        values = [top1[shots, kind, draw] for draw in range(config.draws)]
        metrics[f"fewshot{shots}_{kind}_top1"] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"fewshot{shots}_{kind}_std"] = statistics.stdev(values)
    return metrics


def drawn(label_N: Tensor, classes: int, shots: int, seed: int) -> Tensor:
    """Return the indices of `shots` images per class (S,), class by class; with one seed, more shots include fewer."""
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(label_N), generator=generator)
    by_class_N = order_N[label_N[order_N].sort(stable=True).indices]
    ends_C = torch.bincount(label_N, minlength=classes).cumsum(0)
    starts_C = torch.cat([ends_C.new_zeros(1), ends_C[:-1]])
    return by_class_N[(starts_C[:, None] + torch.arange(shots)).flatten()]


def moments(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each dimension (D,), float32; a constant dimension gets deviation 1."""
    total = torch.zeros(2, features_ND.shape[1], dtype=torch.float64)
    shift_D = features_ND[0].double()  # near the mean, so that the squares keep their precision
    for part in features_ND.split(AT_ONCE):
        moved = part.double() - shift_D
        total += torch.stack([moved.sum(0), moved.square().sum(0)])
    mean_D, square_D = total / len(features_ND)
    deviation_D = (square_D - mean_D.square()).clamp(min=0).sqrt()
    deviation_D[deviation_D < 1e-6 * deviation_D.max().clamp(min=1e-30)] = 1.0
    return (mean_D + shift_D).float(), deviation_D.float()


def ridge(features_SD: Tensor, label_S: Tensor, classes: int, alpha: float) -> Classifier:
    """Fit least squares on class indicators plus `alpha` times the squared weights, without penalty on the intercept.

    Solved in closed form in float64, over images or dimensions, the smaller of the two.
    """
    features, targets_SC = features_SD.double(), F.one_hot(label_S, classes).double()
    mean_D, mean_C = features.mean(0), targets_SC.mean(0)
    X, Y = features - mean_D, targets_SC - mean_C
    images, width = X.shape
    if images < width:
        weight_DC = X.T @ torch.linalg.solve(X @ X.T + alpha * _identity(images, X), Y)
    else:
        weight_DC = torch.linalg.solve(X.T @ X + alpha * _identity(width, X), X.T @ Y)
    bias_C = mean_C - mean_D @ weight_DC
    return _linear(weight_DC, bias_C)


def logistic(features_SD: Tensor, label_S: Tensor, classes: int, inverse_penalty: float) -> Classifier:
    """Fit multinomial logistic regression: minimise C times the sum of cross-entropies plus half the squared weights.

    L-BFGS in float64 from zero. The intercept is not penalised. For two classes scikit-learn uses one weight vector
    instead of two: it needs twice this C for the same result.
    """
    return _linear(*logistic_regression(features_SD.double(), label_S, classes, inverse_penalty, iterations=ITERATIONS))


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _linear(weight_DC: Tensor, bias_C: Tensor) -> Classifier:
    weight, bias = weight_DC.float(), bias_C.float()
    return lambda features_QD: features_QD @ weight + bias


def facts(config: FewShot, frozen: Frozen) -> dict[str, Any]:
    """Return the facts of the protocol that change the numbers."""
    [source] = sources(config, frozen.encoder)
    return {
        "protocol": f"few-shot: {config.draws} draws, whole validation split; features standardised by the training "
        f"images' moments and divided by the square root of the width",
        "shots": list(config.shots),
        "draws": config.draws,
        "ridge_alpha": config.ridge,
        "logistic_C": config.logistic,
        "feature": frozen.encoder.describe(config.pool, config.norm),
        "pool": config.pool,
        "norm": config.norm,
        **frozen.facts(source),
    }

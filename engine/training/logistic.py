"""Multinomial logistic regression by L-BFGS: `weight, bias = logistic_regression(features, labels, classes, C)`.

Equal to scikit-learn's `LogisticRegression(C=C)` within its tolerance, for three classes or more: for two, scikit-learn
uses one weight vector instead of two, and needs twice this C for the same result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_regression(
    features_SD: Tensor,
    label_S: Tensor,
    classes: int,
    inverse_penalty: float,
    *,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> tuple[Tensor, Tensor]:
    """Minimise C times the sum of cross-entropies plus half the squared weights: weights (D, C) and intercepts (C,).

    Starts from zero, in the precision of the features. The intercept is not penalised.

    Args:
        features_SD: one row per sample.
        label_S: classes from 0, int64.
        classes: number of classes.
        inverse_penalty: C.
        iterations: maximum number of iterations.
        tolerance: largest gradient at which the search ends.
    """
    weight_DC = features_SD.new_zeros(features_SD.shape[1], classes, requires_grad=True)
    bias_C = features_SD.new_zeros(classes, requires_grad=True)
    samples = len(label_S)
    search = torch.optim.LBFGS(
        [weight_DC, bias_C], max_iter=iterations, tolerance_grad=tolerance, tolerance_change=1e-12, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(features_SD @ weight_DC + bias_C, label_S)
        loss = loss + weight_DC.square().sum() / (2 * inverse_penalty * samples)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        search.step(objective)  # type: ignore[no-untyped-call]
    return weight_DC.detach(), bias_C.detach()

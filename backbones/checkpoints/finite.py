"""The check that every weight that is loaded is a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def require_finite(weights: Mapping[str, Tensor], file: Path) -> None:
    """Check the floating-point tensors of `weights`, read from `file`.

    Raises:
        ValueError: naming the first tensor with NaN or infinite values, and how many there are.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            wrong = int((~value.isfinite()).sum())
            raise ValueError(
                f"{file}: {wrong} of the {value.numel()} weights in {name} are NaN or infinite; "
                f"the training diverged, or the file is damaged"
            )

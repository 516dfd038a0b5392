"""The formulas for weights and inputs from which the originals' numbers in `golden/` were made, and a comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """A file of golden numbers."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def fill(module: nn.Module, parameters: Sequence[Any], amplitude: float = 0.02, prefix: str = "") -> None:
    """Parameters by (number, name, shape): amplitude sin(.37 k + number), and 1 more for the scales of norms."""
    own = dict(module.named_parameters())
    assert {prefix + name for name in own} == {name for _, name, _ in parameters}
    with torch.no_grad():
        for number, name, shape in parameters:
            parameter = own[name.removeprefix(prefix)]
            assert list(parameter.shape) == shape, name
            value = amplitude * np.sin(0.37 * np.arange(parameter.numel()) + number)
            if parameter.ndim == 1 and name.endswith("weight"):
                value = value + 1
            parameter.copy_(torch.from_numpy(value).view_as(parameter))


def feature_maps(batch: int, width: int, height: int, columns: int) -> list[Tensor]:
    """Four maps: sin(.13 n + level), float64."""
    shape = (batch, width, height, columns)
    count = batch * width * height * columns
    return [torch.sin(0.13 * torch.arange(count, dtype=torch.float64) + level).view(shape) for level in range(4)]


def image(batch: int, height: int, width: int) -> Tensor:
    """sin(.01 n), float64, taken as normalised already."""
    count = batch * 3 * height * width
    return torch.sin(0.01 * torch.arange(count, dtype=torch.float64)).view(batch, 3, height, width)


def labels(batch: int, height: int, width: int) -> Tensor:
    """A pattern of 150 classes with ignored blocks, int64 (B, H, W)."""
    b, h, w = torch.meshgrid(torch.arange(batch), torch.arange(height), torch.arange(width), indexing="ij")
    made = (3 * (h // 5) + 7 * (w // 4) + 11 * b) % 150
    made[(h // 8 + w // 8 + b) % 5 == 0] = 255
    return made


def sha(array: np.ndarray) -> str:
    """The first sixteen hex digits of an array's SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def same(made: Tensor, wanted: dict[str, Any], relative: float = 1e-9, absolute: float = 1e-12) -> None:
    """Statistics and single values of a tensor are the original's."""
    flat = made.detach().double().flatten()
    assert list(made.shape) == wanted.get("shape", list(made.shape))
    assert flat.numel() == wanted["n"]
    close = {"rel": relative, "abs": absolute}
    assert flat.norm().item() == pytest.approx(wanted["l2"], **close)
    assert flat.mean().item() == pytest.approx(wanted["mean"], rel=relative * 100, abs=absolute)
    assert flat.std(unbiased=False).item() == pytest.approx(wanted["std"], **close)
    assert flat.min().item() == pytest.approx(wanted["min"], **close)
    assert flat.max().item() == pytest.approx(wanted["max"], **close)
    for place, value in wanted["at"].items():
        assert flat[int(place)].item() == pytest.approx(value, **close), place

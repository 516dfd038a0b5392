"""The benchmarks of a pretraining step: they run, and assert that what they time computes the same."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from mimbench.backbones.config import ViT
from mimbench.pretrain.config import CrossMAEConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / name))


def test_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    results, _ = script("crossmae_step.py", monkeypatch)["measure"]("T", 2, 1)
    assert [result.name for result in results] == ["B1", "B2", "B3"]
    assert not any(result.failed for result in results)


def test_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = script("crossmae_parts.py", monkeypatch)
    tiny = ViT(width=48, depth=3, heads=4, patch=8, image=32)
    results = parts["measure"](tiny, CrossMAEConfig(depth=2, width=32, heads=4), 2, 1, None)
    assert [result.name for result in results] == ["B6", "B7, targets", "B7, queries", "B24"]
    kept = results[-1]
    assert kept.ours < kept.peer


def test_counted_operations_reach_their_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(result.failed for result in script("crossmae_parts.py", monkeypatch)["b4"]())

"""Schedules at the points that the papers and the originals fix."""

from __future__ import annotations

import pytest

from mimbench.engine.training.schedule import warmup_cosine, warmup_steps


def test_cosine_of_mae() -> None:
    """ViT-B, 800 epochs, 40 of warm-up, peak 2.4e-3, per-iteration (crossmae: first step exactly 0)."""
    rate = [warmup_cosine(t, 2.4e-3, 0.0, 40, 800) for t in (0, 0.5, 20, 40, 420, 800)]
    assert rate == pytest.approx([0, 2.4e-3 * 0.5 / 40, 1.2e-3, 2.4e-3, 1.2e-3, 0], abs=1e-18)
    assert rate[0] == 0.0


def test_cosine_down_to_a_minimum() -> None:
    assert warmup_cosine(100, 2e-3, 1e-6, 5, 100) == pytest.approx(1e-6)
    assert warmup_cosine(0, 2e-3, 1e-6, 0, 100) == 2e-3  # no warm-up


def test_vitdet() -> None:
    """ViT-B on COCO, 184375 steps: detectron2's multiplier of 1e-4 at these steps."""

    def rate(step: int) -> float:
        return warmup_steps(step, 1e-4, 250, 0.001, (163889, 177546), 0.1)

    assert rate(0) == pytest.approx(1e-7)
    assert rate(125) == pytest.approx(1e-4 * (0.001 + 0.999 / 2))
    assert rate(250) == rate(163888) == 1e-4
    assert rate(163889) == rate(177545) == pytest.approx(1e-5)
    assert rate(177546) == rate(184374) == pytest.approx(1e-6)

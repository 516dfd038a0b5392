"""The benchmarks of a pretraining step: they run, and assert that what they time computes the same."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_what_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At toy size on a CPU; what compiles takes a compiler, and is left to a GPU."""
    main, out = script("gpu.py", monkeypatch)["main"], tmp_path / "gpu.jsonl"
    parts = "parity,attention,pretraining,peer,detector,frozen,waits"
    options = ["--size", "T", "--seconds", "0", "--workers", "0", "--device", "cpu"]
    assert main([*options, "--only", parts, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert not [line for line in lines if "error" in line]
    by_part = {part: [line for line in lines if line["part"] == part] for part in parts.split(",")}
    assert all(by_part.values())
    plain = by_part["parity"][0]
    assert plain["precision"] == "fp32"
    assert max(plain["apart"].values()) < 1e-6
    assert {"features", "loss", "pyramid", "objectness", "box_codes", "scores", "boxes"} == set(plain["apart"])
    assert plain["detections"] > 0
    assert plain["boxes_found_again"] == 1
    assert [line["method"] for line in by_part["pretraining"][:2]] == ["crossmae", "mae"]
    assert all(line["images_per_second"] > 0 and line["loader_fed"] > 0 for line in by_part["pretraining"][:2])
    assert by_part["peer"][0]["ratio"] > 0
    assert all(line["flex_ms"] > 0 for line in by_part["attention"][:3])
    assert by_part["detector"][0]["estimated_gib"] > 0
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


def test_drop_path_that_skips_has_the_losses_of_drop_path(monkeypatch: pytest.MonkeyPatch) -> None:
    vitdet = script("vitdet_step.py", monkeypatch)
    found = vitdet["skipped"](vitdet["config_for"]("T", 64), 0.5, torch.device("cpu"), 1)
    assert found.ours > 0
    assert found.peer > 0


def test_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = script("crossmae_parts.py", monkeypatch)
    tiny = ViT(width=48, depth=3, heads=4, patch=8, image=32)
    results = parts["measure"](tiny, CrossMAEConfig(depth=2, width=32, heads=4), 2, 1, None)
    assert [result.name for result in results] == ["B6", "B7, targets", "B7, queries", "B24"]
    kept = results[-1]
    assert kept.ours < kept.peer


def test_counted_operations_reach_their_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(result.failed for result in script("crossmae_parts.py", monkeypatch)["b4"]())

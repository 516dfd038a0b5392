"""The fast linear probe: one head is the slow probe, many are each as though alone, and training images choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.config import HANDWRITTEN
from mimbench.cls.config import FastLinear, Linear
from mimbench.cls.frozen import fast_linear
from mimbench.cls.frozen.fast_linear import Grid, Head, Rows
from mimbench.cls.frozen.feature_store import FeatureStore
from mimbench.cls.frozen.features import Source
from mimbench.cls.recipes import frozen as recipes_frozen
from mimbench.cls.recipes import published as recipes
from mimbench.cls.run import run
from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.config import Compute, from_text, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.train import train
from tests.cls.conftest import TINY

SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=5, save_every=30)
SINGLE: dict[str, Any] = {"pools": ("avg",), "layers": 1, "held_out": 0.0}


def _config(folder: Path, checkpoint: Path, **changes: Any) -> FastLinear:
    base = FastLinear(
        data=str(folder), checkpoint=str(checkpoint), image=16, layers=2, base_lrs=(1.0, 100.0), held_out=0.25,
        epochs=20, warmup_epochs=2, batch=16, compute=SMALL, eval_batch=10, stored="fp32",
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_single_head_is_the_slow_probe_on_cached_features(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], accumulate: int
) -> None:
    compute = replace(SMALL, accumulate=accumulate)
    slow = Linear(
        data=str(folder), checkpoint=str(checkpoint), image=16, views="cached", epochs=20, warmup_epochs=2, batch=16,
        base_lr=30.0, compute=compute, eval_batch=10, evaluate_every=None, weight_decay=1e-3,
    )  # fmt: skip
    fast = _config(folder, checkpoint, **SINGLE, base_lrs=(30.0,), weight_decays=(1e-3,), compute=compute)
    expected, found = run(slow, new_run(slow)), run(fast, new_run(fast))
    assert set(found.metrics) == {name.replace("linear", "linear_fast") for name in expected.metrics}
    assert found.metrics["linear_fast_top1"] == expected.metrics["linear_top1"]
    assert found.metrics["linear_fast_loss"] == pytest.approx(expected.metrics["linear_loss"], rel=1e-5)
    assert found.facts["feature"] == expected.facts["feature"]
    assert "one head" in found.facts["protocol"]


def test_a_single_head_is_the_slow_probe_on_handwritten(tmp_path: Path) -> None:
    """To 0.1 %, one image here, by the papers' schedule. (fp16 moves two or three.)"""
    data = make_handwritten(tmp_path / "digits", 0, Sizes(400, 1000, coco_train=8, coco_val=8))

    def top1(name: str, config: Any) -> float:
        about = {"recipe": name, "stage": "cls", "identity": "0"}
        return next(iter(run(config, RunDir.create(tmp_path / "cls" / name, "", about)).metrics.values()))

    small: dict[str, Any] = {"data": str(data), "batch": 64}
    slow = replace(recipes.linear_handwritten(), base_lr=4.0, **small)
    fast = replace(recipes_frozen.linear_fast_handwritten(), **SINGLE, base_lrs=(4.0,), **small)
    assert fast.encoder == HANDWRITTEN
    papers = recipes.linear_vitb()
    for config in (slow, fast):
        assert (config.epochs, config.warmup_epochs) == (papers.epochs, papers.warmup_epochs) == (90, 10)
    expected = top1("slow", slow)
    assert expected > 15  # 10 is chance
    assert top1("fast", fast) == pytest.approx(expected, abs=0.11)


def _rows(images: int, sources: list[Source], seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 4
    centres = torch.randn(4, 16, generator=generator)
    noise = (torch.randn(images, 16, generator=generator) for _ in sources)
    return Rows({source: centres[labels] + each for source, each in zip(sources, noise, strict=True)}, labels)


def test_every_head_of_a_grid_ends_as_though_alone(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    class Splits:
        classes = 4

    class Encoder:
        token_width = 16

    class Frozen:
        splits, encoder = Splits, Encoder

    sources = [Source("avg", 2, "pooled"), Source("cls", 1, "pooled")]
    heads = [Head(source, rate, decay) for source in sources for rate in (10.0, 100.0) for decay in (0.0, 0.1)]
    rows, config = _rows(64, sources), _config(folder, checkpoint, epochs=5)

    def trained(name: str, chosen: list[Head]) -> Grid:
        directory = RunDir.create(tmp_path / name, "", {"recipe": name, "stage": "cls", "identity": "0"})
        model = train(directory, fast_linear.prepare(config, Frozen, chosen, rows)).model  # type: ignore[arg-type]
        assert isinstance(model, Grid)
        return model

    grid = trained("grid", heads)
    assert grid.heads == heads
    weights = torch.cat([stack.weight for stack in grid.stacks])
    for place in (0, 3, 6):
        alone = trained(f"alone{place}", [heads[place]])
        torch.testing.assert_close(alone.stacks[0].weight[0], weights[place], rtol=1e-5, atol=1e-6)
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == len(heads)
    tally = grid.measure(rows, torch.device("cpu"))
    logits = torch.cat([s.logits(rows.features[h]) for s, h in zip(grid.stacks, sources, strict=True)], dim=1)
    expected = (logits.argmax(2) == rows.labels[:, None]).double().mean(0) * 100
    torch.testing.assert_close(torch.tensor(tally.top1, dtype=torch.float64), expected)


def test_held_out_training_images_choose_and_the_validation_split_does_not(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(folder, checkpoint)
    directory = new_run(config)
    outcome = run(config, directory)
    table = json.loads((directory.path / "search" / "heads.json").read_text())
    assert len(table) == config.heads == outcome.facts["heads"] == 8
    assert {row["source"] for row in table} == {f"{pool}-{n}-pooled" for pool in ("avg", "cls") for n in (1, 2)}
    best = max(row["held_out_top1"] for row in table)
    assert outcome.metrics["linear_fast_held_out_top1"] == best
    chosen = min((row for row in table if row["held_out_top1"] == best), key=lambda row: row["held_out_loss"])
    assert (outcome.facts["base_lr"], outcome.facts["block"]) == (chosen["base_lr"], int(chosen["source"][4]))
    assert outcome.metrics["linear_fast_val_best_top1"] >= outcome.metrics["linear_fast_top1"] > 60
    assert "held-out training images" in outcome.facts["protocol"]
    assert "the checkpoint's final norm" not in outcome.facts["feature"]
    assert not (directory.path / "search" / "checkpoints").exists()
    for row in table:  # whatever the validation split says, the same head is chosen
        row["val_top1"] = 100.0 - row["val_top1"]
    (directory.path / "search" / "heads.json").write_text(json.dumps(table))
    monkeypatch.setattr(fast_linear, "_held_out", None)  # the search is not done again
    again = run(config, directory)
    assert again.facts["feature"] == outcome.facts["feature"]
    assert again.metrics["linear_fast_top1"] == outcome.metrics["linear_fast_top1"]


def test_held_out_images_are_not_trained_on(folder: Path, checkpoint: Path) -> None:
    config, rows = _config(folder, checkpoint), _rows(72, [Source("avg", 2, "pooled")])
    fitted, held_out = fast_linear._held_out(config, rows)
    assert (len(fitted), len(held_out)) == (54, 18)
    assert fitted.index is not None
    assert held_out.index is not None
    assert sorted([*fitted.index.tolist(), *held_out.index.tolist()]) == list(range(72))
    with pytest.raises(ValueError, match=r"held_out=0.001 of 72 training images"):
        fast_linear._held_out(replace(config, held_out=0.001), rows)


def test_sgd_learns_too_and_fp16_features_do(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, checkpoint, **SINGLE, optimizer="sgd", base_lrs=(2.0,), stored="fp16", epochs=30)
    assert run(config, new_run(config)).metrics["linear_fast_top1"] > 80


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pools": ()}, r"pools=\[\] must hold at least one value"),
        ({"base_lrs": (0.1, 0.1)}, r"base_lrs=\[0.1, 0.1\] .* duplicates"),
        ({"base_lrs": (0.0,)}, "base_lrs must be positive"),
        ({"held_out": 0.0}, "held_out=0.0 .* 40 heads"),
        ({"held_out": 0.7}, "at most 0.5"),
        ({"layers": 0}, "layers=0 must be positive"),
        ({"warmup_epochs": 100}, "between 0 and epochs=90"),
    ],
)
def test_grids_that_cannot_be_trained_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(recipes_frozen.linear_fast(), **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch": 60}, r"batch=60 exceeds the 54 training images without held_out=0.25; use batch=54 or less"),
        ({"batch": 73, **SINGLE, "base_lrs": (1.0,)}, "batch=73 exceeds the 72 training images; use batch=72"),
        ({"held_out": 0.001}, "held_out=0.001 of 72 training images is less than one image"),
        (
            {"batch": 4, "compute": replace(SMALL, accumulate=4)},
            "a single image for the probe's batch norm, which needs at least 2; use batch=8",
        ),
    ],
)
def test_batches_that_cannot_be_filled_are_refused_before_anything_is_encoded(
    folder: Path,
    checkpoint: Path,
    new_run: Callable[[Any], Any],
    changes: dict[str, Any],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FeatureStore, "make", None)  # encodes
    config = _config(folder, checkpoint, **changes)
    with pytest.raises(ValueError, match=complaint):
        run(config, new_run(config))


def test_a_head_that_diverges_does_not_end_the_search(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(folder, checkpoint, layers=1, pools=("avg",), base_lrs=(1.0, 1e5), weight_decays=(0.01,))
    config = replace(config, optimizer="sgd")
    outcome = run(config, new_run(config))
    assert outcome.facts["base_lr"] == 1.0
    assert outcome.metrics["linear_fast_held_out_top1"] > 50
    assert "1 of 2 heads diverged and were stopped: avg-2-pooled with base_lr=100000 weight_decay=0.01" in caplog.text
    single = replace(config, base_lrs=(1e5,), held_out=0.0, seed=1)
    directory = RunDir.create(new_run(config).path.parent / "single", to_text(single), new_run(config).read_about())
    with pytest.raises(ValueError, match=r"avg-2-pooled with base_lr=100000 .* diverged: use smaller"):
        run(single, directory)


def test_recipes_say_what_they_cost() -> None:
    config = recipes_frozen.linear_fast()
    assert (config.heads, config.epochs, config.batch, config.optimizer) == (40, 90, 16384, "lars")
    single = recipes_frozen.linear_fast_single()
    assert (single.heads, single.held_out, single.base_lrs) == (1, 0.0, (Linear().base_lr,))
    assert FastLinear(encoder=TINY).norm == Linear().norm


@pytest.mark.parametrize("recipe", ["linear_fast", "linear_fast_single", "fewshot", "linear_fast_handwritten"])
def test_recipes_survive_their_text(recipe: str) -> None:
    config = getattr(recipes_frozen, recipe)()
    assert from_text(type(config), to_text(config)) == config

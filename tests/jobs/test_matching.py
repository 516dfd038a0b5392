"""Runs against printed numbers: laid out by what they did, and never subtracted across protocols."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mimbench.jobs.runs import records
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.tables import paper
from mimbench.jobs.tables.matching import Comparison, compare, groups
from mimbench.jobs.tables.paper import Reference
from mimbench.jobs.tables.significance import Sample, interval, quantile
from tests.jobs.encoder_file import encoder_bytes
from tests.jobs.published import Published

FINETUNE, DETECT = "cls/finetune_vitb", "det/mask_rcnn_vitdet_b_100ep"
CROSSMAE, MAE = "pretrain/crossmae_vitb_800ep", "pretrain/mae_vitb_1600ep"


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which commit made a result is not asked here, and asking takes longer than all else."""
    monkeypatch.setattr("mimbench.engine.run.result.commit", lambda: None)
    monkeypatch.setattr("mimbench.engine.run.result.versions", dict)


@pytest.fixture
def runs(tmp_path: Path) -> Published:
    return Published(tmp_path / "runs")


def _reference(table: str, row: str, column: str) -> Reference:
    [found] = [one for one in paper.references(table) if (one.row, one.column) == (row, column)]
    return found


def _compared(runs: Published, reference: Reference) -> list[Comparison]:
    return compare(reference, groups(records.read(runs.root))[0])


TABLE1 = ("crossmae/table1", "CrossMAE .25", "B")


def _fillable() -> list[Reference]:
    every = [one for name in paper.tables() for one in paper.references(name) if one.recipe and not one.unused]
    return list({(one.metric, repr(one.select), repr(one.facts)): one for one in every}.values())


@pytest.mark.parametrize("reference", _fillable(), ids=lambda one: one.where)
def test_the_recipes_that_fill_a_cell_follow_its_protocol(runs: Published, reference: Reference) -> None:
    runs.of(reference, 50.0)
    [found] = _compared(runs, reference)
    only_last = reference.metric in ("finetune_top5", "finetune_loss")  # which are not kept of the best epoch
    assert [one.key for one in found.verdict.differs] == (["eval.selection"] if only_last else [])
    assert found.verdict.missing == ()
    assert found.verdict.unknown == reference.unknown
    assert found.verdict.status == ("differs" if only_last else "unknown" if reference.unknown else "same")
    assert (found.difference is None) == (only_last or bool(reference.unknown))


def test_same_protocol_has_a_difference(runs: Published) -> None:
    runs.evaluation(FINETUNE, {"finetune_top1": 83.42}, runs.pretraining(CROSSMAE))
    [found] = _compared(runs, _reference(*TABLE1))
    assert found.verdict.text == "same protocol"
    assert found.difference == pytest.approx(-0.08)
    assert found.interval is None  # one seed, and no noise is known


def test_the_epoch_that_is_taken(runs: Published) -> None:
    """CrossMAE's numbers are of the best epoch, and so is ours beside them; of MAE's it is not said: the last."""
    made = runs.pretraining(CROSSMAE)
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.42, "finetune_best_top1": 83.5}, made)
    [found] = _compared(runs, _reference(*TABLE1))
    assert (found.metric, found.sample.mean, found.difference) == ("finetune_best_top1", 83.5, pytest.approx(0))
    runs.evaluation(FINETUNE, {"finetune_top1": 83.6}, runs.pretraining(MAE))
    [mae] = _compared(runs, _reference("mae/readme", "MAE", "B"))
    assert mae.metric == "finetune_top1"
    result = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**result, "metrics": {"finetune_top1": 83.42}}))
    [found] = _compared(runs, _reference(*TABLE1))
    assert found.verdict.text == "differs in epoch evaluated (last, paper best on validation images)"
    assert found.difference is None


def test_names_do_not_matter(runs: Published) -> None:
    """A recipe by any other name stands in the same cell, and one that only has the name stands in none."""
    made = runs.new("pretrain/whatever", find(CROSSMAE).build())
    made.encoder.write_bytes(encoder_bytes("w"))
    runs.finish(made, {"loss": 1.0}, {"train_images": 1_281_167})
    runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, made)
    impostor = runs.pretraining(CROSSMAE, "masking.predict=0.5")
    runs.evaluation(FINETUNE, {"finetune_top1": 99.0}, impostor)
    [found] = _compared(runs, _reference(*TABLE1))
    assert found.sample.values == (83.0,)


MATTERS_TO_FINETUNING = [
    ("epochs=50", {}, "epochs (50, paper 100)"),
    ("base_lr=1e-3", {}, "base lr (0.001, paper 0.0005)"),
    ("layer_decay=0.75", {}, "layer decay (0.75, paper 0.65)"),
    ("drop_path=0.2", {}, "drop path (0.2, paper 0.1)"),
    ("batch=512", {}, "batch (512, paper 1,024)"),
    ("pool=cls", {}, "feature (cls, paper avg)"),
    ("image=448", {"eval_resize": 448}, "image (448, paper 224)"),
    ("mixup=0", {}, "mixup (0, paper 0.8)"),
    ("erasing=0", {}, "erasing (0, paper 0.25)"),
    ("randaugment=none", {}, "randaugment (none, paper rand-m9-mstd0.5-inc1)"),
    ("ema=0.9999", {}, "ema (0.9999, paper none)"),
    ("grad_clip=1.0", {}, "clip (1, paper none)"),
    ("positions=regenerate", {}, "positions (regenerate, recipe auto)"),  # not stated by anyone, and not as usual
    ("schedule=simmim_cosine", {}, "schedule (simmim_cosine, recipe cosine)"),
    ("seed=0", {"classes": 100}, "classes (100, paper 1,000)"),
    ("seed=0", {"val_images": 10_000}, "validation images (10,000, paper 50,000)"),
    ("seed=0", {"train_images": 126_689}, "training images (126,689, paper 1,281,167)"),
    ("seed=0", {"eval_resize": 224}, "resize before the centre crop (224, paper 256)"),
    ("seed=0", {"partial": ["blocks.11.*"]}, "keys ignored on loading ([blocks.11.*], paper [])"),
]


@pytest.mark.parametrize(("override", "facts", "said"), MATTERS_TO_FINETUNING)
def test_a_finetuning_that_departs_is_no_plain_difference(
    runs: Published, override: str, facts: dict[str, object], said: str
) -> None:
    runs.evaluation(FINETUNE, {"finetune_top1": 83.42}, runs.pretraining(CROSSMAE), override, facts=facts)
    [found] = _compared(runs, _reference(*TABLE1))
    assert found.verdict.status == "differs"
    assert said in found.verdict.text
    assert found.difference is None
    assert found.interval is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["epochs=400", "warmup_epochs=20"], "pretraining epochs (400, paper 800)"),
        (["batch=1024"], "pretraining batch (1,024, paper 4,096)"),
        (["masking.mask_ratio=0.5"], "fraction hidden (0.5, paper 0.75)"),
        (["method.depth=8"], "decoder blocks (8, paper 12)"),
        (["method.mixing=softmax"], "pretraining method mixing (softmax, paper linear)"),
        (["method.norm_pix=false"], "pretraining method norm pix (off, paper on)"),
        (["lr_factor=none"], "pretraining lr factor (none, paper predict/mask)"),
        (["encoder.image=448"], "pretraining image (448, paper 224)"),
        (["smallest_crop=0.08"], "pretraining smallest crop (0.08, paper 0.2)"),
        (["resizing=bilinear"], "pretraining resizing (bilinear, recipe bicubic)"),
        (["method.mixing_init=normal"], "pretraining method mixing init (normal, recipe xavier)"),
    ],
)
def test_a_pretraining_that_departs_is_no_plain_difference(runs: Published, overrides: list[str], said: str) -> None:
    runs.evaluation(FINETUNE, {"finetune_top1": 83.42}, runs.pretraining(CROSSMAE, *overrides))
    [found] = _compared(runs, _reference(*TABLE1))
    assert said in found.verdict.text
    assert found.difference is None


def test_pretraining_data_count(runs: Published) -> None:
    made = runs.pretraining(CROSSMAE, facts={"train_images": 130_000})
    runs.evaluation(FINETUNE, {"finetune_top1": 70.0}, made)
    [found] = _compared(runs, _reference(*TABLE1))
    assert "pretraining train images (130,000, paper 1,281,167)" in found.verdict.text


@pytest.mark.parametrize(
    ("override", "facts", "said"),
    [
        ("vitdet.rel_pos=false", {}, "relative positions (off, paper on)"),
        ("steps=66000", {}, "steps (66,000, paper 184,375)"),
        ("batch=16", {}, "batch (16, paper 64)"),
        ("image=512", {}, "image (512, paper 1,024)"),
        ("vitdet.drop_path=0.2", {}, "drop path (0.2, paper 0.1)"),
        ("layer_decay=0.8", {}, "layer decay (0.8, paper 0.7)"),
        ("heads.detections=300", {}, "heads detections (300, paper 100)"),
        ("seed=0", {"val_images": 79}, "validation images (79, paper 5,000)"),
        ("single_class=true", {}, "single class (on, paper off)"),
        ("heads.samples=256", {}, "heads samples (256, recipe 512)"),
    ],
)
def test_a_detector_that_departs_is_no_plain_difference(
    runs: Published, override: str, facts: dict[str, object], said: str
) -> None:
    runs.evaluation(DETECT, {"box_ap": 51.0}, runs.pretraining(MAE), override, facts=facts)
    [found] = _compared(runs, _reference("vitdet/table5", "ViT-B", "box"))
    assert said in found.verdict.text
    assert found.difference is None


def test_relative_positions_are_told_by_themselves(runs: Published) -> None:
    """detectron2's config as it is: not the protocol of the MAE row that CrossMAE quotes."""
    runs.evaluation(DETECT, {"box_ap": 51.6, "mask_ap": 45.9}, runs.pretraining(MAE))
    [quoted] = _compared(runs, _reference("crossmae/table2", "MAE", "box_b"))
    assert quoted.verdict.text == "differs in relative positions (on, paper off)"
    assert quoted.difference is None
    [own] = _compared(runs, _reference("vitdet/table5", "ViT-B", "box"))
    assert own.difference == pytest.approx(0)


def test_a_reference_without_a_recipe_stays_unknown(runs: Published) -> None:
    runs.evaluation(DETECT, {"box_ap": 52.0}, runs.pretraining("pretrain/crossmae_vitb_800ep_predict75"))
    [found] = _compared(runs, _reference("crossmae/table2", "CrossMAE .75", "box_b"))
    assert found.verdict.status == "unknown"
    assert found.verdict.text.startswith(
        "reference protocol unknown: steps, batch, lr, layer decay, drop path, relative"
    )
    assert found.difference is None


def test_the_nearest_protocol_comes_first(runs: Published) -> None:
    made = runs.pretraining(CROSSMAE)
    runs.evaluation(FINETUNE, {"finetune_top1": 80.0}, made, "epochs=50", "drop_path=0.2")
    runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, made)
    runs.evaluation(FINETUNE, {"finetune_top1": 82.0}, made, "epochs=50")
    found = _compared(runs, _reference(*TABLE1))
    assert [one.sample.mean for one in found] == [83.0, 82.0, 80.0]


def test_of_a_checkpoint_made_elsewhere_what_is_not_known_is_said(runs: Published, tmp_path: Path) -> None:
    file = tmp_path / "mae_pretrain_vit_base.pth"
    file.write_bytes(encoder_bytes("theirs"))
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.6}, file)
    result = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**result, "checkpoint": {**result["checkpoint"], "family": "mae"}}))
    [found] = _compared(runs, _reference("mae/readme", "MAE", "B"))
    assert found.verdict.status == "unknown"
    assert "unknown for this checkpoint: pretraining epochs" in found.verdict.text
    assert found.difference is None
    assert _compared(runs, _reference("mae/readme", "MAE", "L")) == []
    assert _compared(runs, _reference(*TABLE1)) == []  # another method


def test_an_encoder_from_the_middle_of_a_pretraining(runs: Published) -> None:
    made = runs.pretraining(CROSSMAE)
    run = runs.evaluation(FINETUNE, {"finetune_top1": 82.0}, made)
    for file in (run.about, run.result):
        text = json.loads(file.read_text())
        source = {**text["checkpoint"], "hash": "0" * 64, "run": f"{made.path.name.rpartition('-')[2]}@400"}
        file.write_text(json.dumps({**text, "checkpoint": source}))
    [found] = _compared(runs, _reference(*TABLE1))
    assert "pretraining epochs (400 of 800, paper 800)" in found.verdict.text
    assert found.difference is None


def test_scratch_stands_where_scratch_is_asked_for(runs: Published) -> None:
    runs.evaluation(DETECT, {"box_ap": 48.0}, None, "vitdet.rel_pos=false", "lr=1.6e-4", "weight_decay=0.2")
    [found] = _compared(runs, _reference("vitdet/table4", "none (random)", "box_b"))
    assert found.verdict.differs == ()
    assert _compared(runs, _reference("vitdet/table4", "ImageNet-1k, MAE", "box_b")) == []


def test_ablations_stand_in_their_own_rows(runs: Published) -> None:
    runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining("pretrain/crossmae_vitb_400ep_depth1"))
    for name, ours in (("1", 1), ("4", 0), ("8", 0), ("12", 0)):
        assert len(_compared(runs, _reference("crossmae/table3e", name, "top1"))) == ours


def test_a_metric_that_was_not_measured_has_no_cell(runs: Published) -> None:
    runs.evaluation(FINETUNE, {"finetune_top5": 96.0}, runs.pretraining(CROSSMAE))
    assert _compared(runs, _reference(*TABLE1)) == []


def test_demo_runs_stand_in_no_papers_table(runs: Published) -> None:
    runs.evaluate("cls/finetune_handwritten", {"finetune_top1": 83.0}, runs.pretrain())
    found = groups(records.read(runs.root))[0]
    assert found
    assert not [one for name in paper.tables() for one in paper.references(name) if compare(one, found)]


# ------------------------------------------------------------------------------------------------- seeds and noise


def _welch(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Welch's interval written out, its quantile by numerical integration of Student's density."""
    one, other = np.var(ours, ddof=1) / len(ours), np.var(theirs, ddof=1) / len(theirs)
    freedom = (one + other) ** 2 / (one**2 / (len(ours) - 1) + other**2 / (len(theirs) - 1))
    at = np.linspace(0, 100, 1_000_001)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = constant * (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
    covered = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * (at[1] - at[0]))])
    reach = float(np.interp(0.975, covered, at)) * math.sqrt(one + other)
    middle = float(np.mean(ours) - np.mean(theirs))
    return middle - reach, middle + reach


def test_welchs_interval_against_the_formula() -> None:
    ours, theirs = [83.10, 83.35, 83.28], [83.20, 83.29, 83.24, 83.21]
    found = interval(Sample(tuple(ours)), Sample(tuple(theirs)))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(_welch(ours, theirs), abs=1e-5)
    assert found.basis == "Welch, seeds on both sides"
    assert not found.outside


def test_students_quantiles_are_the_printed_ones() -> None:
    """Of any table of the t distribution, at 97.5 %."""
    assert [round(quantile(df), 3) for df in (1, 2, 5, 10, 30)] == [12.706, 4.303, 2.571, 2.228, 2.042]
    assert quantile(math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_over_seeds_of_both(runs: Published) -> None:
    reference = _reference("crossmae/table14", "CrossMAE .25", "top1")
    for seed, value in enumerate((82.10, 82.14, 82.18)):
        runs.of(reference, value, seed)
    [found] = _compared(runs, reference)
    assert found.sample.values == (82.10, 82.14, 82.18)
    assert found.interval is not None
    assert found.interval.outside
    assert (found.interval.low, found.interval.high) == pytest.approx(
        _welch([82.10, 82.14, 82.18], [83.20, 83.29, 83.24, 83.21]), abs=1e-5
    )


@pytest.mark.parametrize(("values", "basis"), [((51.0,), "one seed"), ((51.0, 51.2), "deviation as the source")])
def test_a_known_deviation_of_the_source(values: tuple[float, ...], basis: str) -> None:
    found = interval(Sample(values), Sample((51.6,), known=0.10))
    assert found is not None
    assert found.basis.startswith(basis)
    if len(values) == 1:
        assert (found.low, found.high) == pytest.approx((-0.6 - 0.277181, -0.6 + 0.277181), abs=1e-5)  # 1.96 √2 0.1
        assert found.outside


def test_without_noise_no_interval() -> None:
    assert interval(Sample((83.0,)), Sample((83.5,))) is None
    assert interval(Sample((83.0, 83.1)), Sample((83.5,))) is None
    assert interval(Sample((83.0,)), Sample((83.2, 83.3))) is None


def test_seeds_without_any_spread() -> None:
    found = interval(Sample((83.0, 83.0)), Sample((83.0, 83.0)))
    assert found is not None
    assert (found.low, found.high, found.outside) == (0, 0, False)


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_copied_run_counts_once(runs: Published) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining(CROSSMAE))
    shutil.copytree(run.path, run.path.with_name("copy"))
    found, problems = groups(records.read(runs.root))
    assert [group.values("finetune_top1") for group in found] == [(83.0,)]
    assert [line for line in problems if "the same run as" in line]


def test_two_results_of_one_run_are_both_left_out(runs: Published) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining(CROSSMAE))
    copy = run.path.with_name("copy")
    shutil.copytree(run.path, copy)
    result = json.loads(run.result.read_text())
    (copy / "result.json").write_text(json.dumps({**result, "metrics": {"finetune_top1": 84.0}}))
    found, problems = groups(records.read(runs.root))
    assert found == []
    assert [line for line in problems if "two results of one run" in line and str(copy) in line]


def test_the_same_seeds_twice_are_one_measurement(runs: Published) -> None:
    """The same pretraining repeated elsewhere, its weights other by rounding, is not another seed."""
    made = runs.pretraining(CROSSMAE)
    runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, made)
    moved = made.path.with_name(made.path.name + "b")
    shutil.copytree(made.path, moved)
    about = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**about, "identity": "f" * 10}))
    (moved / "encoder.safetensors").write_bytes(encoder_bytes("rounded otherwise"))
    runs.evaluation(FINETUNE, {"finetune_top1": 83.1}, moved / "encoder.safetensors")
    found, problems = groups(records.read(runs.root))
    assert [group.values("finetune_top1") for group in found] == [(83.0,)]
    assert [line for line in problems if "the same seeds as" in line]


def test_a_result_that_contradicts_its_config(runs: Published) -> None:
    runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining(CROSSMAE), facts={"epochs": 50})
    found, problems = groups(records.read(runs.root))
    assert found == []
    assert [line for line in problems if line.endswith("its result.json says epochs = 50, its config.txt 100")]


def test_a_result_of_another_run(runs: Published) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining(CROSSMAE))
    run.result.write_text(json.dumps({**json.loads(run.result.read_text()), "identity": "0123456789"}))
    found, problems = groups(records.read(runs.root))
    assert found == []
    assert [line for line in problems if "its result.json is of run 0123456789" in line]


@pytest.mark.parametrize(
    "text", ['{"schema": 1,', '{"schema": 0, "metrics": {}}', '{"metrics": {"finetune_top1": 83}}']
)
def test_half_written_and_older_results_are_named(runs: Published, text: str, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining(CROSSMAE))
    run.result.write_text(text)
    with caplog.at_level(logging.ERROR):
        found, problems = groups(records.read(runs.root))
    assert found == []
    [line] = [line for line in problems if str(run.path) in line]
    assert "damaged" in line or "schema" in line


def test_nan_is_named_and_left_out(runs: Published) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0, "finetune_loss": 0.7}, runs.pretraining(CROSSMAE))
    run.result.write_text(run.result.read_text().replace("83.0", "NaN"))
    found, problems = groups(records.read(runs.root))
    assert [group.values("finetune_top1") for group in found] == [()]
    assert [line for line in problems if "finetune_top1 is nan and is left out" in line]


def test_sizes_are_told_by_their_numbers(runs: Published) -> None:
    """A ViT with ViT-B's width and another depth is no ViT-B."""
    made = runs.pretraining(CROSSMAE, "encoder.depth=8")
    runs.evaluation(FINETUNE, {"finetune_top1": 80.0}, made, "encoder.depth=8")
    assert _compared(runs, _reference(*TABLE1)) == []

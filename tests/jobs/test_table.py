"""The table over runs made as the real ones are, with numbers small enough to check by hand."""

from __future__ import annotations

import io
import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mimbench.backbones.config import SIZES
from mimbench.backbones.content import content_hash
from mimbench.jobs.tables import sections, table
from mimbench.pretrain.config import AttentionMasking
from mimbench.pretrain.recipes.crossmae import crossmae_handwritten
from tests.jobs.encoder_file import encoder_bytes
from tests.jobs.runs import Runs

KNN, LINEAR, DETECTION = "cls/knn_handwritten", "cls/linear_handwritten", "det/mask_rcnn_handwritten"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def _text(rows: list[table.Row], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(sections.render(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _line(text: str, start: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def test_nothing_yet(tmp_path: Path) -> None:
    assert table.rows(tmp_path / "none") == []
    assert table.to_json([]) == []
    assert _text([]).strip() == ""


def test_pretrained_stands_beside_scratch_with_its_gain(runs: Runs) -> None:
    made = runs.pretrain()
    runs.evaluate(LINEAR, {"linear_top1": 75.64}, made)
    runs.evaluate(LINEAR, {"linear_top1": 40.7})
    runs.evaluate(DETECTION, {"box_ap": 21.0, "mask_ap": 18.04, "box_ap50": 40.0}, made)
    runs.evaluate(DETECTION, {"box_ap": 23.5, "mask_ap": 18.0})
    rows = table.rows(runs.root)
    assert [(row.kind, row.recipe, row.architecture) for row in rows] == [
        ("scratch", "from scratch", "ViT 96x4/8"),
        ("pretrained", "crossmae_handwritten", "ViT 96x4/8"),
        ("gain", "crossmae_handwritten", "ViT 96x4/8"),
    ]
    assert rows[1].checkpoints == (content_hash(made.encoder),)
    text = _text(rows)
    assert _line(text, "from scratch") == ["ViT", "96x4/8", "–", "40.7", "–", "23.5", "18.0"]
    assert _line(text, "crossmae_handwritten") == ["ViT", "96x4/8", "–", "75.6", "–", "21.0", "18.0"]
    assert _line(text, "gain over scratch") == ["–", "+34.9", "–", "−2.5", "0.0"]
    assert "Data: handwritten. Top-1" in text
    assert max(len(line) for line in _text(rows, width=80).splitlines()) <= 80


def test_a_long_name_does_not_break_the_numbers(runs: Runs) -> None:
    runs.evaluate(LINEAR, {"linear_top1": 40.7})
    runs.evaluate(DETECTION, {"box_ap": 23.5, "mask_ap": 18.0})
    [row] = table.rows(runs.root)
    encoder = row.encoder._replace(name=f"{'vit_' * 20}.pth?family=pe_spatial")
    text = _text([replace(row, encoder=encoder)], width=100)
    assert all(number in text.split() for number in ("40.7", "23.5", "18.0"))
    assert "pe_spatial" in "".join(line.strip() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 100


def test_seeds_share_a_cell(runs: Runs) -> None:
    pretrained, scratch = (70.0, 71.0, 75.0), (40.0, 42.0)
    for seed, value in enumerate(pretrained):
        runs.evaluate(LINEAR, {"linear_top1": value}, runs.pretrain(seed=seed), seed=seed)
    for seed, value in enumerate(scratch):
        runs.evaluate(LINEAR, {"linear_top1": value}, seed=seed)
    runs.evaluate(KNN, {"knn_top1": 30.0})
    first, second, gain = table.rows(runs.root)
    assert second.cells["linear_top1"].values == pretrained
    assert second.cells["linear_top1"].deviation == pytest.approx(statistics.stdev(pretrained))
    assert len(second.checkpoints) == 3
    assert gain.gains["linear_top1"].mean == pytest.approx(72 - 41)
    assert gain.gains["linear_top1"].deviation == pytest.approx((7 + 2) ** 0.5)  # variances 7 and 2
    assert (first.seeds, second.seeds, gain.seeds) == ("1–2", "3", "")
    text = _text([first, second, gain])
    assert "72.0 ±2.6" in text
    assert "+31.0 ±3.0" in text
    assert "± is the standard deviation over 1–3 seeds" in " ".join(text.split())
    narrow = _text([first, second, gain], width=68)
    assert "crossmae_handwritten  ViT 96x4/8" in narrow
    assert all(number in narrow.split() for number in ("30.0", "72.0", "±2.6", "+31.0", "±3.0"))


def test_one_seed_against_several_has_no_deviation(runs: Runs) -> None:
    runs.evaluate(LINEAR, {"linear_top1": 70.0}, runs.pretrain())
    for seed in range(2):
        runs.evaluate(LINEAR, {"linear_top1": 40.0 + seed}, seed=seed)
    assert table.rows(runs.root)[-1].text("linear_top1") == "+29.5"


def test_protocols_are_never_mixed(runs: Runs) -> None:
    made = runs.pretrain()
    runs.evaluate(LINEAR, {"linear_top1": 40.0})
    runs.evaluate(LINEAR, {"linear_top1": 70.0}, made)
    runs.evaluate(LINEAR, {"linear_top1": 99.0}, made, epochs=50)
    runs.evaluate(DETECTION, {"box_ap": 9.0, "mask_ap": 8.0}, made, steps=7)
    scratch, pretrained, gain, other = table.rows(runs.root)
    assert (scratch.text("linear_top1"), pretrained.text("linear_top1")) == ("40.0", "70.0")
    assert (pretrained.note, gain.text("linear_top1")) == ("", "+30.0")
    assert pretrained.text("box_ap") == "9.0"  # the only detection there is, under the only protocol
    assert (other.text("linear_top1"), other.text("box_ap")) == ("99.0", "–")
    assert other.note == "linear: epochs=50"
    assert scratch.text("box_ap") == "–"
    second = sections.sections([scratch, pretrained, gain, other])[1]
    assert (second.title, list(second.columns)) == ("handwritten, linear: epochs=50", ["linear_top1"])


def test_data_sets_have_their_own_tables(runs: Runs) -> None:
    made = runs.pretrain()
    runs.evaluate(LINEAR, {"linear_top1": 40.0})
    for data, top1 in (("handwritten", 70.0), ("imagenet", 60.0), ("a/birds", 50.0), ("b/birds", 20.0)):
        runs.evaluate(LINEAR, {"linear_top1": top1}, made, data=data)
    runs.evaluate(KNN, {"knn_top1": 30.0}, data="imagenet")
    rows = table.rows(runs.root)
    assert [(row.data, row.kind, row.text("linear_top1")) for row in rows] == [
        ("handwritten", "scratch", "40.0"),
        ("handwritten", "pretrained", "70.0"),
        ("handwritten", "gain", "+30.0"),
        ("imagenet", "scratch", "–"),
        ("imagenet", "pretrained", "60.0"),  # the linear probe from scratch was not run there: no gain
        ("a/birds", "pretrained", "50.0"),
        ("b/birds", "pretrained", "20.0"),
    ]
    parts = sections.sections(rows)
    assert [part.title for part in parts] == ["handwritten", "imagenet", "a/birds", "b/birds"]
    assert [list(part.columns) for part in parts] == [
        ["linear_top1"],
        ["knn_top1", "linear_top1"],
        *[["linear_top1"]] * 2,
    ]
    assert [part.caption.partition(".")[0] for part in parts] == [f"Data: {part.title}" for part in parts]
    text = _text(rows)
    places = [text.index(part.caption[:20]) for part in parts]
    assert places == sorted(places)
    assert [row["data"] for row in table.to_json(rows)] == [row.data for row in rows]


def test_two_files_of_one_name_are_told_apart(runs: Runs, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        file = tmp_path / folder / "vit.pth"
        file.parent.mkdir()
        file.write_bytes(encoder_bytes(folder))
        runs.evaluate(KNN, {"knn_top1": 51.0}, file, SIZES["B"])
    names = [row.recipe for row in table.rows(runs.root)]
    hashes = [content_hash(tmp_path / folder / "vit.pth") for folder in ("one", "two")]
    assert names == [f"vit.pth [{content[:6]}]" for content in hashes]


def test_a_gain_is_better_or_worse_only_outside_the_noise(runs: Runs) -> None:
    """Welch's 95 % intervals of n = 2 and 2 with equal deviations: t = 4.303 with two degrees of freedom."""
    for seed, (linear, knn, ap) in enumerate([(70.0, 41.0, 5.0), (71.0, 42.0, 6.0)]):
        made = runs.pretrain(seed=seed)
        runs.evaluate(LINEAR, {"linear_top1": linear}, made, seed=seed)
        runs.evaluate(LINEAR, {"linear_top1": 40.0 + seed}, seed=seed)
        runs.evaluate(KNN, {"knn_top1": knn}, made, seed=seed)
        runs.evaluate(KNN, {"knn_top1": 40.0 + seed}, seed=seed)
        runs.evaluate(DETECTION, {"box_ap": ap, "mask_ap": ap}, made, seed=seed)
    runs.evaluate(DETECTION, {"box_ap": 1.0, "mask_ap": 9.0})
    [gain] = [row for row in table.rows(runs.root) if row.kind == "gain"]
    assert {key: one.better for key, one in gain.gains.items()} == {
        "linear_top1": True,
        "knn_top1": None,  # +1.0 within the noise
        "box_ap": None,  # one seed from scratch: noise unknown
        "mask_ap": None,
    }
    interval = gain.gains["knn_top1"].interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((1 - 4.3027 * 0.5**0.5, 1 + 4.3027 * 0.5**0.5), abs=1e-3)


def test_what_only_changes_speed_or_comes_from_another_path_is_the_same_protocol(runs: Runs, tmp_path: Path) -> None:
    made = runs.pretrain()
    copy = tmp_path / "copied.safetensors"
    copy.write_bytes(made.encoder.read_bytes())
    runs.evaluate(LINEAR, {"linear_top1": 70.0}, made)
    runs.evaluate(LINEAR, {"linear_top1": 72.0}, copy, seed=1, eval_batch=3)
    [row] = table.rows(runs.root)
    assert row.cells["linear_top1"].values == (70.0, 72.0)


def test_a_changed_pretraining_says_what_was_changed(runs: Runs) -> None:
    runs.pretrain()
    runs.evaluate(KNN, {"knn_top1": 55.0}, runs.pretrain(epochs=3))
    first, second = table.rows(runs.root)
    assert first.recipe == "crossmae_handwritten (epochs=3)"
    assert (second.recipe, second.cells, second.data) == ("crossmae_handwritten", {}, "")
    assert [section.title for section in sections.sections([first, second])] == ["handwritten", "Not evaluated yet"]


def test_a_checkpoint_made_elsewhere_is_called_by_its_file(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "mae_pretrain_vit_base.pth"
    file.write_bytes(encoder_bytes("weights"))
    runs.evaluate(KNN, {"knn_top1": 51.0}, file, SIZES["B"])
    [row] = table.rows(runs.root)
    assert (row.recipe, row.architecture, row.kind) == (file.name, "ViT-B/16", "pretrained")


def test_architectures_have_their_own_scratch(runs: Runs) -> None:
    small = replace(crossmae_handwritten().encoder, width=48)
    runs.evaluate(KNN, {"knn_top1": 10.0})
    runs.evaluate(KNN, {"knn_top1": 50.0}, runs.pretrain())
    runs.evaluate(KNN, {"knn_top1": 60.0}, runs.pretrain(encoder=small), encoder=small)
    assert [(row.kind, row.architecture) for row in table.rows(runs.root)] == [
        ("scratch", "ViT 96x4/8"),
        ("pretrained", "ViT 96x4/8"),
        ("gain", "ViT 96x4/8"),
        ("pretrained", "ViT 48x4/8"),
    ]


def test_unfinished_runs_have_no_cell(runs: Runs) -> None:
    runs.new("pretrain/crossmae_handwritten", crossmae_handwritten()).begin_attempt()
    assert table.rows(runs.root) == []


@pytest.mark.parametrize("damage", ["result.json", "run.json", "config.txt"])
def test_a_damaged_run_does_not_hide_the_others(runs: Runs, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    runs.evaluate(KNN, {"knn_top1": 50.0})
    broken = runs.evaluate(LINEAR, {"linear_top1": 60.0})
    (broken.path / damage).write_text('{"schema": 1,')
    with caplog.at_level(logging.WARNING):
        [row] = table.rows(runs.root)
    assert (row.text("knn_top1"), row.text("linear_top1")) == ("50.0", "–")
    assert str(broken.path) in caplog.text


def test_a_result_of_another_schema_is_left_out(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.evaluate(KNN, {"knn_top1": 50.0})
    run.result.write_text(json.dumps({**json.loads(run.result.read_text()), "schema": 99}))
    with caplog.at_level(logging.WARNING):
        assert table.rows(runs.root) == []
    assert "schema 99" in caplog.text


def test_json_holds_every_value(runs: Runs) -> None:
    made = runs.pretrain()
    for seed, value in enumerate((70.125, 71.0)):
        runs.evaluate(LINEAR, {"linear_top1": value}, made, seed=seed)
    runs.evaluate(LINEAR, {"linear_top1": 1 / 3})
    scratch, pretrained, gain = json.loads(json.dumps(table.to_json(table.rows(runs.root)), allow_nan=False))
    assert scratch["metrics"]["linear_top1"]["values"] == [1 / 3]
    assert scratch["metrics"]["linear_top1"]["deviation"] is None
    assert pretrained["metrics"]["linear_top1"]["values"] == [70.125, 71.0]
    assert pretrained["metrics"]["linear_top1"]["data"] == "handwritten"
    assert all(name.startswith("cls/linear_handwritten-") for name in pretrained["metrics"]["linear_top1"]["runs"])
    assert pretrained["metrics"]["box_ap"] is None
    assert pretrained["checkpoints"] == [content_hash(made.encoder)]
    assert gain["metrics"]["linear_top1"]["mean"] == pytest.approx(70.5625 - 1 / 3)


def test_markup_in_a_name_is_text(runs: Runs) -> None:
    runs.evaluate(KNN, {"knn_top1": 50.0}, runs.pretrain("pretrain/[bold]<script>"))
    assert "[bold]<script>" in _text(table.rows(runs.root))


def test_what_is_unverified_says_so_in_every_row_of_it(runs: Runs) -> None:
    config = replace(crossmae_handwritten(), masking=AttentionMasking(freq_mode="lowpass_energy"))
    made = runs.new("pretrain/crossmae_handwritten", config)
    made.encoder.write_bytes(encoder_bytes("famt"))
    runs.finish(made, {"loss": 0.25}, {"caveat": "FAMT-style, frequencies unverified"})
    runs.evaluate(KNN, {"knn_top1": 50.0}, made)
    runs.evaluate(LINEAR, {"linear_top1": 60.0}, made)
    [row] = [row for row in table.rows(runs.root) if row.kind == "pretrained"]
    assert row.recipe == "crossmae_handwritten (FAMT-style, frequencies unverified)"
    assert "unverified" in _text([row])

"""How far a run is, from the files it writes."""

from __future__ import annotations

import json
from pathlib import Path

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.runs.watch import Glimpse, Watch, last_lines, summary
from mimbench.jobs.studies.study import Run


def _write(run: RunDir, *lines: dict[str, object], rest: str = "") -> None:
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


def test_counted_in_epochs_or_in_steps() -> None:
    pretrain = Run("pretrain/crossmae_handwritten", ("epochs=20", "warmup_epochs=1")).directory(runs_root())
    detect = Run("det/mask_rcnn_handwritten", ("steps=400",)).directory(runs_root())
    for run in (pretrain, detect):
        assert Watch(run).look() == Glimpse()
        _write(run, {"step": 100, "epoch": 5.0, "loss": 0.51234, "lr": 1e-3, "images_per_second": 1210.4})
    assert Watch(pretrain).look() == Glimpse(0.25, "loss 0.512  1,210 img/s")
    assert Watch(detect).look().share == 0.25


def test_lines_of_evaluations_and_half_lines_are_passed_over() -> None:
    run = Run("cls/finetune_handwritten", ("epochs=4",)).directory(runs_root())
    line = {"step": 9, "epoch": 1.0, "loss": 2.0, "lr": 1e-3}
    _write(run, {**line, "epoch": 0.5}, line, {"step": 9, "epoch": 1.0, "finetune_top1": 40.0}, rest='{"step": 10, "ep')
    assert Watch(run).look() == Glimpse(0.25, "loss 2")


def test_the_end_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    assert last_lines(file, 3) == []
    file.write_text("\n".join(f"line {number} é" for number in range(10_000)))
    assert last_lines(file, 2) == ["line 9998 é", "line 9999 é"]


def test_as_many_lines_as_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    lines = [f"line {number} é" for number in range(10_000)]
    file.write_text("\n".join(lines))
    assert last_lines(file, 3000) == lines[-3000:]
    assert last_lines(file, 20_000) == lines
    assert last_lines(file, 2, end=len("\n".join(lines[:10]).encode())) == lines[8:10]


def test_a_finished_run_in_a_few_words(knn: RunDir) -> None:
    assert summary(knn) == ""
    knn.result.write_text(
        json.dumps({"stage": "det", "metrics": {"box_ap75": 3.0, "mask_ap": 4.56789, "box_ap": 12.0}})
    )
    assert summary(knn) == "box_ap 12  mask_ap 4.568"

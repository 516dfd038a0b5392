"""Lines of metrics, the bar, and result.json."""

from __future__ import annotations

import io
import json
import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import autocast_dtype, derived_seed, device_name, peak_memory, seed_all
from mimbench.engine.run.result import Outcome, commit, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training import progress
from mimbench.engine.training.metric_log import JsonLines, Means, NonFiniteLoss
from mimbench.engine.training.progress import Display, duration


def test_means_over_steps_and_micro_batches() -> None:
    means = Means()
    means.add(1, [{"loss": torch.tensor(1.0), "a": torch.tensor(4)}, {"loss": torch.tensor(3.0)}])
    means.add(2, [{"loss": torch.tensor([5.0])}])
    kept = means.state_dict()
    assert means.take() == {"loss": 3.0, "a": 4.0}
    assert means.take() == {}
    means.load_state_dict(kept)
    assert means.take() == {"loss": 3.0, "a": 4.0}


def test_the_first_bad_loss_is_named() -> None:
    means = Means()
    for step, loss in enumerate((1.0, 2.0, float("inf"), float("nan")), start=1):
        means.add(step, [{"loss": torch.tensor(loss), "other": torch.tensor(float("nan"))}])
    with pytest.raises(NonFiniteLoss, match="inf at iteration 3"):
        means.read()


def test_lines_past_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 5, "lr": 1}, {"step": 5, "score": 1}, {"step": 10, "lr": 1}, {"step": 10, "score": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 15, "lr": 1}]) + '{"step": 20, "l')
    sink = JsonLines(path, resumed_at=10)
    sink.write(10, {"score": 3.0})
    sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*lines[:3], {"step": 10, "score": 3.0}]


def test_the_bar_shows_loss_rate_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    screen = io.StringIO()
    display = Display("pretrain/tiny", 200, 0, Console(file=screen, force_terminal=True, width=120))
    display.advance(7)
    display.report(20, 0.51234, 1234.5, 3725, 512 * 2**20, 0.2)
    display.say("step 20: knn_top1 75.5")
    display.close()
    shown = screen.getvalue()
    for part in (
        "pretrain/tiny",
        "7/200",
        "20/200",
        "loss 0.5123",
        "1,234 img/s",
        "1:02:05 left",
        "512 MiB",
        "20% waiting",
        "75.5",
    ):
        assert part in shown, part


def test_elsewhere_there_are_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "SPEAK", 0.0)
    screen = io.StringIO()
    display = Display("pretrain/tiny", 200, 0, Console(file=screen))
    with caplog.at_level(logging.INFO):
        display.advance(20)
        display.report(20, 0.5, 1234, 65, 2**30, 0.0)
    assert caplog.messages == ["pretrain/tiny  20/200  loss 0.5000  1,234 img/s  0:01:05 left  1,024 MiB"]
    assert screen.getvalue() == ""


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 100000)] == ["0:00:00", "0:01:00", "1:00:00", "27:46:40"]


ABOUT = {
    "recipe": "cls/knn",
    "stage": "cls",
    "identity": "0123456789",
    "checkpoint": {"path": "a.safetensors", "hash": "ff"},
}


def test_a_result_says_everything(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "", ABOUT)
    outcome = Outcome({"knn_top1": 100 / 3}, {"k": 20}, 1500.0, 2**30, "a device", "mimbench")
    assert write_result(run, outcome, 12.5) == run.read_result()
    result = json.loads(run.result.read_text())
    assert result["metrics"] == {"knn_top1": 100 / 3}
    assert result["checkpoint"] == {"path": "a.safetensors", "hash": "ff", "family": "mimbench"}
    assert result["facts"] == {"k": 20}
    assert (result["seconds"], result["device"], result["peak_memory"]) == (12.5, "a device", 2**30)
    assert (result["recipe"], result["stage"], result["identity"]) == ("cls/knn", "cls", "0123456789")
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["loading"] is None
    loading = {"workers": 2, "cores": 2, "waiting": 0.125}
    assert write_result(run, replace(outcome, loading=loading), 12.5)["loading"] == loading
    assert run.state() == "done"


def test_a_result_is_a_number(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "", {**ABOUT, "checkpoint": None})
    with pytest.raises(ValueError, match="box_ap is nan"):
        write_result(run, Outcome({"box_ap": float("nan")}), 1.0)
    assert not run.result.exists()
    assert write_result(run, Outcome({"box_ap": 0.0}), 1.0)["checkpoint"] is None


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (commit() or "").partition("+")[0] == head.stdout.strip()


def test_seeds_differ_by_every_part() -> None:
    seeds = {derived_seed(*parts) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1, 0)]}
    assert len(seeds) == 6
    seed_all(derived_seed(3, 4))
    first = torch.rand(3)
    seed_all(derived_seed(3, 4))
    assert torch.equal(torch.rand(3), first)


def test_what_the_process_says_of_itself() -> None:
    cpu = torch.device("cpu")
    assert "thread" in device_name(cpu)
    assert 2**24 < peak_memory(cpu) < 2**40
    assert autocast_dtype(Compute(precision="fp32"), cpu) is None
    assert autocast_dtype(Compute(precision="bf16"), cpu) is torch.bfloat16
    assert autocast_dtype(Compute(), cpu) in (None, torch.bfloat16)

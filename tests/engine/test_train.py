"""The one training loop: it learns, logs, averages, accumulates, stops on NaN and never reads the device in between."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mimbench.engine.run.config import Compute
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.state import load_state, newest_valid
from mimbench.engine.training.step import Stepper
from mimbench.engine.training.train import NonFiniteLoss, Training, train

Make = Callable[..., Training]


def _lines(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns_and_leaves_what_is_promised(make_training: Make, run_dir: RunDir) -> None:
    training = make_training(steps=40, evaluate=lambda model: {"score": 12.5}, evaluate_every=15)
    trained = train(run_dir, training)
    lines = _lines(run_dir)
    steps = [line["step"] for line in lines if "lr" in line]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in lines if "score" in line] == [15, 30, 40]
    assert lines[-2]["loss"] < 0.6 * lines[0]["loss"]
    assert {"epoch", "loss", "right", "lr", "images_per_second", "seconds", "memory"} <= set(lines[0])
    assert lines[0]["epoch"] == pytest.approx(5 / 9)
    assert trained.metrics == {"score": 12.5}
    assert trained.images_per_second == pytest.approx(40 * 8 / trained.seconds)
    assert trained.peak_memory > 2**20
    assert not trained.model.training
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step-00000030.pt", "step-00000040.pt"]
    assert {path.name for path in run_dir.path.iterdir()} == {
        "checkpoints", "config.txt", "metrics.jsonl", "run.json", "tensorboard"
    }  # fmt: skip


def test_tensorboard_holds_the_same_numbers(make_training: Make, run_dir: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run_dir, make_training(steps=10))
    events = EventAccumulator(str(run_dir.path / "tensorboard"))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in _lines(run_dir)
    ]


def test_the_mean_of_a_line_is_over_its_steps(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    each = RunDir.create(run_dir.path.parent / "each", "", run_dir.read_about())
    train(run_dir, make_training(steps=10, dropout=0.2))
    train(each, make_training(steps=10, dropout=0.2, compute=replace(compute, log_every=1)))
    losses = [line["loss"] for line in _lines(each)]
    assert [line["loss"] for line in _lines(run_dir)] == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:]) / 5])


def test_started_again_it_carries_on(make_training: Make, run_dir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    def stop(model: nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run_dir, make_training(steps=30, dropout=0.2, evaluate=stop, evaluate_every=14))
    assert newest_valid(run_dir.checkpoints) == run_dir.checkpoints / "step-00000010.pt"
    (run_dir.checkpoints / ".step-00000020.pt.99.tmp").write_bytes(b"half")
    with caplog.at_level(logging.INFO):
        carried_on = train(run_dir, make_training(steps=30, dropout=0.2))
    assert "after step 10 of 30" in caplog.text
    other = RunDir.create(run_dir.path.parent / "other", "", run_dir.read_about())
    whole = train(other, make_training(steps=30, dropout=0.2))
    assert torch.equal(_weights(carried_on.model), _weights(whole.model))
    assert [line["step"] for line in _lines(run_dir)] == [5, 10, 15, 20, 25, 30]
    assert not list(run_dir.path.rglob("*.tmp"))


def test_a_kill_between_saving_and_removing_leaves_no_checkpoint_too_many(make_training: Make, run_dir: RunDir) -> None:
    train(run_dir, make_training(steps=20))
    kept = sorted(run_dir.checkpoints.iterdir())
    shutil.copy(kept[0], run_dir.checkpoints / "step-00000005.pt")
    train(run_dir, make_training(steps=20))
    assert sorted(run_dir.checkpoints.iterdir()) == kept


def test_a_finished_training_is_only_evaluated(make_training: Make, run_dir: RunDir) -> None:
    first = train(run_dir, make_training(steps=10, evaluate=lambda model: {"score": 1.0}))
    again = train(run_dir, make_training(steps=10, evaluate=lambda model: {"score": 2.0}))
    assert torch.equal(_weights(first.model), _weights(again.model))
    assert again.metrics == {"score": 2.0}
    assert [line["score"] for line in _lines(run_dir) if "score" in line] == [2.0]
    assert again.seconds == pytest.approx(first.seconds, rel=0.2)


@pytest.mark.parametrize("workers", [0, 2])
def test_accumulation_changes_no_more_than_rounding(
    make_training: Make, run_dir: RunDir, compute: Compute, workers: int
) -> None:
    whole = train(run_dir, make_training(steps=12))
    other = RunDir.create(run_dir.path.parent / "other", "", run_dir.read_about())
    cut = train(other, make_training(steps=12, batch=2, compute=replace(compute, accumulate=4, workers=workers)))
    torch.testing.assert_close(_weights(cut.model), _weights(whole.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(
    make_training: Make, run_dir: RunDir, compute: Compute, precision: Literal["bf16", "fp16"]
) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            scores = self.net(batch[0])
            seen.append(scores.dtype)
            return {"loss": nn.functional.cross_entropy(scores.float(), batch[1])}

    compute = replace(compute, precision=precision)
    train(run_dir, make_training(steps=30, compute=compute, model=Watched(), grad_clip=1.0))
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    lines = _lines(run_dir)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert load_state(run_dir.checkpoints / "step-00000030.pt")["stepper"]["model"]["net.weight"].dtype == torch.float32


def test_the_average_is_evaluated_and_returned(make_training: Make, run_dir: RunDir) -> None:
    evaluated = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        evaluated.append(_weights(model))
        return {"score": 1.0}

    trained = train(run_dir, make_training(steps=10, ema=0.9, evaluate=evaluate))
    state = load_state(run_dir.checkpoints / "step-00000010.pt")["stepper"]
    average = torch.cat([weight.flatten() for weight in state["ema"].values()])
    raw = torch.cat([weight.flatten() for weight in state["model"].values()])
    assert torch.equal(_weights(trained.model), average)
    assert torch.equal(evaluated[0], average)
    assert not torch.equal(raw, average)


def test_learning_rates_and_clipping(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    rates: list[list[float]] = []
    training = make_training(steps=3, learning_rate=lambda step: 0.1 * step, grad_clip=1e-9)
    training.optimizer.param_groups[1]["lr_scale"] = 0.5
    training.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(_rates(optimizer)))
    before = _weights(training.model).clone()
    train(run_dir, training)
    assert rates == [[0.0, 0.0], [0.1, 0.05], [0.2, 0.1]]
    assert _lines(run_dir)[0]["grad_norm"] > 0.01  # as it was before clipping
    assert not torch.equal(before, _weights(training.model))


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [round(group["lr"], 12) for group in optimizer.param_groups]


class _Exploding(nn.Module):
    """The loss becomes NaN in the forward call number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.at, self.calls = nn.Linear(6, 3), at, 0

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return {"loss": loss * float("nan") if self.calls == self.at else loss}


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_training: Make, run_dir: RunDir) -> None:
    with pytest.raises(NonFiniteLoss, match=r"nan at iteration 13: .*good checkpoint: .*step-00000010\.pt") as caught:
        train(run_dir, make_training(steps=40, model=_Exploding(13)))
    assert "\n" not in str(caught.value)
    assert newest_valid(run_dir.checkpoints) == run_dir.checkpoints / "step-00000010.pt"
    assert [line["step"] for line in _lines(run_dir)] == [5, 10]


def test_nan_right_before_a_checkpoint_is_not_saved(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    compute = replace(compute, log_every=1000)
    with pytest.raises(NonFiniteLoss, match="iteration 20"):
        train(run_dir, make_training(steps=40, model=_Exploding(20), compute=compute))
    assert newest_valid(run_dir.checkpoints) == run_dir.checkpoints / "step-00000010.pt"


def test_a_nan_weight_is_not_saved(make_training: Make, run_dir: RunDir) -> None:
    training = make_training(steps=20, learning_rate=lambda step: float("inf") if step == 9 else 1e-3)
    with pytest.raises(NonFiniteLoss, match=r"a weight became NaN or infinite by iteration 10.*checkpoint: none"):
        train(run_dir, training)
    assert newest_valid(run_dir.checkpoints) is None


class _Reads(TorchDispatchMode):
    """Counts what would make the CPU wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_read_nothing_from_the_device(
    make_training: Make, run_dir: RunDir, compute: Compute, precision: Literal["fp32", "bf16", "fp16"]
) -> None:
    compute = replace(compute, precision=precision, accumulate=2)
    training = make_training(steps=10, grad_clip=1.0, ema=0.9, compute=compute)
    stepper, batches = Stepper(training, torch.device("cpu")), training.batches.starting_at(0)
    prepared = list(itertools.islice(batches, 8))  # loading happens on the CPU
    stepper.step(0, iter(prepared))  # the optimiser makes its state in the first
    with _Reads() as reads:
        for index in range(1, 4):
            stepper.step(index, iter(prepared[2 * index :]))
    assert reads.count == 0


def test_wandb_is_named_when_it_is_missing(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    if shutil.which("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ValueError, match="pip install wandb"):
        train(run_dir, make_training(compute=replace(compute, wandb=True)))
    assert not run_dir.metrics.exists()


def test_wandb_gets_the_same_lines(
    make_training: Make, run_dir: RunDir, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda line, step: logged.append({"step": step, **line}), finish=lambda: logged.append("finished")
    )
    asked: dict[str, Any] = {}
    wandb = types.SimpleNamespace(init=lambda **keywords: asked.update(keywords) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(run_dir, make_training(steps=10, compute=replace(compute, wandb=True)))
    assert asked["id"] == "0123456789"
    assert asked["resume"] == "allow"
    assert logged == [*_lines(run_dir), "finished"]


def test_a_checkpoint_of_another_model_is_refused(make_training: Make, run_dir: RunDir) -> None:
    train(run_dir, make_training(steps=2))
    with pytest.raises(ValueError, match=r"step-00000002\.pt .*another model .*: remove") as caught:
        train(run_dir, make_training(steps=4, model=_Exploding(0)))
    assert "\n" not in str(caught.value)


def test_precision_may_change_between_attempts(make_training: Make, run_dir: RunDir, compute: Compute) -> None:
    precisions: tuple[Literal["fp32", "fp16", "bf16"], ...] = ("fp32", "fp16", "bf16")
    for steps, precision in zip((5, 10, 15), precisions, strict=True):
        train(run_dir, make_training(steps=steps, compute=replace(compute, precision=precision)))
    assert [line["step"] for line in _lines(run_dir)] == [5, 10, 15]


def test_impossible_trainings_are_refused(make_training: Make, compute: Compute) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        make_training(steps=0)
    training = make_training()
    with pytest.raises(ValueError, match=r"accumulate=1.*accumulate=2"):
        replace(training, compute=replace(compute, accumulate=2))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            make_training(compute=replace(compute, device="cuda"))


@pytest.mark.parametrize("filled_at", ["while saving", "while logging"])
def test_a_full_disk_stops_in_one_line_and_keeps_the_checkpoint(
    make_training: Make, tmp_path: Path, compute: Compute, filled_at: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        run = RunDir.create(disk / "run", "", {"recipe": "test/tiny", "stage": "test", "identity": "0"})

        def fill(model: nn.Module) -> dict[str, float]:
            deadline = time.monotonic() + 30
            while not (run.checkpoints / "step-00000010.pt").exists() and time.monotonic() < deadline:
                time.sleep(0.01)  # a thread is still writing it
            free = shutil.disk_usage(disk).free
            (disk / "other").write_bytes(bytes(free - (8192 if filled_at == "while saving" else 0)))
            return {}

        wide = nn.Sequential(nn.Linear(6, 3000), nn.Linear(3000, 3))
        training = make_training(
            steps=20, model=_Sized(wide), evaluate=fill, evaluate_every=12, compute=replace(compute, log_every=10)
        )
        with pytest.raises(OSError) as caught:
            train(run, training)
        assert caught.value.errno == errno.ENOSPC
        assert Path(caught.value.filename).is_relative_to(run.path)
        assert newest_valid(run.checkpoints) == run.checkpoints / "step-00000010.pt"
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class _Sized(nn.Module):
    """A network of some size: its checkpoint takes 320 kB."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.net(batch[0]), batch[1])}


def test_nothing_is_left_in_the_temporary_directory(
    make_training: Make, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """mmengine writes and says a lot when left to itself."""
    temporary = run_dir.path.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    train(run_dir, make_training(steps=2))
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr().out == ""

"""How long a training waits for its data: measured, recorded, carried over a restart, and said."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import pytest

from mimbench.engine.data.batches import Batches, evaluation_loader
from mimbench.engine.data.waiting import Waiting, Waits, advice
from mimbench.engine.run.config import Compute
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training import session as sessions
from mimbench.engine.training.train import Training, train
from tests.engine.conftest import NoisyVectors
from tests.engine.test_data import Draws, _taken


def test_only_the_time_until_a_batch_is_there_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)

    def slow() -> Iterator[int]:
        nonlocal clock
        for number in range(4):
            clock += 2.0 if number == 0 else 0.5
            yield number

    waiting = Waiting()
    for number, _ in enumerate(waiting.over(slow())):
        clock += 3.0  # a step
        assert waiting.read() == Waits(starting=2.0, seconds=0.5 * number)
    assert waiting.read().share(of=clock) == 1.5 / 13.5


def test_shares_are_shares() -> None:
    assert Waits(starting=2.0, seconds=3.0).share(of=2.0) == 0.0, "nothing but the start"
    assert Waits(starting=0.0, seconds=3.0).share(of=2.9) == 1.0, "clocks differ by a little"


def test_auto_is_two_processes_on_two_cores(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mimbench.engine.data.batches.cores_of_process", lambda: 2)
    caplog.set_level(logging.INFO)
    assert Batches(Draws(24), 4, seed=0, workers="auto").workers == 2
    assert evaluation_loader(Draws(24), 4, "auto").num_workers == 2
    assert evaluation_loader(Draws(3), 4, "auto").num_workers == 1, "one batch needs one process"
    assert caplog.text.count("compute.workers=auto: 2 data loading processes for 2 cores") <= 1
    monkeypatch.setattr("mimbench.engine.data.batches.cores_of_process", lambda: 1)
    batches = Batches(Draws(24), 4, seed=0, workers="auto")
    assert batches.workers == 1
    assert _taken(batches, 0, 3) == _taken(Batches(Draws(24), 4, seed=0), 0, 3)


def test_a_run_says_and_records_how_long_it_waited(
    make_training: Callable[..., Training],
    run_dir: RunDir,
    compute: Compute,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sessions, "LONG", 0.0)
    monkeypatch.setattr(sessions, "NOTABLE", 0.0)
    training = make_training(steps=8, compute=compute)
    item = NoisyVectors.__getitem__

    def slow(self: NoisyVectors, index: int) -> object:
        time.sleep(0.01)
        return item(self, index)

    monkeypatch.setattr(NoisyVectors, "__getitem__", slow)
    trained = train(run_dir, training)
    loading = trained.loading
    assert loading["workers"] == 0
    assert loading["waiting_seconds"] >= 7 * 8 * 0.01, "seven steps of eight samples"
    assert loading["starting_seconds"] >= 8 * 0.01
    counted = trained.seconds - loading["starting_seconds"]
    assert loading["waiting"] == pytest.approx(loading["waiting_seconds"] / counted)
    assert "waiting for data" in caplog.text
    assert caplog.text.count("data loading is the bottleneck") == 1


@pytest.mark.parametrize(
    ("workers", "cores", "fitted", "way"),
    [
        (2, 12, 11, "use compute.workers=11 (auto) or images made smaller"),
        (11, 12, 11, "use more cores than the 12 of this process or images"),
    ],
)
def test_the_advice_names_the_way_out(workers: int, cores: int, fitted: int, way: str) -> None:
    line = advice(0.43, workers, cores, fitted)
    assert line.startswith(f"data loading is the bottleneck: 43% of the time is spent waiting for {workers} loading")
    assert way in line

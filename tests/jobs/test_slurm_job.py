"""Inside a job: ranks, giving up, and what goes back into the queue."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import job as slurm_job


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was never started."""
    return RunDir.create(tmp_path / "cls" / "a", "", {"recipe": "cls/a", "stage": "cls", "identity": "a"})


def _attempts(run: RunDir, *ends: tuple[str, int], job: str | None = "12") -> None:
    for state, step in ends:
        number = run.begin_attempt(step=step, job=job)
        run.end_attempt(number, state, f"{state} at {step}")  # type: ignore[arg-type]


def test_three_attempts_without_progress_are_enough(run: RunDir) -> None:
    _attempts(run, ("interrupted", 0), ("interrupted", 40), ("lost", 40), ("interrupted", 40))
    run.begin_attempt(step=40, job="12")
    why = slurm_job.no_progress(run)
    assert why is not None
    assert why.startswith(
        "given up: 3 attempts in a row made no progress after step 40 (interrupted at 40, lost at 40)"
    )
    assert "compute.save_every" in why


@pytest.mark.parametrize(
    ("ends", "now", "job"),
    [
        ([("interrupted", 40)] * 2, 40, "12"),
        ([("interrupted", 20), ("interrupted", 40), ("interrupted", 40)], 40, "12"),
        ([("interrupted", 40)] * 3, 60, "12"),
        ([("failed", 40)] * 3, 40, "12"),
        ([("interrupted", 40)] * 3, 40, None),
    ],
    ids=["two", "progress before", "progress now", "failed", "started by hand"],
)
def test_others_go_on(run: RunDir, ends: list[tuple[str, int]], now: int, job: str | None) -> None:
    _attempts(run, *ends, job=job)
    run.begin_attempt(step=now, job=job)
    assert slurm_job.no_progress(run) is None


@pytest.mark.parametrize(
    ("ends", "restarts", "state", "why"),
    [
        ([("interrupted", 5)], 0, "RUNNING", None),
        ([("done", 5)], 0, "RUNNING", "the run is done"),
        ([("failed", 5)], 0, "RUNNING", "the run is failed"),
        ([("interrupted", 5)], 0, "COMPLETING", "SLURM is ending the job itself (COMPLETING)"),
        ([], 0, "RUNNING", None),
        ([], 3, "RUNNING", "its process died 3 times before the run began"),
    ],
)
def test_what_goes_back(
    run: RunDir,
    ends: list[tuple[str, int]],
    restarts: int,
    state: str,
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slurm, "state_of", lambda job: state)
    _attempts(run, *ends)
    assert slurm_job.verdict(run, "12", restarts) == why


def test_an_error_of_another_rank_is_the_runs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "state_of", lambda job: "RUNNING")
    _attempts(run, ("interrupted", 5))
    monkeypatch.setenv("RANK", "1")
    slurm_job.note_rank_error(run, "x.png cannot be decoded")
    assert slurm_job.verdict(run, "12", 0) == "process 1: x.png cannot be decoded"
    assert run.state() == "failed"


def test_ranks_from_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2)")
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    slurm_job.take_ranks()

    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
        "5",
        "8",
        "1",
        "4",
    ]


def test_ports_below_those_that_linux_hands_out() -> None:
    assert 20000 <= slurm_job.free_port() < 32768


def test_a_job_that_comes_back_elsewhere_does_not_wait_for_its_own_heartbeat(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = run.begin_attempt(step=0, job="12")
    assert run.state() == "running"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("MIMBENCH_JOB_ID", "12")
    slurm_job.settle(run)
    assert run.attempts()[number - 1]["state"] == "lost"
    assert run.begin_attempt(step=0, job="12") == 2

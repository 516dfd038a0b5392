"""Inside a job: ranks, giving up, and what goes back into the queue."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import hung_step
from mimbench.jobs.slurm import job as slurm_job
from mimbench.jobs.slurm.cluster import Shape
from mimbench.jobs.slurm.submission import Batch
from tests.slurm.cluster import wait_for


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was never started."""
    return RunDir.create(tmp_path / "cls" / "a", "", {"recipe": "cls/a", "stage": "cls", "identity": "a"})


def _attempts(run: RunDir, *ends: tuple[str, int], job: str | None = "12", stopped: str = slurm_job.KILLED) -> None:
    for state, step in ends:
        number = run.begin_attempt(step=step, job=job)
        run.end_attempt(number, state, f"{state} at {step}")  # type: ignore[arg-type]
        run.amend_attempt(number, {"stopped": stopped})


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


def _submitted(run: RunDir, minutes: int) -> None:
    batch = Batch(run.path.parents[1], "a100", "x", {0: "cls/a"}, Shape(minutes=minutes), submitted=1.0)
    batch.note()


def _spent(run: RunDir, number: int, seconds: float) -> None:
    run.amend_attempt(number, {"ended": run.attempts()[number - 1]["started"] + seconds})


@pytest.mark.parametrize(
    ("seconds", "given_up"),
    [((60, 60, 60, 60), False), ((1801, 60, 60, 60), False), ((1801, 60, 1801, 1801), True), ((-5, -5, -5, -5), False)],
    ids=["preempted at once", "time once", "time three times", "a clock set back"],
)
def test_a_preemption_does_not_count_unless_there_was_time(
    run: RunDir, seconds: tuple[float, ...], given_up: bool
) -> None:
    _submitted(run, minutes=60)
    _attempts(run, *[("interrupted", 40)] * 4, stopped=slurm_job.OUTSIDE)
    for number, lasted in enumerate(seconds, 1):
        _spent(run, number, lasted)
    run.begin_attempt(step=40, job="12")
    assert (slurm_job.no_progress(run) is not None) == given_up


@pytest.mark.parametrize(
    ("state", "code", "world", "told", "stopped"),
    [
        ("interrupted", 143, 1, 0, "from outside"),
        ("interrupted", 143, 3, 2, "from outside"),
        ("interrupted", 143, 3, 1, "killed"),  # srun ended the others after one rank was killed
        ("interrupted", 137, 3, 2, "killed"),
        ("interrupted", 140, 3, 0, "from outside"),  # the warning reaches rank 0 alone
        ("running", 137, 1, 0, "killed"),
    ],
)
def test_how_an_attempt_was_stopped(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, state: str, code: int, world: int, told: int, stopped: str
) -> None:
    monkeypatch.setattr(slurm, "state_of", lambda job: "RUNNING")
    monkeypatch.setattr(slurm, "requeue", lambda job: None)
    number = run.begin_attempt(step=0, job="12", restart=0, world=world)
    for rank in range(1, told + 1):
        monkeypatch.setenv("RANK", str(rank))
        slurm_job.note_signal(run)
    if state == "interrupted":
        run.end_attempt(number, "interrupted", "stopped")
    assert slurm_job.main([str(run.path), "12", str(code)]) == 0
    assert run.attempts()[0]["stopped"] == stopped


def test_a_hung_srun_is_ended_only_if_this_start_of_the_run_is_gone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not hung_step.is_gone(run, "12"), "it is importing"
    first = run.begin_attempt(step=0, job="12", restart=0)
    run.end_attempt(first, "interrupted")
    assert not hung_step.is_gone(run, "12"), "that was the start before"
    second = run.begin_attempt(step=10, job="12", restart=1)
    assert not hung_step.is_gone(run, "12"), "this process is alive"
    run.amend_attempt(second, {"process_started": 0.0})
    assert hung_step.is_gone(run, "12"), "its process is another one now"
    run.end_attempt(second, "interrupted")
    assert hung_step.is_gone(run, "12"), "it ended, and srun does not hear of it"
    assert not hung_step.is_gone(run, "13")


def test_a_node_that_was_cut_off_does_not_requeue_the_later_start(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "state_of", lambda job: "RUNNING")
    first = run.begin_attempt(step=0, job="12", restart=0)
    run.end_attempt(first, "lost")
    second = run.begin_attempt(step=0, job="12", restart=1)
    assert slurm_job.verdict(run, "12", 0) == "a later start of this job runs it"
    assert run.is_superseded(first)
    assert not run.is_superseded(second)


def test_a_start_without_its_shell_requeues_the_job_unless_a_later_one_runs(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(slurm, "requeue", asked.append)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("MIMBENCH_JOB_ID", "12")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv("MIMBENCH_JOB_SHELL", f"n1:{gone.pid}")
    first = run.begin_attempt(step=0, job="12", restart=0)
    slurm_job.requeue_without_shell(run, first)
    assert asked == ["12"]
    run.end_attempt(first, "lost")
    run.begin_attempt(step=0, job="12", restart=1)
    slurm_job.requeue_without_shell(run, first)
    assert asked == ["12"], "it would stop the start on the other node"


@pytest.mark.parametrize(
    ("ends", "restarts", "state", "why"),
    [
        ([("interrupted", 5)], 0, "RUNNING", None),
        ([("done", 5)], 0, "RUNNING", "the run is done"),
        ([("failed", 5)], 0, "RUNNING", "the run is failed"),
        ([("interrupted", 5)], 0, "COMPLETING", "SLURM is ending the job itself (COMPLETING)"),
        ([("interrupted", 5)], 0, "PREEMPTED", None),
        ([("done", 5)], 0, "PREEMPTED", "the run is done"),
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
    monkeypatch.setattr(slurm, "state_of", lambda job: None if state == "PREEMPTED" else state)
    shown = "2026-11-30T13:06:45" if state == "PREEMPTED" else "None"
    monkeypatch.setattr(slurm, "ask", lambda *command: f"JobId=12 PreemptTime={shown} Restarts=0")
    _attempts(run, *ends)
    assert slurm_job.verdict(run, "12", restarts) == why


def test_the_end_of_a_job_asks_until_slurm_answers(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _attempts(run, ("interrupted", 5))
    asked: list[tuple[str, ...]] = []

    def ask(*command: str) -> str:
        asked.append(command)
        if len(asked) in (1, 2, 4):  # munge is down, and once more when the job is to be requeued
            raise slurm.refusal("squeue: error: Munge encode failed: Failed to access socket: No such file")
        return "12|RUNNING"

    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert slurm_job.main([str(run.path), "12", "137"]) == 0
    assert [command[0] for command in asked] == ["squeue", "squeue", "squeue", "scontrol", "scontrol"]
    assert "requeued to resume" in capsys.readouterr().err
    asked.clear()
    monkeypatch.setattr(slurm_job, "ANSWER", -1.0)
    slurm_job.main([str(run.path), "12", "137"])
    assert "not requeued: SLURM does not answer" in capsys.readouterr().err


def test_a_run_whose_step_slurm_has_lost_lets_the_shell_of_its_job_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").symlink_to("/bin/sleep")
    shell = subprocess.Popen(["bash", "-c", f"{tmp_path}/srun 600; exit $((100 + $?))"])
    try:
        monkeypatch.setenv("MIMBENCH_JOB_SHELL", f"n1:{shell.pid}")
        monkeypatch.setenv("SLURMD_NODENAME", "n2")
        wait_for(lambda: [child.name() for child in psutil.Process(shell.pid).children()] == ["srun"], 10, "srun")
        slurm_job.end_srun()
        assert shell.poll() is None, "it is on another node"
        monkeypatch.setenv("SLURMD_NODENAME", "n1")
        slurm_job.end_srun()
        assert shell.wait(10) == (100 + 137) % 256
    finally:
        shell.kill()
    slurm_job.end_srun()  # the shell is gone


def test_whose_parent_is_gone_is_an_orphan_in_a_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not slurm_job.is_orphan(os.getppid() + 1)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("MIMBENCH_JOB_ID", "12")
    assert slurm_job.is_orphan(os.getppid() + 1)
    assert not slurm_job.is_orphan(os.getppid())


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

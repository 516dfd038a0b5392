"""Runs on a real SLURM that are preempted, run out of time, are put back, killed and cancelled: all end as if not.

The weights at the end are those of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import schedulers
from mimbench.jobs.slurm.commands import UnreachableError
from mimbench.jobs.slurm.job import steps_done
from mimbench.jobs.slurm.submission import read, unsent
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import Site
from tests.slurm.processes import by_rank, of_run, of_slurm, paused

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def _weights(run: RunDir) -> str:
    return hashlib.sha256(run.encoder.read_bytes()).hexdigest()


def _losses(run: RunDir) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "lr" in line]


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, RunDir]:
    """By the number of processes, where the run that nothing stops will be."""
    root = tmp_path_factory.mktemp("straight")
    return {1: RunDir(root / "one"), 2: RunDir(root / "two")}


@pytest.fixture
def never_stopped(site: Site, straight: dict[int, RunDir]) -> dict[int, RunDir]:
    """Runs with one process and with two that nothing stopped; made once."""
    for tasks, place in straight.items():
        if not place.path.exists():
            elsewhere = Site(place.path, site.profile, site.cluster)
            elsewhere.submit(elsewhere.pretrain(), tasks=tasks)
    found = {}
    for tasks, place in straight.items():
        elsewhere = Site(place.path, site.profile, site.cluster)
        found[tasks] = elsewhere.pretrain()
        elsewhere.wait(found[tasks], "done")
        assert len(found[tasks].attempts()) == 1
    return found


def _same(run: RunDir, reference: RunDir) -> None:
    assert _weights(run) == _weights(reference)
    assert _losses(run) == _losses(reference)


def test_preempted_with_a_warning(site: Site, never_stopped: dict[int, RunDir]) -> None:
    """The same run under two roots: with one process, and with two that train together."""
    alone, together = (Site(site.root / name, site.profile, site.cluster) for name in "12")
    one, two = alone.pretrain(), together.pretrain()
    alone.submit(one)
    together.submit(two, nodes=2)
    alone.wait_for_step(one, 15)
    together.wait_for_step(two, 10)
    site.preempt()
    alone.wait(one, "queued")
    saved = steps_done(one)
    job = read(one)
    alone.wait(one, "done")
    together.wait(two, "done")
    for run, tasks in ((one, 1), (two, 2)):
        _same(run, never_stopped[tasks])
        assert [attempt["state"] for attempt in run.attempts()] == ["interrupted", "done"]
        assert "preemption or time limit" in run.attempts()[0]["why"]
    assert job is not None
    assert [attempt["job"] for attempt in one.attempts()] == [job.job] * 2, "it comes back under the same id"
    assert one.attempts()[1]["step"] == saved >= 15, "no more is lost than what came after the last checkpoint"


def test_preempted_by_sigterm_alone_and_slurm_restarted_meanwhile(
    site: Site, never_stopped: dict[int, RunDir], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers, "BACK_OFF", (0.5,))
    run, late = site.pretrain(), site.pretrain("seed=3", "epochs=1")
    site.submit(run, nodes=2)
    site.wait_for_step(run, 10)
    with paused(run):
        cluster.stop_controller()
        with pytest.raises(UnreachableError, match=r"SLURM does not answer: .* 1 runs were not submitted"):
            site.submit(late)
        assert site.status(late) == "new"
        assert unsent(site.root) == []
        cluster.configure(user_signal=False)
        cluster.start_controller()
    try:
        site.preempt()
        site.wait(run, "queued")
        site.submit(late)
        assert schedulers.waiting(site.profile, site.root) == 0
        site.wait(run, "done")
        site.wait(late, "done")
    finally:
        cluster.restart_controller(user_signal=True)
    _same(run, never_stopped[2])
    assert [attempt["state"] for attempt in run.attempts()] == ["interrupted", "done"]


def test_out_of_time_and_put_back_and_killed(site: Site, never_stopped: dict[int, RunDir], cluster: Cluster) -> None:
    """Three runs side by side: a time limit, `scontrol requeue`, and SIGKILL of the second of two processes."""
    places = [Site(site.root / name, site.profile, cluster) for name in ("limit", "back", "killed")]
    limit, back, killed = places
    limit.profile = replace(limit.profile, signal_seconds=600)  # SLURM looks every half minute only
    late, returned, robbed = runs = [place.pretrain() for place in places]
    for place, run, tasks in zip(places, runs, (1, 1, 2), strict=True):
        place.submit(run, tasks=tasks)
    jobs = [found.job for run in runs if (found := read(run))]
    limit.wait_for_step(late, 10)
    with paused(late):
        _time_limit(cluster, str(jobs[0]), _minutes(cluster, str(jobs[0])) + 5)
        back.wait_for_step(returned, 10)
        cluster.ask("scontrol", "requeue", str(jobs[1]))
        killed.wait_for_step(robbed, 10)
        by_rank(robbed)[1].kill()
        limit.wait(late, "queued")  # SLURM wakes what it warns
    wait_for(lambda: _time_limit(cluster, str(jobs[0]), 30) == "30:00", 60, "half an hour more")
    for place, run, tasks in zip(places, runs, (1, 1, 2), strict=True):
        place.wait(run, "done")
        _same(run, never_stopped[tasks])
        *before, last = (attempt["state"] for attempt in run.attempts())
        assert (set(before), last) == ({"interrupted"}, "done"), "out of time again, where the machine is slow"
    assert "preemption or time limit" in late.attempts()[0]["why"]


def test_a_node_fails_and_what_is_cancelled_stays_so(site: Site, cluster: Cluster) -> None:
    run = site.pretrain()
    site.submit(run)
    site.wait_for_step(run, 10)
    found = read(run)
    assert found is not None
    node = cluster.ask("squeue", "-h", "-j", str(found.job), "-o", "%N").strip()
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait_for(lambda: len(run.attempts()) == 2, 300, "a second start, on the other node")
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
    site.wait_for_step(run, run.attempts()[1]["step"] + 5)
    assert run.attempts()[1]["step"] >= 10, "it goes on from its last checkpoint"
    cluster.ask("scancel", str(found.job))
    site.wait(run, "interrupted")
    assert [attempt["state"] for attempt in run.attempts()][1:] == ["interrupted"]
    assert "not requeued" in _output(run) or str(found.job) not in cluster.ask("squeue", "-h", "-o", "%i")
    schedulers.requeue([run], site.profile)
    site.wait(run, "running")
    assert schedulers.cancel([run], site.profile) == [run]
    assert read(run) is None


def test_the_shell_of_the_job_or_its_step_is_killed(
    site: Site, never_stopped: dict[int, RunDir], cluster: Cluster
) -> None:
    """Side by side: the shell by SIGKILL and by HUP, the step's process with the run. All come back by themselves."""
    places = [Site(site.root / name, site.profile, cluster) for name in ("kill", "hup", "step")]
    places[2].profile = replace(site.profile, setup=("export MIMBENCH_JOB_LOOK=10",))
    runs = [place.pretrain() for place in places]
    for place, run in zip(places, runs, strict=True):
        place.submit(run)
    for place, run in zip(places, runs, strict=True):
        place.wait_for_step(run, 10)
    psutil.Process(int(_environment(runs[0])["MIMBENCH_JOB_SHELL"].rpartition(":")[2])).kill()
    hup, step = (str(found.job) for run in runs[1:] if (found := read(run)))
    cluster.ask("scancel", "--signal=HUP", "--batch", hup)
    for process in [*of_slurm(f"slurmstepd: [{step}.0]"), *of_run(runs[2])]:
        process.kill()
    for place, run in zip(places, runs, strict=True):
        place.wait(run, "done")
        _same(run, never_stopped[1])
    assert [attempt["state"] for attempt in runs[0].attempts()] == ["interrupted", "done"]
    assert [attempt["state"] for attempt in runs[1].attempts()] == ["done"], "the shell ignores it"
    assert [attempt["state"] for attempt in runs[2].attempts()] == ["lost", "done"]
    assert "srun is ended" in _output(runs[2])


def _environment(run: RunDir) -> dict[str, str]:
    return by_rank(run)[0].environ()


def _time_limit(cluster: Cluster, job: str, minutes: int) -> str:
    """Change it; what it is then."""
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    return cluster.ask("squeue", "-h", "-j", job, "-o", "%l").strip()


def _minutes(cluster: Cluster, job: str) -> int:
    """How long the job has run."""
    *hours, minutes, _ = cluster.ask("squeue", "-h", "-j", job, "-o", "%M").strip().split(":")
    return 60 * int(hours[0] if hours else 0) + int(minutes)


def _output(run: RunDir) -> str:
    return "".join(file.read_text() for file in (Path(run.path).parents[1] / ".mimbench").rglob("*_log.out"))

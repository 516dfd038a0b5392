"""Studies through the command on a real SLURM, most on drained nodes: nothing starts, each step can be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mimbench.jobs.cli.main import app
from mimbench.jobs.slurm import schedulers, submission
from mimbench.jobs.studies import plan as planning
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.study_files import load_study
from mimbench.jobs.studies.submit import submit_cluster
from mimbench.jobs.studies.sweep import Sweep
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import LONG, PRETRAIN, Site

pytestmark = pytest.mark.xdist_group("slurm")

STUDY = """
from mimbench.jobs.studies.study import Run, Study

first = Run("pretrain/crossmae_handwritten", label="pretrain, the first")
probes = [Run("cls/knn_handwritten", (f"seed={{seed}}",), first, f"knn {{seed}}") for seed in range({probes})]
study = Study("small", [first, *probes, Run("cls/knn_handwritten", label="from scratch")])
"""


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


@pytest.fixture
def drained(site: Site, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site at which jobs wait."""
    monkeypatch.setenv("MIMBENCH_RUNS", str(site.root))
    cluster.ask("scontrol", "update", "NodeName=n[1-2]", "State=DRAIN", "Reason=test")
    yield site
    cluster.ask("scancel", "-u", "root")
    wait_for(lambda: cluster.ask("squeue", "-h") == "", 60, "an empty queue")
    cluster.ask("scontrol", "update", "NodeName=n[1-2]", "State=RESUME")


def _file(site: Site, probes: int) -> Path:
    site.root.mkdir(exist_ok=True)
    file = site.root.parent / "small.py"
    file.write_text(STUDY.format(probes=probes))
    return file


def _counts(file: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(mimbench("plan", file, "--json").stdout)["counts"]
    return counts


def _queue(cluster: Cluster) -> list[str]:
    return cluster.ask("squeue", "-h", "-r", "-o", "%i %E").splitlines()


def test_a_study_is_submitted_once_and_steered(drained: Site, cluster: Cluster) -> None:
    file = _file(drained, probes=3)
    shown = mimbench("submit", file, "--cluster", "tiny", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("#!/bin/bash") == 2, "what needs nothing, and what needs the pretraining"
    assert "#SBATCH --array=" in shown.stdout
    told = json.loads(mimbench("submit", file, "--cluster", "tiny", "--dry-run", "--json").stdout)
    assert (told["before"], told["sbatch"].count("#!/bin/bash")) == ({"new": 5}, 2)
    assert _queue(cluster) == []
    assert _counts(file) == {"new": 5}

    done = mimbench("submit", file, "--cluster", "tiny", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["submitted"] == 5
    queue = _queue(cluster)
    assert len(queue) == 5
    assert sum("after" in line for line in queue) == 3, "the probes wait for the pretraining"
    assert _counts(file) == {"queued": 5}
    again = mimbench("submit", file, "--cluster", "tiny", "--json")
    assert json.loads(again.stdout)["submitted"] == 0
    assert _queue(cluster) == queue

    rows = json.loads(mimbench("status", "--state", "queued", "--json").stdout)
    assert {row["label"] for row in rows} == {"pretrain, the first", "knn 0", "knn 1", "knn 2", "from scratch"}
    assert mimbench("cancel", "knn 1").exit_code == 0
    assert len(_queue(cluster)) == 4
    assert _counts(file) == {"new": 1, "queued": 4}

    smaller = _file(drained, probes=1)
    assert _counts(smaller) == {"queued": 3, "orphaned": 2}
    assert mimbench("submit", smaller, "--cluster", "tiny").exit_code == 0
    assert len(_queue(cluster)) == 4, "what is in the study no more keeps its place in the queue"
    assert mimbench("submit", smaller, "--cluster", "tiny", "--prune").exit_code == 0
    assert len(_queue(cluster)) == 3
    assert _counts(smaller) == {"queued": 3}


def test_what_needs_a_failed_run_is_not_submitted(drained: Site, cluster: Cluster) -> None:
    file = _file(drained, probes=2)
    study = load_study(str(file), drained.root)
    first = study.prepare(drained.root)[study.runs[0]]
    first.end_attempt(first.begin_attempt(), "failed", "the data are no good")
    assert mimbench("submit", file, "--cluster", "tiny").exit_code == 0
    assert len(_queue(cluster)) == 1, "the one from scratch"
    assert _counts(file) == {"queued": 1, "failed": 1, "blocked": 2}
    assert mimbench("submit", file, "--cluster", "tiny", "--retry").exit_code == 0
    assert len(_queue(cluster)) == 4
    plan = planning.plan(study, drained.root)
    assert {line.state for line in plan.lines} == {"queued"}
    assert all(submission.read(line.directory) for line in plan.lines)


def test_a_budget_stops_a_study_and_lets_it_go_on(drained: Site, cluster: Cluster) -> None:
    """Four runs of an hour each, of which one is done: what is queued reserves its hours."""
    runs = [Run("cls/knn_handwritten", (f"seed={seed}",), label=f"knn {seed}") for seed in range(4)]
    Sweep("budget", "cls/knn_handwritten", [[f"seed={seed}"] for seed in range(4)]).keep(drained.root)
    first = Study("budget", runs).prepare(drained.root)[runs[0]]
    number = first.begin_attempt(gpus=0)
    first.result.write_text(json.dumps({"metrics": {"knn_top1": 50.0}}))
    first.end_attempt(number, "done")
    first.amend_attempt(number, {"started": first.attempts()[0]["ended"] - 3600})

    def submit(*options: str) -> tuple[int, dict[str, Any], str]:
        done = mimbench("submit", "budget", "--cluster", "tiny", "--json", *options)
        assert done.exit_code == 0, done.stderr
        told = json.loads(done.stdout)
        return told["submitted"], told["budget"], done.stderr

    submitted, budget, said = submit("--cpu-hours", "3.5")
    assert (submitted, len(budget["held"]), len(_queue(cluster))) == (2, 1, 2)
    assert (budget["spent"]["cpu"], budget["reserved"]["cpu"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert said.splitlines()[-1] == "to go on: mimbench submit budget --cluster tiny --cpu-hours 4"
    submitted, budget, _ = submit()
    assert (submitted, budget["cpu_hours"], len(_queue(cluster))) == (0, 3.5, 2), "the budget stays"
    rows = json.loads(mimbench("status", "--json").stdout)
    assert [row["text"] for row in rows if row["state"] == "new"] == ["held by the budget of budget"]
    submitted, budget, _ = submit("--cpu-hours", "4")
    assert (submitted, budget["held"], len(_queue(cluster))) == (1, {}, 3)


@pytest.mark.slow
def test_an_evaluation_on_the_way_starts_when_its_encoder_is_there(site: Site, cluster: Cluster) -> None:
    """The pretraining is far from done, and what waits for its end goes on waiting."""
    long = Run(PRETRAIN, (*LONG, "epochs=200", "keep_encoder_every=1"), label="long")
    soon, late = (
        Run("cls/knn_handwritten", ("neighbours=10,20",), long, name, epoch=epoch)
        for name, epoch in (("soon", 1), ("late", None))
    )
    study = Study("on the way", [long, soon, late])
    site.root.mkdir()
    submit_cluster(study, site.root, site.profile)
    made = study.prepare(site.root)
    wait_for(made[soon].attempts, 300, "the evaluation of epoch 1")
    assert site.status(made[long]) == "running"
    assert site.status(made[late]) == "queued"
    site.wait(made[soon], "done")
    assert not made[long].result.exists()
    schedulers.cancel([made[long], made[late]], site.profile)
    wait_for(lambda: cluster.ask("squeue", "-h") == "", 60, "an empty queue")

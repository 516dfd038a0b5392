"""The faults of tests/slurm/survival_table.py that strike jobs in the queue: dependencies and limits."""

from __future__ import annotations

import time
from dataclasses import replace

from mimbench.jobs.runs.store import create_or_find, resolve
from mimbench.jobs.slurm import schedulers, submission
from tests.slurm.cluster import wait_for
from tests.slurm.conftest import PRETRAIN
from tests.slurm.faults import FAULTS, fault
from tests.slurm.scene import TINY, Outcome, Scene

__all__ = ["FAULTS"]


@fault("the job that it needs is cancelled, and the site keeps it waiting (DependencyNeverSatisfied)")
def never_satisfied(scene: Scene) -> None:
    """Status calls it blocked and names the job; `mimbench retry` starts both."""
    scene.profile = replace(scene.profile, sbatch=("--kill-on-invalid-dep=no",))
    recipe, config = resolve(PRETRAIN, (*TINY, "epochs=1", "seed=3"))
    first = create_or_find(recipe.name, config, scene.root.absolute())
    with_hold = Scene(scene.root, replace(scene.profile, sbatch=("--hold",)), scene.cluster)
    with_hold.submit(first)
    scene.submit(scene.create(), needs=(first,))
    found = submission.read(first)
    assert found is not None
    scene.cluster.ask("scancel", str(found.job))
    wait_for(lambda: scene.status(scene.run) == "blocked", 60, "a status that says so")
    scene.beside.append(scene.remark())
    schedulers.requeue([first, scene.run], scene.profile, scene.root)


@fault("more jobs than MaxSubmitJobs allows", alone=True, accounting=True)
def submit_limit(scene: Scene) -> Outcome | None:
    """What SLURM takes is in the queue, the rest waits here and goes in later."""
    database = scene.cluster.accounting
    assert database is not None
    scene.profile = replace(scene.profile, sbatch=("--hold",))
    runs = []
    for seed in range(5):
        recipe, config = resolve(PRETRAIN, (*TINY, f"seed={seed}"))
        runs.append(create_or_find(recipe.name, config, scene.root.absolute()))
    database.limit(MaxSubmitJobs=3)
    try:
        time.sleep(2)
        scene.submit(*runs)
        before = len(scene.cluster.ask("squeue", "-h", "-r", "-u", "root").splitlines())
        states = {scene.status(run) for run in runs}
        scene.run = runs[-1]
        scene.beside += [f"{before} in the queue, {states}", scene.remark()]
    finally:
        database.limit(MaxSubmitJobs=-1)
    time.sleep(2)
    schedulers.waiting(scene.profile, scene.root)
    jobs = scene.cluster.ask("squeue", "-h", "-r", "-u", "root", "-o", "%i").split()
    schedulers.cancel(runs, scene.profile)
    if (before, len(set(jobs)), states) != (3, 5, {"queued"}):
        return Outcome(f"{before} of 5, later {len(jobs)}, {states}", stuck="not all were submitted")
    return Outcome("3 of 5 submitted, 2 wait here until there is room")


@fault("more running jobs than MaxJobs allows", alone=True, accounting=True)
def running_limit(scene: Scene) -> None:
    """Status gives SLURM's reason while it waits."""
    database = scene.cluster.accounting
    assert database is not None
    database.limit(MaxJobs=0)
    try:
        time.sleep(2)
        scene.begin(step=0)
        wait_for(scene.remark, 60, "a reason")
        scene.beside.append(scene.remark())
    finally:
        database.limit(MaxJobs=-1)

"""Submit a study: start runs that are new or were stopped; leave runs that are done, queued or running.

    mimbench submit crossmae/table2 --cluster a100       submits the runs to SLURM and returns
    mimbench submit crossmae/table2                      runs them on this machine and shows the progress
    mimbench submit crossmae/table2 --cluster a100 --dry-run     prints the sbatch files for submission by hand

Failed runs and the runs that need them are not started; `mimbench retry` or `--retry` starts them again. Runs that are
no longer in the study continue unless `--prune` is given. Simultaneous submissions take turns, so that no run is
started twice. With a budget (jobs/studies/budget.py) only runs that fit into its hours are started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.control import cancel
from mimbench.jobs.runs.devices import visible_devices
from mimbench.jobs.runs.lock import starting_runs
from mimbench.jobs.runs.memory import must_fit
from mimbench.jobs.studies.budget import Account, Budget, Entry, Gate, Kind, account, record, recorded
from mimbench.jobs.studies.plan import STARTABLE, Line, Plan, plan
from mimbench.jobs.studies.study import Made, Run, Study
from mimbench.jobs.studies.study_registry import add_members, directory_name, forget

if TYPE_CHECKING:
    from mimbench.jobs.local.scheduler import Local
    from mimbench.jobs.slurm.cluster import Cluster


def to_start(found: Plan, retry: bool) -> list[Line]:
    """Return the lines whose runs to start, each directory once; with `retry` also failed runs and their dependents."""
    states = (*STARTABLE, "failed", "blocked") if retry else STARTABLE
    return list({line.directory.path: line for line in found.of(*states)}.values())


def must_have_data(found: Plan) -> None:
    """Check that every data set is known on this machine.

    Raises:
        ValueError: for the first unknown data set.
    """
    for name in found.missing_data:
        raise ValueError(
            f"data={name} is neither a directory nor a known data set; add it with `mimbench data add {name} PATH`"
        )


def prepared(study: Study, root: Path) -> None:
    """Create the directories of all runs and record them as members of the study."""
    made = study.prepare(root)
    add_members(root, study.name, {directory: study.titles[run] for run, directory in made.items()})


def local_scheduler(
    study: Study,
    root: Path,
    slots: int,
    *,
    prune: bool = False,
    retry: bool = False,
    gpus: int = 1,
    budget: Budget | None = None,
) -> Local:
    """Prepare the startable runs; return the scheduler that runs them on this machine.

    Each run has `gpus` processes, one on each GPU. Without a budget the recorded one holds.

    Raises:
        ValueError, OSError: if the study is wrong or cannot be written.
    """
    from mimbench.jobs.local.scheduler import Local

    with starting_runs(root):
        found = plan(study, root)
        must_have_data(found)
        if prune:
            prune_orphans(found)
        prepared(study, root)
        budget = recorded(root, study.name) if budget is None else budget
        record(root, study.name, replace(budget, held=()))
    gate = Gate(root, study.name, budget, _entries(found, _here()), study.rungs) if budget.is_limited else None
    return Local(study, root, slots, retry=retry, gpus=gpus, gate=gate)


def submit_cluster(
    study: Study,
    root: Path,
    cluster: Cluster,
    *,
    dry: bool = False,
    prune: bool = False,
    retry: bool = False,
    budget: Budget | None = None,
) -> tuple[Plan, Any]:
    """Submit the startable runs to `cluster`; return the plan and the submissions.

    Without a budget the recorded one holds. The plan has the account of a limited budget.

    With `dry`, return the plan and the text of the sbatch files instead. A person may submit these by hand, so the
    directories of the runs are created.

    Raises:
        ValueError: if the study is wrong, a run does not fit a GPU, or the scheduler refuses.
        OSError: if a directory cannot be written (then none is), or the scheduler does not answer (then nothing is
            written).
    """
    from mimbench.jobs.slurm import schedulers

    with starting_runs(root):
        found = plan(study, root)
        must_have_data(found)
        if not dry:
            schedulers.must_answer()  # before a run directory or a member of a study is written
        must_fit((line.run for line in to_start(found, retry) if line.run is not None), cluster)
        if prune and not dry:
            prune_orphans(found)
        prepared(study, root)
        budget = recorded(root, study.name) if budget is None else budget
        lines, held = to_start(found, retry), list[Path]()
        if budget.is_limited:
            accounted = _account(found, lines, cluster, root, budget)
            lines = [line for line in lines if line.directory.path in accounted.admitted]
            found, held = replace(found, account=accounted), list(accounted.held)
        if not dry:
            record(root, study.name, replace(budget, held=tuple(directory_name(RunDir(path)) for path in held)))
        return found, schedulers.submit(units(found, lines, cluster), cluster, root, dry=dry)


def _account(found: Plan, lines: Sequence[Line], cluster: Cluster, root: Path, budget: Budget) -> Account:
    """Return the account of a study on a cluster, with those of `lines` that its budget lets start."""
    entries = _entries(found, _on_cluster(cluster)).values()
    order = {run: number for number, run in enumerate(found.study.ordered())}
    wanted = sorted(lines, key=lambda line: order[line.run] if line.run is not None else 0)
    return account(root, budget, entries, [line.directory.path for line in wanted], found.study.rungs)


def _entries(found: Plan, kind: Callable[[Line], Kind]) -> dict[Path, Entry]:
    """Return the runs of the plan as the budget sees them, by directory."""
    directories = {line.run: line.directory.path for line in found.lines if line.run is not None}
    entries = {}
    for line in found.lines:
        path = line.directory.path
        if line.run is None or line.place is None:
            entries[path] = Entry(line.directory, kind(line), str(line.directory.read_about()["recipe"]))
            continue
        needs = () if _has_its_encoder(line) else tuple(directories[need] for need in found.study.needs(line.run))
        entries[path] = Entry(line.directory, kind(line), line.place.about["recipe"], line.place.config, needs)
    return entries


def _on_cluster(cluster: Cluster) -> Callable[[Line], Kind]:
    """Return a function that tells on which kind of device a run of the plan runs there."""

    def kind(line: Line) -> Kind:
        gpus, nodes = (line.run.gpus, line.run.nodes) if line.run is not None else (1, 1)
        return "GPU" if cluster.shape(gpus=gpus, nodes=nodes).gpus else "CPU"

    return kind


def _here() -> Callable[[Line], Kind]:
    """Return a function that tells on which kind of device a run of the plan runs on this machine."""
    has_gpus = bool(visible_devices())

    def kind(line: Line) -> Kind:
        device = line.place.config.compute.device if line.place and line.place.config is not None else "auto"
        return "GPU" if has_gpus and device != "cpu" else "CPU"

    return kind


def units(found: Plan, lines: Sequence[Line], cluster: Cluster) -> list[Any]:
    """Return the units for the scheduler: each run with its resources and the runs to wait for."""
    from mimbench.jobs.slurm.schedulers import Unit

    over = {line.run for line in found.of("done", "stale")}
    directories = {line.run: line.directory for line in found.lines if line.run is not None}
    made = []
    for line in lines:
        assert line.run is not None
        waits = [need for need in found.study.needs(line.run) if need not in over]
        if _has_its_encoder(line):
            waits = [need for need in waits if need != line.run.need]
        shape = cluster.shape(gpus=line.run.gpus, nodes=line.run.nodes)
        made.append(Unit(line.directory, shape, tuple(directories[need] for need in waits), _job_name(line)))
    return made


def _job_name(line: Line) -> str:
    """Return the name that squeue shows: the recipe, because labels may have any characters."""
    return line.directory.path.name.rpartition("-")[0]


def _has_its_encoder(line: Line) -> bool:
    """Return whether the intermediate encoder that a run starts from already exists."""
    if line.run is None or line.run.epoch is None or line.place is None:
        return False
    return Path(line.place.about["checkpoint"]["path"]).exists()


def prune_orphans(found: Plan) -> list[RunDir]:
    """Cancel and forget runs that are no longer in the study. Their results are kept. Returns the cancelled runs."""
    orphans = [line.directory for line in found.of("orphaned")]
    cancel(orphans, found.root)
    forget(found.root, found.study.name, {f"{run.path.parent.name}/{run.path.name}" for run in orphans})
    return orphans


# ------------------------------------------------------------------------------------------------- runs that are there


def start_again(runs: Iterable[RunDir], root: Path, slots: int, name: str = "retry") -> int:
    """Start runs again where they ran before, on their cluster or here; return the exit code.

    Raises:
        ValueError, OSError: if the scheduler refuses or does not answer.
    """
    by_cluster: dict[str, list[RunDir]] = {}
    for run in runs:
        by_cluster.setdefault(_cluster_of(run), []).append(run)
    here = by_cluster.pop("local", [])
    for cluster, theirs in by_cluster.items():
        _requeue(theirs, root, cluster)
    if not here:
        return 0
    from mimbench.jobs.local.scheduler import Local

    tasks = Local(Study(name, _with_needs(here, root)), root, slots, retry=True).run()
    return 0 if all(task.is_well for task in tasks) else 1


def _requeue(runs: Sequence[RunDir], root: Path, name: str) -> None:
    from mimbench.jobs.slurm import cluster, schedulers

    with starting_runs(root):
        schedulers.requeue(runs, cluster.load(name), root)
    for run in runs:
        print(f"submitted: {run.path}", file=sys.stderr)


def _cluster_of(run: RunDir) -> str:
    """Return the cluster of the run's last start.

    Raises:
        ValueError: if it was cancelled on its cluster.
    """
    from mimbench.jobs.slurm import submission

    noted = submission.read(run)
    if noted is None and (attempts := run.attempts()) and attempts[-1].get("job"):
        raise ValueError(
            f"{run.path} was cancelled on its cluster; `mimbench submit STUDY --cluster NAME` submits it again, "
            f"`mimbench run {run.path}` resumes it here"
        )
    return noted.cluster if noted else "local"


def _with_needs(runs: Sequence[RunDir], root: Path) -> list[Run]:
    """Return `runs` as runs of a study, each after those of them that it needs."""
    names = {f"{run.path.parent.name}/{run.path.name}": run for run in runs}
    made: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in made:
            needs: Mapping[str, Any] = names[name].read_about()
            after = tuple(make(need) for need in needs.get("needs", ()) if need in names)
            made[name] = Made.of(names[name], after)
        return made[name]

    for name in names:
        make(name)
    return list(made.values())

"""The panel "Studies": plan, submit, sweep and prune.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mimbench.jobs.cli.options import CpuHours, GpuHours, Gpus, Json, RecipeName, Slots, Yes, agreed, slots_here
from mimbench.jobs.cli.panels import Panel

if TYPE_CHECKING:
    from mimbench.jobs.studies.study import Study


def _study_names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies.study_files import ready_studies
    from mimbench.jobs.studies.sweep import saved_names

    return [name for name in [*ready_studies(), *saved_names(runs_root())] if name.startswith(incomplete)]


STUDIES = Panel("Studies")
StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", autocompletion=_study_names, help="A .py file, a ready study, or a sweep."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings for all runs that have the key; TASK.KEY=VALUE: for one task."),
]
At = Annotated[str | None, typer.Option(metavar="every=N", help="Also evaluate pretrainings after every N epochs.")]
From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="NAME=FILE", help="Use this checkpoint for the pretraining NAME (pretrained)."),
]


def _load(name: str, overrides: list[str] | None, at: str | None, given: list[str] | None) -> Study:
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies.study import at_epochs, overridden, start_from
    from mimbench.jobs.studies.study_files import load_study

    study = load_study(name, runs_root())
    if given:
        study = start_from(study, given)
    if overrides:
        study = overridden(study, overrides)
    return at_epochs(study, _every(at)) if at else study


def _every(at: str) -> int:
    key, _, number = at.partition("=")
    if key != "every" or not number.isdigit():
        raise ValueError(f"--at {at} is not every=N with a number of epochs N; for example --at every=100")
    return int(number)


@STUDIES.command("mimbench plan crossmae/table2")
def plan(study: StudyName, overrides: Overrides = None, at: At = None, given: From = None, json: Json = False) -> None:
    """Show the runs of a study and their states."""
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning

    _show_plan(planning.plan(_load(study, overrides, at, given), runs_root()), json)


def _show_plan(found: Any, as_json: bool) -> None:
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.studies import plan as planning

    for name in found.missing_data:
        print(
            f"note: data={name} is unknown on this machine; run `mimbench data add {name} PATH` before submitting",
            file=sys.stderr,
        )
    for name, seen in found.remembered_data.items():
        print(f"note: data={name} is not on this machine; {planning.known_by(seen)}", file=sys.stderr)
    if as_json:
        lines = [line.as_json() for line in found.lines]
        print_json({"study": found.study.name, "counts": found.counts, "runs": lines})
    else:
        print(planning.render(found))


@STUDIES.command("mimbench submit crossmae/table2 --cluster local --slots 2")
def submit(
    study: StudyName,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="A cluster that `mimbench cluster show` lists, or local.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch files and submit nothing.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Cancel runs that are no longer in the study.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also start failed runs again.")] = False,
    gpu_hours: GpuHours = None,
    cpu_hours: CpuHours = None,
    slots: Slots = None,
    gpus: Gpus = None,
    at: At = None,
    given: From = None,
    json: Json = False,
) -> None:
    """Start the unfinished runs of a study, on SLURM or here."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm import cluster as profiles
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies import submit as submitting
    from mimbench.jobs.studies.budget import chosen

    wanted, root, profile = _load(study, overrides, at, given), runs_root(), profiles.load(cluster)
    budget = chosen(root, wanted.name, gpu_hours, cpu_hours)
    again = shlex.join(_again(study, overrides, cluster, at, given))
    if profile.kind == "local":
        if dry_run:
            _show_plan(planning.plan(wanted, root), json)
            return
        scheduler = submitting.local_scheduler(
            wanted, root, slots or slots_here(), prune=prune, retry=retry, gpus=gpus or 1, budget=budget
        )
        code = _show_tasks(scheduler.run(), json)
        _show_account(scheduler.account, again)
        raise typer.Exit(code)
    if gpus is not None:
        raise ValueError("--gpus is for --cluster local; on SLURM, a study says gpus=N for each run")
    found, outcome = submitting.submit_cluster(
        wanted, root, profile, dry=dry_run, prune=prune, retry=retry, budget=budget
    )
    if dry_run and json:
        print_json({"study": found.study.name, "before": found.counts, "sbatch": outcome, **_budget_of(found)})
    elif dry_run:
        print(outcome)
    else:
        _show_submitted(found, outcome, json)
    _show_account(found.account, again)


def _again(study: str, overrides: list[str] | None, cluster: str, at: str | None, given: list[str] | None) -> list[str]:
    """Return the command that submits the study again."""
    options = [*(["--at", at] if at else []), *(part for one in given or [] for part in ("--from", one))]
    return ["mimbench", "submit", study, *(overrides or []), "--cluster", cluster, *options]


def _show_account(account: Any, again: str) -> None:
    for line in account.lines(again) if account is not None else ():
        print(line, file=sys.stderr)


def _budget_of(found: Any) -> dict[str, Any]:
    return {} if found.account is None else {"budget": found.account.as_json()}


def _show_tasks(tasks: Any, as_json: bool) -> int:
    from mimbench.jobs.cli.commands import print_json

    if as_json:
        print_json([
            {"name": t.name, "state": t.fate, "why": t.why, "run": str(t.directory.path) if t.directory else None}
            for t in tasks
        ])  # fmt: skip
    return 0 if all(task.is_well for task in tasks) else 1


def _show_submitted(found: Any, submissions: Any, as_json: bool) -> None:
    from mimbench.jobs.cli.commands import print_json

    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items())
    jobs = sorted({str(one.array or one.job) for one in submissions if one.job})
    waits = sum(one.job is None for one in submissions)  # beyond the site's limit on jobs in the queue
    if as_json:
        print_json(
            {
                "study": found.study.name,
                "before": found.counts,
                "submitted": len(submissions) - waits,
                "wait": waits,
                "jobs": jobs,
                **_budget_of(found),
            }
        )
    else:
        rest = f", {waits} wait here for a place in the queue" if waits else ""
        print(f"{found.study.name}: before: {counts}; {len(submissions) - waits} submitted{rest}", file=sys.stderr)
        if not waits or jobs:
            print(f"jobs {', '.join(jobs)}" if jobs else "nothing to submit", file=sys.stderr)


@STUDIES.command("mimbench studies")
def studies(json: Json = False) -> None:
    """List ready studies and your sweeps."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies.study_files import ready_studies
    from mimbench.jobs.studies.sweep import saved_names, saved_sweep

    known = ready_studies()
    for name in saved_names(runs_root()):
        kept = saved_sweep(name, runs_root())
        known[name] = f"sweep of {kept.recipe}, {len(kept.runs)} runs" if kept else ""
    if json:
        print_json(known)
        return
    width = max(map(len, known))
    for name, about in known.items():
        print(f"{name:<{width}}  {about}")


@STUDIES.command("mimbench sweep cls/linear_vitb base_lr=0.05,0.1,0.2 --name linear-lr")
def sweep(
    recipe: RecipeName,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUES", help="A,B,C; A..B; A..B:N; A..B:logN; with --random or --optuna also A..B:log."
        ),
    ],
    random: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Run N random combinations instead of all.")
    ] = None,
    optuna: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Let Optuna propose N runs, in rounds.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The metric for rungs, and for Optuna (default: the task's main one).")
    ] = None,
    at_a_time: Annotated[
        int, typer.Option("--round", min=1, metavar="K", help="Runs that Optuna proposes in each round.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    rungs: Annotated[
        str | None, typer.Option(metavar="E,E,...", help="Epochs at which the worse runs stop early.")
    ] = None,
    keep: Annotated[int, typer.Option(min=2, metavar="K", help="At a rung, one of K runs goes on.")] = 3,
    pruner: Annotated[
        Literal["median", "percentile"] | None, typer.Option(help="Let this pruner of Optuna decide at the rungs.")
    ] = None,
    gpu_hours: GpuHours = None,
    cpu_hours: CpuHours = None,
    name: Annotated[str | None, typer.Option(help="Name of the study. Default: recipe and keys.")] = None,
    json: Json = False,
) -> None:
    """Make a study of one recipe with several settings.

    The study is saved and its plan printed; `mimbench submit NAME` starts it.
    """
    from mimbench.jobs.cli.sweeps import Draws, Rungs, make
    from mimbench.jobs.runs.lock import starting_runs
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies.budget import chosen, record

    root = runs_root()
    draws, stops = Draws(random, optuna, at_a_time, seed), Rungs(rungs, keep, pruner)
    made = make(recipe, values, draws, stops, metric, name, root)
    study = made.study()
    study.check()
    budget = chosen(root, study.name, gpu_hours, cpu_hours)
    made.keep(root)
    if gpu_hours is not None or cpu_hours is not None:
        with starting_runs(root):
            record(root, study.name, budget)
    _show_plan(planning.plan(study, root), json)
    print(f"`mimbench submit {shlex.quote(made.name)}` starts this study", file=sys.stderr)


@STUDIES.command("mimbench prune linear-lr")
def prune(study: StudyName, overrides: Overrides = None, at: At = None, given: From = None, yes: Yes = False) -> None:
    """Cancel and forget runs that are no longer in a study.

    Their files are kept.
    """
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies import submit as submitting

    found = planning.plan(_load(study, overrides, at, given), runs_root())
    for line in found.of("orphaned"):
        print(f"{line.name}  {line.directory.path}  {line.why}")
    if found.of("orphaned"):
        agreed(f"prune {len(found.of('orphaned'))} runs?", yes)
        submitting.prune_orphans(found)
    else:
        print("nothing to prune: all submitted runs are still in the study", file=sys.stderr)

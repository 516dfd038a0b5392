"""The commands of `mimbench` for studies: plan, submit, prune, studies, sweep, explain; `register` adds them.

Each imports what it needs when it is called, so that `mimbench --help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimbench.jobs.cli.runs import Json, Slots, Yes, agreed, run_names, slots_here

if TYPE_CHECKING:
    from mimbench.jobs.studies.study import Study


def _study_names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies.study_files import ready_studies
    from mimbench.jobs.studies.sweep import saved_names

    return [name for name in [*ready_studies(), *saved_names(runs_root())] if name.startswith(incomplete)]


StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", autocompletion=_study_names, help="A file, a ready study or a sweep.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="For every run that has the key; STAGE.KEY=VALUE for one stage."),
]
At = Annotated[
    str | None, typer.Option(metavar="every=N", help="Evaluate pretrainings also after every N epochs of them.")
]
From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="NAME=FILE", help="A checkpoint in the place of the pretraining NAME (pretrained)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (plan, submit, prune, studies, sweep, explain):
        app.command()(command)


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
        raise ValueError(f"--at {at}: it must be every=N, a number of epochs")
    return int(number)


def plan(study: StudyName, overrides: Overrides = None, at: At = None, given: From = None, json: Json = False) -> None:
    """Show what a study would run, and what has become of the rest."""
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning

    _show_plan(planning.plan(_load(study, overrides, at, given), runs_root()), json)


def _show_plan(found: Any, as_json: bool) -> None:
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.studies import plan as planning

    for name in found.missing_data:
        print(
            f"note: data={name} is not known here; `mimbench data add {name} PATH` before submitting", file=sys.stderr
        )
    if as_json:
        lines = [line.as_json() for line in found.lines]
        print_json({"study": found.study.name, "counts": found.counts, "runs": lines})
    else:
        print(planning.render(found))


def submit(
    study: StudyName,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="A cluster's profile; local is this machine.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Submit nothing; print the sbatch files.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Cancel runs that are in the study no more.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Start failed runs again, too.")] = False,
    slots: Slots = None,
    at: At = None,
    given: From = None,
    json: Json = False,
) -> None:
    """Start what is not done of a study, on a cluster or here."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.slurm import cluster as profiles
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies import submit as submitting

    wanted, root, profile = _load(study, overrides, at, given), runs_root(), profiles.load(cluster)
    if profile.kind == "local":
        if dry_run:
            _show_plan(planning.plan(wanted, root), json)
            return
        tasks = submitting.submit_local(wanted, root, slots or slots_here(), prune=prune, retry=retry)
        raise typer.Exit(_show_tasks(tasks, json))
    found, outcome = submitting.submit_cluster(wanted, root, profile, dry=dry_run, prune=prune, retry=retry)
    if dry_run and json:
        print_json({"study": found.study.name, "before": found.counts, "sbatch": outcome})
    elif dry_run:
        print(outcome)
    else:
        _show_submitted(found, outcome, json)


def _show_tasks(tasks: Any, as_json: bool) -> int:
    from mimbench.jobs.cli.commands import print_json

    if as_json:
        print_json([
            {"name": t.name, "state": t.fate, "why": t.why, "run": str(t.directory.path) if t.directory else None}
            for t in tasks
        ])  # fmt: skip
    return 0 if all(task.fate == "done" for task in tasks) else 1


def _show_submitted(found: Any, submissions: Any, as_json: bool) -> None:
    from mimbench.jobs.cli.commands import print_json

    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items())
    jobs = sorted({str(one.array or one.job) for one in submissions if one.job})
    if as_json:
        print_json({"study": found.study.name, "before": found.counts, "submitted": len(submissions), "jobs": jobs})
    else:
        print(f"{found.study.name}: there were {counts}; {len(submissions)} submitted", file=sys.stderr)
        print(f"jobs {', '.join(jobs)}" if jobs else "nothing to submit", file=sys.stderr)


def studies(json: Json = False) -> None:
    """List the ready studies, and the sweeps made here."""
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


def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="What to run.")],
    values: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUES...", help="A,B,C; A..B; A..B:N; A..B:logN; drawn also A..B:log.")
    ],
    random: Annotated[int | None, typer.Option(min=1, metavar="N", help="Draw N runs instead of all.")] = None,
    optuna: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Let Optuna propose N runs, in rounds.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What Optuna raises, or lowers where less is better. Default: by the task.")
    ] = None,
    at_a_time: Annotated[
        int, typer.Option("--round", min=1, metavar="K", help="Runs that Optuna proposes at a time.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    name: Annotated[str | None, typer.Option(help="What to call it. Default: by its recipe and keys.")] = None,
    json: Json = False,
) -> None:
    """Make a study of one recipe with many values.

    It is kept, and shown as a plan; `mimbench submit NAME` starts it.
    """
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import plan as planning
    from mimbench.jobs.studies import sweep as sweeping
    from mimbench.jobs.studies.study_files import ready_studies

    if name is not None and (name.endswith(".py") or name in ready_studies()):
        raise ValueError(f"--name {name} is what a file or a ready study goes by; choose another")
    root, axes = runs_root(), [sweeping.axis(text) for text in values]
    if random is not None and optuna is not None:
        raise ValueError("--random or --optuna, not both")
    if optuna is not None:
        made = _searched(recipe, axes, (optuna, at_a_time, metric, seed), name, root)
    else:
        runs = sweeping.draws(axes, random, seed) if random else sweeping.grid(axes)
        made = sweeping.sweep_of(recipe, axes, runs, name)
    study = made.study()
    study.check()
    found = planning.plan(study, root)
    made.keep(root)
    _show_plan(found, json)
    print(f"`mimbench submit {shlex.quote(made.name)}` starts it", file=sys.stderr)


def _searched(recipe: str, axes: Any, how: tuple[int, int, str | None, int], name: str | None, root: Path) -> Any:
    """The sweep with the next round that Optuna proposes."""
    from mimbench.jobs.runs.recipes import find
    from mimbench.jobs.runs.tasks import task_of
    from mimbench.jobs.studies import search as searching
    from mimbench.jobs.studies import sweep as sweeping

    total, count, asked, seed = how
    metric = asked or task_of(find(recipe).stage).main_metric
    varied = [one for one in axes if len(one.values) != 1]
    search = searching.Search(varied, metric, seed)
    empty = sweeping.sweep_of(recipe, axes, [], name)
    before = sweeping.saved_sweep(empty.name, root) or empty
    if (before.recipe, before.fixed) != (empty.recipe, empty.fixed):
        raise ValueError(
            f"sweep {before.name} is another: of {before.recipe} {' '.join(before.fixed)}; choose a --name"
        )
    made = searching.next_round(before, search, root, total, count)
    if search.best is not None:
        values, best = search.best
        print(f"best so far: {metric} {best:.4g} with {values}", file=sys.stderr)
    return made


def explain(
    run: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", autocompletion=run_names, help="A run, or what asking for one means.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to change of the recipe.")
    ] = None,
    json: Json = False,
) -> None:
    """Say why a run is a run of its own."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import explain as explaining
    from mimbench.jobs.runs.control import find
    from mimbench.jobs.runs.recipes import recipes
    from mimbench.jobs.runs.store import place, resolve, runs_root

    root = runs_root()
    if overrides or run in {recipe.name for recipe in recipes()}:
        recipe, config = resolve(run, overrides or [])
        found = explaining.explain_place(place(recipe.name, config, root, strict=False), root)
    else:
        found = explaining.explain_run(find(run, root), root)
    if json:
        print_json(found.as_json())
    else:
        print(found.text)


def prune(study: StudyName, overrides: Overrides = None, at: At = None, given: From = None, yes: Yes = False) -> None:
    """Cancel and forget runs that left their study.

    Their files stay.
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
        print("no run is orphaned", file=sys.stderr)

"""The commands of `mimbench` that show and steer runs: status, watch, logs, cancel, retry, gc and cost.

Each imports what it needs when it is called, so that `mimbench --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Runs at a time, on this machine.")]


def run_names(incomplete: str) -> list[str]:
    """For completion in the shell."""
    from mimbench.jobs.runs.store import runs_root

    folders = (file.parent.name for file in runs_root().glob("*/*/run.json"))
    return sorted(name for name in folders if name.startswith(incomplete))


RunNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...", autocompletion=run_names, help="A directory, the beginning of its name, or a label."
    ),
]
OneRun = Annotated[str, typer.Argument(metavar="RUN", autocompletion=run_names, help="As `mimbench status` names it.")]
OfStudy = Annotated[str | None, typer.Option("--study", help="All runs of this study.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (status, watch, logs, cancel, retry, gc, cost):
        app.command()(command)


def slots_here() -> int:
    """Runs at a time, where nothing is asked for: one on each GPU."""
    from mimbench.jobs.local.processes import visible_devices

    return len(visible_devices()) or 1


def agreed(question: str, yes: bool) -> None:
    """Go on only after a yes: from a person, or given beforehand.

    Raises:
        ValueError: if nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Say so with --yes")
    if not typer.confirm(question):
        raise typer.Exit(1)


def status(
    study: OfStudy = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    json: Json = False,
) -> None:
    """List runs: what each is doing, what came out of it."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.store import runs_root

    _known_state(state)
    found = looking.rows(runs_root(), study, state)
    if json:
        print_json([row.as_json() for row in found])
    elif not found:
        print(f"no {'such ' if study or state else ''}run under {runs_root().absolute()}", file=sys.stderr)
    elif not sys.stdout.isatty():
        print(looking.plain(found))
    else:
        from rich.console import Console

        Console().print(looking.render(found))
        print(looking.counts(found))


def _known_state(state: str | None) -> None:
    from mimbench.jobs.runs.status import ORDER

    if state is not None and state not in ORDER:
        raise ValueError(f"--state {state}: the states are {', '.join(ORDER)}")


def watch(
    study: OfStudy = None, state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None
) -> None:
    """Show runs as they go on, until Ctrl-C."""
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.store import runs_root

    _known_state(state)
    looking.watch(runs_root(), study, state)


def logs(
    run: OneRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="What this process of a cluster job printed.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 40,
) -> None:
    """Print the end of a run's log."""
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.control import find
    from mimbench.jobs.runs.store import runs_root

    found = find(run, runs_root())
    looking.show_log(looking.log_file(found, rank), found, follow, lines)


def cancel(runs: RunNames = None, study: OfStudy = None, yes: Yes = False) -> None:
    """Stop runs, or take them out of the queue."""
    from mimbench.jobs.runs import control as steer
    from mimbench.jobs.runs.states import States
    from mimbench.jobs.runs.store import runs_root

    root = runs_root()
    states = States(root)
    found = [run for run in steer.find_all(runs or [], study, root) if states.look(run)[0] in ("running", "queued")]
    if not found:
        print("none of them is running or queued", file=sys.stderr)
        return
    if len(found) > 1:
        agreed(f"cancel {len(found)} runs?", yes)
    for run in steer.cancel(found, root):
        print(f"cancelled: {run.path}", file=sys.stderr)


def retry(
    runs: RunNames = None,
    study: OfStudy = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="From the beginning, also what is done; old files move aside.")
    ] = False,
    slots: Slots = None,
) -> None:
    """Start runs again that failed, were lost or interrupted.

    Each where it was started before: on its cluster, or here.
    """
    from mimbench.jobs.runs import control as steer
    from mimbench.jobs.runs.states import States
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import submit as submitting

    root = runs_root()
    states = States(root)
    wanted = ("failed", "lost", "interrupted", "blocked") + (("done", "new") if anew else ())
    known = {run: states.look(run) for run in steer.find_all(runs or [], study, root)}
    for run, (state, reason) in known.items():
        if state == "damaged":
            print(f"left alone: {reason}", file=sys.stderr)
        elif state not in wanted and study is None:
            print(f"left alone: {run.path} is {state}", file=sys.stderr)
    found = [run for run, (state, _) in known.items() if state in wanted]
    if not found:
        print("none of them failed, was lost or interrupted", file=sys.stderr)
    if anew:
        for run in found:
            print(f"laid aside: {steer.renew(run)}", file=sys.stderr)
    raise typer.Exit(submitting.start_again(found, root, slots or slots_here()))


def gc(yes: Yes = False, json: Json = False) -> None:
    """Free disk space: what no number needs.

    Checkpoints of runs that are done, feature caches, old code. Results, logs and encoders stay.
    """
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import gc as clearing
    from mimbench.jobs.runs.store import runs_root

    root = runs_root()
    found = clearing.waste(root)
    if json:
        print_json([{"kind": one.kind, "path": str(one.path), "bytes": one.bytes} for one in found])
    else:
        print(clearing.render(found, root))
    if found and (yes or not json):
        agreed(f"remove {clearing.in_words(sum(one.bytes for one in found))}?", yes)
        print(f"freed {clearing.in_words(clearing.remove(found))}", file=sys.stderr)


def cost(study: OfStudy = None, json: Json = False) -> None:
    """Count the GPU hours of runs: used so far, and still to come."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import gpu_hours as spent
    from mimbench.jobs.runs.store import runs_root

    found = spent.spent(runs_root(), study)
    if json:
        print_json(spent.total(found))
    else:
        print(spent.render(found))

"""The second half of the panel "Pretrain and run": watching runs and controlling them.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mimbench.jobs.cli.names import states
from mimbench.jobs.cli.options import Json, OfStudy, OneRun, RunNames, Slots, Yes, agreed, slots_here
from mimbench.jobs.cli.pretraining import RUNS

if TYPE_CHECKING:
    from mimbench.engine.run.rundir import RunDir
    from mimbench.jobs.runs.states import States

State = Annotated[str | None, typer.Option(autocompletion=states, help="Only runs in this state.")]


@RUNS.command("mimbench status --state failed")
def status(
    study: OfStudy = None,
    state: State = None,
    json: Json = False,
) -> None:
    """List runs: state, progress and results."""
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.store import runs_root

    _known_state(state)
    found = looking.rows(runs_root(), study, state)
    if json:
        print_json([row.as_json() for row in found])
    elif not found:
        print(f"no {'such ' if study or state else ''}runs under {runs_root().absolute()}", file=sys.stderr)
    elif not sys.stdout.isatty():
        print(looking.plain(found))
    else:
        from rich.console import Console

        console = Console()
        console.print(looking.render(found, console.width))
        print(looking.counts(found))


def _known_state(state: str | None) -> None:
    from mimbench.engine.run.nearest import did_you_mean
    from mimbench.jobs.runs.status import ORDER

    if state is not None and state not in ORDER:
        raise ValueError(f"--state {state} is unknown; {did_you_mean(state, ORDER)}")


@RUNS.command("mimbench watch --study crossmae/table1")
def watch(study: OfStudy = None, state: State = None) -> None:
    """Show runs in progress until Ctrl-C."""
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.store import runs_root

    _known_state(state)
    looking.watch(runs_root(), study, state)


@RUNS.command("mimbench logs linear_handwritten --follow")
def logs(
    run: OneRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the run ends.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Print the output of this process of a cluster job.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Print this many of the last lines.")] = 40,
) -> None:
    """Print the end of a run's log."""
    from mimbench.jobs.runs import status as looking
    from mimbench.jobs.runs.run_names import find
    from mimbench.jobs.runs.store import runs_root

    found = find(run, runs_root())
    looking.show_log(looking.log_file(found, rank), found, follow, lines)


@RUNS.command("mimbench cancel --study crossmae/table1")
def cancel(runs: RunNames = None, study: OfStudy = None, yes: Yes = False) -> None:
    """Stop runs, or remove them from the queue."""
    from mimbench.jobs.runs import control as steer
    from mimbench.jobs.runs.run_names import find_all
    from mimbench.jobs.runs.states import States
    from mimbench.jobs.runs.store import runs_root

    root = runs_root()
    states = States(root)
    found = [run for run in find_all(runs or [], study, root) if _can_be_cancelled(run, states)]
    if not found:
        print("nothing to cancel: none of these runs is running or queued", file=sys.stderr)
        return
    if len(found) > 1:
        agreed(f"cancel {len(found)} runs?", yes)
    for run in steer.cancel(found, root):
        print(f"cancelled: {run.path}", file=sys.stderr)


def _can_be_cancelled(run: RunDir, states: States) -> bool:
    """Return whether the run is running or queued, or has a job that waits or hangs for ever."""
    state = states.look(run)[0]
    return state in ("running", "queued") or (state in ("blocked", "lost") and states.has_job(run))


@RUNS.command("mimbench retry --study crossmae/table1")
def retry(
    runs: RunNames = None,
    study: OfStudy = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Start from the beginning, finished runs too; old files are moved to old-N/.")
    ] = False,
    slots: Slots = None,
) -> None:
    """Start failed, lost and interrupted runs again.

    Each run starts where it was started before: on its cluster, or on this machine. Jobs that SLURM holds are released.
    """
    from mimbench.jobs.runs import control as steer
    from mimbench.jobs.runs.run_names import find_all
    from mimbench.jobs.runs.states import States
    from mimbench.jobs.runs.store import runs_root
    from mimbench.jobs.studies import submit as submitting

    root = runs_root()
    states = States(root)
    wanted = ("failed", "lost", "interrupted", "blocked") + (("done", "new", "stopped") if anew else ())
    known = {run: states.look(run) for run in find_all(runs or [], study, root)}
    held = {run for run, (state, _) in known.items() if state == "queued" and states.is_held(run)}
    found = [run for run, (state, _) in known.items() if state in wanted or run in held]
    for run, (state, reason) in known.items():
        if state == "damaged":
            print(f"not started: {reason}", file=sys.stderr)
        elif run not in found and study is None:
            print(f"not started: {run.path} is {state}{f': {reason}' if reason else ''}", file=sys.stderr)
    if not found:
        print("nothing to retry: none of these runs failed, was lost or was interrupted", file=sys.stderr)
    if anew:
        for run in found:
            print(f"moved old files to {steer.renew(run)}", file=sys.stderr)
    raise typer.Exit(submitting.start_again(found, root, slots or slots_here()))

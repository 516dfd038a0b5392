"""Fill the table of docs/survival.md: what a real SLURM, two small nodes on this machine, may do to a run.

    python -m tests.slurm.survival_table DIRECTORY --list
    python -m tests.slurm.survival_table DIRECTORY                             # all; takes half an hour
    python -m tests.slurm.survival_table DIRECTORY --only munge-gone-and-a-kill step-killed
    python -m tests.slurm.survival_table DIRECTORY --accounting                # with a database, in rows of their own
    python -m tests.slurm.survival_table DIRECTORY --page docs/survival.md     # writes the page, runs nothing

Two sittings side by side need a directory each; `--page ... --also OTHER` puts them on one page.
Needs root, slurm-wlm and munge; slurmdbd and mariadb-server for --accounting, faketime for the clocks. Outcomes are
kept in DIRECTORY/outcomes.json, so that the table can be filled in several sittings. A row: submit a pretraining of 100
steps, do the damage, wait for its end, compare its encoder (sha256) and its losses with those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.engine.data.handwritten import Sizes, make_handwritten
from mimbench.engine.run.atomic import write_json, write_text
from mimbench.jobs.slurm import commands, status
from mimbench.jobs.slurm.cluster import Cluster as Profile
from tests.slurm import accounting, faults_of_files, faults_of_queues
from tests.slurm.cluster import Cluster, missing
from tests.slurm.faults import FAULTS, Fault
from tests.slurm.scene import Outcome, Scene, losses_of, weights_of

TABLES = (FAULTS, faults_of_files.FAULTS, faults_of_queues.FAULTS)  # one registry: importing fills it
HEAD = """\
# What a run survives

Every row was tried on a real SLURM: two `slurmd` on one machine, a pretraining of 50 or 100 steps, the damage after
a checkpoint at step 10. `python -m tests.slurm.survival_table DIRECTORY` fills the table; `--only NAME` tries one row.

*Weights*: is the encoder, by sha256, that of a run that nothing disturbed? *Starts*: the step at which each start of
the run began. A start at step 10 has lost the steps after the checkpoint, never more than `compute.save_every`.

The tests in `tests/slurm/test_survival.py` repeat on every run of the test suite: preemption with one process and with
two on two nodes (gloo), by SIGUSR2 and by SIGTERM alone, slurmctld restarted meanwhile, the time limit, `scontrol
requeue`, SIGKILL of a process, a node that goes down, `scancel`, SIGKILL and SIGHUP of the shell of the job, SIGKILL of
SLURM's process of the step together with the run. All of them end with the weights and the losses of the undisturbed
run.

"""


class Table:
    """The outcomes, the undisturbed runs to compare with, and a cluster."""

    def __init__(self, directory: Path, cluster: Cluster, profile: Profile) -> None:
        self.directory, self.cluster, self.profile = directory, cluster, profile
        self._lock = threading.Lock()
        self._references: dict[int, tuple[str, list[Any]]] = {}

    @property
    def file(self) -> Path:
        """The outcomes by name."""
        return self.directory / "outcomes.json"

    def try_out(self, fault: Fault) -> Outcome:
        """Try one fault, and write its outcome down."""
        began = time.time()
        suffix = " (accounting)" if self.cluster.accounting is not None else ""
        scene = Scene(
            self.directory / f"{fault.name}-{int(began)}" / "runs", self.profile, self.cluster, self.reference
        )
        try:
            outcome = fault.act(scene) or scene.settle()
        except Exception as error:  # a row that cannot be tried is a row as well
            traceback.print_exc()
            outcome = Outcome(f"not tried to its end: {type(error).__name__}: {error}", stuck="unknown")
        outcome = replace(outcome, seconds=round(time.time() - began))
        with self._lock:
            known = json.loads(self.file.read_text()) if self.file.exists() else {}
            about = {"title": fault.title + suffix, "date": time.strftime("%Y-%m-%d"), "beside": scene.beside}
            about["slurm"] = self.cluster.ask("sinfo", "--version").split()[-1]
            known[fault.name + suffix] = {**outcome.as_json(), **about}
            write_json(self.file, known)
        mark = "  " if outcome.is_well else "! "
        print(f"{mark}{fault.name}: {outcome} {scene.beside}", flush=True)
        return outcome

    def reference(self, tasks: int) -> tuple[str, list[Any]]:
        """The sha256 and the losses of a run that nothing disturbed, with so many processes; trained once."""
        with self._lock:
            file = self.directory / f"reference-{tasks}.json"
            if tasks not in self._references and file.exists():
                weights, losses = json.loads(file.read_text())
                self._references[tasks] = weights, [tuple(line) for line in losses]
            if tasks not in self._references:
                scene = Scene(self.directory / f"reference-{tasks}-{int(time.time())}", self.profile, self.cluster)
                scene.begin(step=0, tasks=tasks)
                scene.wait(scene.run, "done")
                self._references[tasks] = weights_of(scene.run), losses_of(scene.run)
                write_json(file, self._references[tasks])
            return self._references[tasks]

    def fill(self, chosen: Iterable[Fault], together: int) -> bool:
        """Try faults, those that disturb each other one by one; return whether all went well."""
        rows = list(chosen)
        outcomes = [self.try_out(fault) for fault in rows if fault.alone]
        with ThreadPoolExecutor(together) as pool:
            outcomes += pool.map(self.try_out, [fault for fault in rows if not fault.alone])
        return all(outcome.is_well for outcome in outcomes)


def page(*files: Path) -> str:
    """The page of all outcomes; where two files have the same row, that of the later file counts."""
    known: dict[str, Any] = {}
    for file in files:
        known |= json.loads(file.read_text(encoding="utf-8"))
    rows = [known[name] for name in sorted(known, key=_order)]
    lines = [
        "| fault | the run | weights | starts | lost, doubled, stuck or silent |",
        "| :-- | :-- | :-- | :-- | :-- |",
    ]
    for row in rows:
        same = {True: "same", False: "differ", None: "–"}[row["same"]]
        bad = "; ".join(f"{key}: {row[key]}" for key in ("lost", "doubled", "stuck", "silent") if row[key]) or "none"
        said = "".join(f"; {text}" for text in row["beside"])
        lines.append(f"| {row['title']} | {row['ended']}{said} | {same} | {row['starts'] or '–'} | {bad} |")
    versions = ", ".join(sorted({row["slurm"] for row in rows}))
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    table = re.sub(r"-\d{10}\b", "", "\n".join(lines))
    for file in files:
        table = table.replace(str(file.parent.absolute()), "~")
    untried = [fault.title for name, fault in FAULTS.items() if not any(key.startswith(name) for key in known)]
    head = "\nIn the script, not tried yet, or not again since a fault was mended:\n\n"
    rest = "".join([head, *(f"- {title}\n" for title in untried)]) if untried else ""
    return f"{HEAD}SLURM {versions}; {when}; {len(rows)} rows.\n\n{table}\n{rest}"


def _order(name: str) -> tuple[bool, int]:
    plain = name.removesuffix(" (accounting)")
    names = list(FAULTS)
    return plain != name, names.index(plain) if plain in names else len(names)


def _profile(cluster: Cluster, directory: Path) -> Profile:
    """Prepare this process and return the profile of the cluster."""
    digits = directory / "digits"
    if not digits.exists():
        make_handwritten(digits, 0, Sizes(100, 20, coco_train=8, coco_val=8))
    os.environ.update(
        SLURM_CONF=str(cluster.conf), MIMBENCH_DATA_HANDWRITTEN=str(digits), MIMBENCH_HOME=str(directory / "home")
    )
    commands.EVERY, status.STEP_GONE = 0.5, 20.0  # not to wait for what people would not notice
    return Profile(
        name="tiny", partition="low", gpus_per_node=0, cpus_per_task=1, minutes=30, signal_seconds=90,
        has_sacct=cluster.accounting is not None,
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Fill the table, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.survival_table", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(FAULTS), help="only these rows")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--accounting", action="store_true", help="with an accounting database")
    parser.add_argument("--together", type=int, default=2, help="rows tried at the same time")
    parser.add_argument("--page", type=Path, help="write the page of all outcomes so far")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="directories of other sittings, for the page")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{fault.name:<40} {fault.title}" for fault in FAULTS.values()))
        return 0
    if given.page is not None:
        write_text(given.page, page(*(folder / "outcomes.json" for folder in (given.directory, *given.also))))
        return 0
    if why := missing() or (accounting.missing() if given.accounting else None):
        print(f"error: {why}", file=sys.stderr)
        return 1
    directory = given.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(directory / f"slurm-{int(time.time())}", given.accounting)
    chosen = [FAULTS[name] for name in given.only or FAULTS]
    try:
        cluster.start()
        table = Table(directory, cluster, _profile(cluster, directory))
        return 0 if table.fill([f for f in chosen if given.accounting or not f.accounting], given.together) else 1
    finally:
        cluster.stop()
        subprocess.run(["sync"], check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

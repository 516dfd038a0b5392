"""What the shell of a job on a node has: `scontrol`, modules, local disk, containers, the submitting shell's variables.

The shell of the doctor's probe writes it into a file before the processes of the run start: they may be in a container,
or not start at all because the node has none.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mimbench.engine.run.task import Finding
from mimbench.jobs.slurm.cluster import Cluster

MARK = "MIMBENCH_PROBE"  # a variable of the submitting shell: does a job see it?
FOR_JOBS = ("MIMBENCH_DATA_", "MIMBENCH_HOME")  # where data are
KINDS = {"apptainer": "Apptainer", "pyxis": "Enroot with Pyxis"}


def probe_setup(cluster: Cluster, report: Path) -> list[str]:
    """Return the shell lines that look, for a job of the probe: NAME=VALUE lines in the file `report`."""
    lines = [
        'echo "host=$(uname -n)"',
        'echo "scontrol=$(command -v scontrol)"',
        'echo "module=$(type -t module)"',
        'echo "login_module=$(bash -lc "type -t module" 2>/dev/null)"',
        'echo "apptainer=$(command -v apptainer)"',
        "echo \"pyxis=$(srun --help 2>/dev/null | grep -o -m1 -e '--container-image')\"",
        f'echo "mark=${MARK}"',
    ]
    if cluster.scratch is not None:
        place = f'"{cluster.scratch}"'
        lines.append(f'echo "scratch=$([ -n {place} ] && [ -w {place} ] && echo {place})"')
    quoted = shlex.quote(str(report))
    missing = f'{{ echo "{cluster.container_kind} is not found on $(uname -n)" >&2; exit 127; }}'
    needs = [f"grep -q '^{cluster.container_kind}=.' {quoted} || {missing}"] if cluster.container else []
    return ["{", *lines, f"}} > {quoted}", *needs]


def read_report(file: Path) -> dict[str, str]:
    """Return what the probe's shell wrote; empty if it has not."""
    if not file.is_file():
        return {}
    return dict(line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines() if "=" in line)


@contextmanager
def marked() -> Iterator[None]:
    """Set the mark in this process's environment within the block."""
    os.environ[MARK] = "seen"
    try:
        yield
    finally:
        del os.environ[MARK]


def of_shell(cluster: Cluster, seen: Mapping[str, str]) -> tuple[Cluster, list[Finding]]:
    """Return the profile with what the report of the probe's shell shows, and the findings."""
    found = []
    if cluster.can_requeue and not seen["scontrol"]:
        cluster = replace(cluster, can_requeue=False)
        found.append(Finding("scontrol", "note", "not found on the nodes", "can_requeue is set to false"))
    wants_modules = any(shlex.split(line, comments=True)[:1] == ["module"] for line in cluster.setup)
    if wants_modules and not seen["module"]:
        if seen["login_module"]:
            cluster = replace(cluster, login_shell=True)
            found.append(Finding("modules", "note", "only a login shell has `module`", "login_shell is set to true"))
        else:
            remedy = "source the site's module script in setup, or use another interpreter (python=...)"
            found.append(Finding("modules", "problem", "setup uses `module`, which no shell on the nodes has", remedy))
    if cluster.scratch is not None:
        if seen["scratch"]:
            found.append(Finding("scratch", "ok", f"{seen['scratch']} can be written on the node"))
        else:
            text = f"scratch={cluster.scratch} is no directory on the node that can be written"
            found.append(Finding("scratch", "problem", text, f"`mimbench cluster add {cluster.name} scratch=...`"))
    cluster, exported = _export(cluster, bool(seen["mark"]))
    return cluster, [*found, exported, container(cluster, seen)]


def container(cluster: Cluster, seen: Mapping[str, str]) -> Finding:
    """Return whether the node has what runs the profile's container; without one, what the node has."""
    there = [kind for kind in KINDS if seen[kind]]
    if cluster.container is None:
        if not there:
            none = (
                f"not tried: neither Apptainer nor Enroot with Pyxis is on {seen['host']}; runs use the node's Python"
            )
            return Finding("container", "ok", none)
        names = " and ".join(KINDS[kind] for kind in there)
        kind = "" if "apptainer" in there else " container_kind=pyxis"
        remedy = f"`mimbench cluster add {cluster.name} container=IMAGE{kind}` runs everything in an image"
        return Finding("container", "ok", f"{names} found on {seen['host']}; the profile names no image", remedy)
    if cluster.container_kind in there:
        return Finding("container", "ok", f"the probe ran in {cluster.container}, by {KINDS[cluster.container_kind]}")
    text = f"container={cluster.container}, but {KINDS[cluster.container_kind]} is not on {seen['host']}"
    other = f"container_kind={there[0]}" if there else "container=none"
    return Finding("container", "problem", text, f"`mimbench cluster add {cluster.name} {other}`")


def _export(cluster: Cluster, arrives: bool) -> tuple[Cluster, Finding]:
    """Return the profile with `export` as the site does it, and with the variables of mimbench that jobs would lack."""
    if arrives and cluster.export != "NONE":
        return cluster, Finding("export", "ok", "jobs get the variables of the submitting shell")
    if arrives:
        text, remedy = "export=NONE, but jobs get the variables of the submitting shell", "export is set to ALL"
        return replace(cluster, export="ALL"), Finding("export", "note", text, remedy)
    names = [name for name in sorted(os.environ) if name.startswith(FOR_JOBS)]
    lines = {name: f"export {name}={shlex.quote(os.environ[name])}" for name in names}
    new = {name: line for name, line in lines.items() if line not in cluster.setup}
    said = f"setup now sets {', '.join(new)}" if new else ""
    text = "jobs do not get the variables of the submitting shell"
    if cluster.export != "NONE":
        said = "export is set to NONE" + (f"; {said}" if said else "")
    cluster = replace(cluster, export="NONE", setup=(*cluster.setup, *new.values()))
    return cluster, Finding("export", "note" if said else "ok", text, said)

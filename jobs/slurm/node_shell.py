"""What the shell of a job on a node has: `scontrol`, environment modules, the local disk. Asked by the doctor's probe.

The job's own shell asks, because the processes of the run may be in a container.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from mimbench.engine.run.task import Finding
from mimbench.jobs.slurm.cluster import Cluster

SCONTROL, MODULE, LOGIN_MODULE, SCRATCH = VARIABLES = (
    "MIMBENCH_JOB_SCONTROL", "MIMBENCH_JOB_MODULE", "MIMBENCH_JOB_LOGIN_MODULE", "MIMBENCH_JOB_SCRATCH",
)  # fmt: skip


def probe_setup(cluster: Cluster) -> list[str]:
    """Return the shell lines that look, for a job of the probe."""
    lines = [
        f'export {SCONTROL}="$(command -v scontrol)"',
        f'export {MODULE}="$(type -t module)"',
        f'export {LOGIN_MODULE}="$(bash -lc "type -t module" 2>/dev/null)"',
    ]
    if cluster.scratch is not None:
        place = f'"{cluster.scratch}"'
        lines.append(f'export {SCRATCH}="$([ -n {place} ] && [ -w {place} ] && echo {place})"')
    return lines


def of_shell(cluster: Cluster, report: Mapping[str, object]) -> tuple[Cluster, list[Finding]]:
    """Return the profile with what a report of the probe shows, and the findings."""
    seen = report["shell"]
    assert isinstance(seen, dict)
    found = []
    if cluster.can_requeue and not seen[SCONTROL]:
        cluster = replace(cluster, can_requeue=False)
        found.append(Finding("scontrol", "note", "not found on the nodes", "can_requeue is set to false"))
    wants_modules = any(shlex.split(line, comments=True)[:1] == ["module"] for line in cluster.setup)
    if wants_modules and not seen[MODULE]:
        if seen[LOGIN_MODULE]:
            cluster = replace(cluster, login_shell=True)
            found.append(Finding("modules", "note", "only a login shell has `module`", "login_shell is set to true"))
        else:
            remedy = "source the site's module script in setup, or use another interpreter (python=...)"
            found.append(Finding("modules", "problem", "setup uses `module`, which no shell on the nodes has", remedy))
    if cluster.scratch is not None:
        if seen[SCRATCH]:
            found.append(Finding("scratch", "ok", f"{seen[SCRATCH]} can be written on the node"))
        else:
            text = f"scratch={cluster.scratch} is no directory on the node that can be written"
            found.append(Finding("scratch", "problem", text, f"`mimbench cluster add {cluster.name} scratch=...`"))
    return cluster, found

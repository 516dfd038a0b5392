"""Find jobs of a lost runs root: jobs in the queue that mimbench submitted and whose records are gone.

Such a job holds its place in the queue and fails when it starts, because its run directory is not there. SLURM knows
the path of its sbatch file, which names the root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mimbench.engine.run.task import Finding
from mimbench.jobs.slurm import commands as slurm

SCRIPT = re.compile(r"(?P<root>/.+)/\.mimbench/jobs/(?P<batch>[0-9a-f]{8})/")


def lost() -> dict[str, tuple[str, str]]:
    """Return the jobs (arrays as one) of this user whose batch is not on disk: job id -> its name and its root.

    Raises:
        SilentError: if SLURM does not answer.
        ValueError: with SLURM's message, if it refuses.
    """
    lines = slurm.ask("squeue", "-h", "-u", str(os.getuid()), "-o", "%F|%j|%o").splitlines()
    found = {}
    for line in lines:
        job, name, script = line.split("|", 2)
        match = SCRIPT.match(script)
        if match and not Path(match["root"], ".mimbench", "jobs", match["batch"], "batch.json").exists():
            found[job] = name, match["root"]
    return found


def findings() -> Iterator[Finding]:
    """Yield one finding for each root whose records are gone, with the command that removes its jobs."""
    by_root: dict[str, list[str]] = {}
    for job, (_, root) in lost().items():
        by_root.setdefault(root, []).append(job)
    for root, jobs in sorted(by_root.items()):
        yield Finding(
            "lost jobs",
            "note",
            f"{len(jobs)} jobs in the queue belong to {root}, which has no record of them",
            f"`scancel {' '.join(sorted(jobs, key=int))}`, or restore the directory",
        )

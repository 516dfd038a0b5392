"""Copy data sets to a node's local disk before a run, once per node, and check the copy.

    python -m mimbench.jobs.slurm.staging SCRATCH NAME=DIRECTORY ...       # one process on each node, before the run

Runs of one node share a copy where scratch outlives a job: the first copies, the others wait for it. A copy that is
not complete (disk full, job killed) is not used: the run then reads the original directory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from mimbench.engine.data.datasets import environment_variable
from mimbench.engine.run.atomic import write_text
from mimbench.jobs.runs.lock import lock
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.container import before_python, of_srun, python
from mimbench.jobs.slurm.submission import Batch

WAIT = 6 * 3600.0  # seconds to wait for another run of this node that copies the same data
COMPLETE = ".complete"  # beside a copy: the sizes of its files when it was complete


def lines(batch: Batch, cluster: Cluster) -> list[str]:
    """Return the shell lines that copy the profile's data and point the run at the copies."""
    if not cluster.stage:
        return []
    given = " ".join(shlex.quote(data) for data in cluster.stage)
    srun = shlex.join(["srun", "--ntasks-per-node=1", "--export=ALL", *of_srun(batch, cluster)])
    run = f'{before_python(batch, cluster)}{python(cluster)} -m mimbench.jobs.slurm.staging "{cluster.scratch}" {given}'
    names = [data.partition("=")[0] for data in cluster.stage]
    return [
        f'if {srun} --ntasks="$SLURM_NNODES" {run}; then',
        *(f'  export {environment_variable(name)}="{cluster.scratch}/{name}"' for name in names),
        "fi",
    ]


def sizes(folder: Path) -> str:
    """Return the sizes of all files under `folder`, one line per file, sorted by name."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        found += [
            (os.path.relpath(file, folder), file.stat().st_size) for file in (Path(place, name) for name in names)
        ]
    return "".join(f"{size} {name}\n" for name, size in sorted(found))


def copy(source: Path, target: Path) -> None:
    """Copy `source` to `target`, unless a complete and equal copy is there.

    Raises:
        OSError: if the disk is full or the source cannot be read; nothing half-written is left.
        ValueError: if the copy's files differ from the source's in name or size.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted, mark, partial = sizes(source), target.with_name(target.name + COMPLETE), target.with_name(f".{target.name}")
    with lock(target.with_name(f".{target.name}.lock"), wait=WAIT):
        if target.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
            return
        mark.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(source, partial)
            if sizes(partial) != wanted:
                raise ValueError(f"{target}: the copy of {source} is not complete; is something writing there?")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(target)
        write_text(mark, wanted)


def main(arguments: list[str]) -> int:
    """Copy; return 1, with one line on stderr, if the run should read the original directories."""
    scratch, *given = arguments
    for data in given:
        name, _, source = data.partition("=")
        try:
            copy(Path(source), Path(scratch) / name)
        except (ValueError, OSError) as error:
            print(f"{name} is not staged, the run reads {source}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

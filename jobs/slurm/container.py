"""A job's interpreter and, if the profile names an image, the container around it: Apptainer, or Enroot through Pyxis.

The container sees the runs, the copied code, scratch and `container_binds`, each under its own path. The image needs
Python with the packages of `requirements.txt` (containers/mimbench.def makes one); it needs no SLURM.
"""

from __future__ import annotations

import shlex
import sys

from mimbench.jobs.runs.tasks import elsewhere
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.submission import Batch


def python(cluster: Cluster) -> str:
    """Return the interpreter with -P, because the working directory of a job must not provide its code."""
    default = shlex.quote(sys.executable) if cluster.container is None else "python3"
    return f"{cluster.python or default} -P"


def before_python(batch: Batch, cluster: Cluster) -> str:
    """Return what stands before the interpreter after srun, with a space after it: `apptainer exec ...`."""
    if cluster.container is None or cluster.container_kind != "apptainer":
        return ""
    gpus = "--nv " if batch.shape.gpus else ""
    return f"apptainer exec {gpus}--bind {_joined(batch, cluster, ',')} {shlex.quote(cluster.container)} "


def of_srun(batch: Batch, cluster: Cluster) -> list[str]:
    """Return srun's options for Pyxis. submitit quotes them, so nothing in them is left to the shell."""
    if cluster.container is None or cluster.container_kind != "pyxis":
        return []
    mounts = ",".join(f"{folder}:{folder}" for folder in _folders(batch, cluster))
    return [f"--container-image={cluster.container}", f"--container-mounts={mounts}"]


def beside(batch: Batch, cluster: Cluster) -> str:
    """Return what stands before the interpreter where the job's shell asks it something, outside the run's step."""
    if cluster.container is None or cluster.container_kind == "apptainer":
        return before_python(batch, cluster)
    options = " ".join(map(shlex.quote, of_srun(batch, cluster)))
    return f"srun --overlap --nodes=1 --ntasks=1 --export=ALL {options} "


def _folders(batch: Batch, cluster: Cluster) -> list[str]:
    return [str(batch.root), *map(str, elsewhere()), *cluster.container_binds]


def _joined(batch: Batch, cluster: Cluster, between: str) -> str:
    quoted = between.join(map(shlex.quote, _folders(batch, cluster)))
    return f'{quoted}{between}"{cluster.scratch}"' if cluster.scratch else quoted

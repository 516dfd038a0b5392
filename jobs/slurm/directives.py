"""What a profile asks of sbatch and srun: the directives of the file's head and srun's options.

Fields of the profile that are none are left out, so that the site's defaults apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mimbench.jobs.slurm.cluster import Cluster, Shape
from mimbench.jobs.slurm.container import of_srun
from mimbench.jobs.slurm.submission import Batch


def parameters(batch: Batch, cluster: Cluster, dependency: str | None) -> dict[str, Any]:
    """Return the parameters of submitit's executor for a batch."""
    shape = batch.shape
    wanted = {
        "job_name": batch.job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "comment": cluster.comment,
        "exclusive": cluster.exclusive or None,
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type if cluster.mail_user else None,
        "wckey": cluster.wckey,
        "time": shape.minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks,
        "cpus_per_task": shape.cpus,
        **_memory(shape, cluster),
        **_gpus(shape, cluster),
        "dependency": dependency,
        "array_parallelism": cluster.throttle,
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1", "--export=ALL", *_cpus(shape, cluster), *of_srun(batch, cluster)],
        "additional_parameters": _additional(batch, cluster),
    }
    return {key: value for key, value in wanted.items() if value is not None or key == "wckey"}


def _gpus(shape: Shape, cluster: Cluster) -> dict[str, Any]:
    """Return the request for GPUs in the form that the site takes."""
    if not shape.gpus or cluster.gpu_request == "none":
        return {}
    prefix = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpu_request == "gpus-per-task":  # each process has one GPU
        return {"gpus_per_task": f"{prefix}1"}
    if cluster.gpu_request == "gres":
        return {"gres": f"gpu:{prefix}{shape.gpus}"}
    return {"gpus_per_node": f"{prefix}{shape.gpus}"}


def _memory(shape: Shape, cluster: Cluster) -> dict[str, str]:
    """Return the request for memory: of a node, of a CPU or of a GPU. `shape.memory_gb` is that of a node."""
    if shape.memory_gb is None:
        return {}
    megabytes = round(shape.memory_gb * 1024)
    if cluster.memory_request == "mem-per-cpu":
        return {"mem_per_cpu": f"{-(-megabytes // (shape.tasks * shape.cpus))}MB"}
    if cluster.memory_request == "mem-per-gpu" and shape.gpus:
        return {"mem_per_gpu": f"{-(-megabytes // shape.gpus)}MB"}
    return {"mem": f"{megabytes}MB"}


def _cpus(shape: Shape, cluster: Cluster) -> list[str]:
    """Return srun's CPU option: since SLURM 22.05 srun gives each process one CPU without it; the profile decides."""
    return [] if cluster.srun_inherits_cpus else [f"--cpus-per-task={shape.cpus}"]


def _additional(batch: Batch, cluster: Cluster) -> dict[str, Any]:
    """Return options that submitit has no parameter for or would write differently."""
    options: dict[str, Any] = {
        "signal": f"{cluster.signal}@{cluster.signal_seconds}",
        "kill-on-invalid-dep": "yes",  # a run that needs a failed run must not wait for ever
        **({"requeue": True} if cluster.can_requeue else {"no-requeue": True}),
    }
    named = {"reservation": cluster.reservation, "licenses": cluster.licenses, "export": cluster.export}
    options.update({name: value for name, value in named.items() if value is not None})
    if len(batch.runs) > 1:
        options["array"] = f"{_ranges(sorted(batch.runs))}%{min(len(batch.runs), cluster.throttle)}"
    for option in cluster.sbatch:
        name, separator, value = option.removeprefix("--").partition("=")
        options[name] = value if separator else True
    return options


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers such as 0,1,2,5 as 0-2,5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)

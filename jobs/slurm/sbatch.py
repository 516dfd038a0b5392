"""The sbatch file, written and submitted by submitit's SLURM executor.

The job is `mimbench run RUN_DIR`: the file is complete, and a person can submit it as well.
If a run was stopped from outside, the file asks `jobs.slurm.job` whether to requeue the job.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from mimbench.jobs.runs.tasks import VARIABLE, elsewhere
from mimbench.jobs.slurm.cluster import Cluster, Shape
from mimbench.jobs.slurm.commands import refusal
from mimbench.jobs.slurm.submission import Batch

# Variables of an allocation that must not reach jobs submitted from inside it: above all CPU binding, which silently
# slows a job down. Variables that tell SLURM's commands where their cluster is are kept.
LEFTOVERS = (
    "SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "MIMBENCH_JOB_",
)  # fmt: skip
RANKS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME",
)  # fmt: skip
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_CONF_SERVER", "SBATCH_CLUSTERS")


class Executor(submitit.SlurmExecutor):
    """submitit's executor with the command of a batch (`module` and a run directory) in place of a pickled function."""

    def __init__(self, batch: Batch, cluster: Cluster, dependency: str | None, module: str = "mimbench run") -> None:
        super().__init__(batch.folder)
        self._module, self._cluster = module, cluster
        self.update_parameters(**_parameters(batch, cluster, dependency))
        if len(batch.runs) > 1:
            self.parameters["map_count"] = len(batch.runs)

    @classmethod
    def affinity(cls) -> int:
        """Claim to be usable everywhere, so that the text can be rendered on a machine without SLURM."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f'{_python(self._cluster)} -u -m {self._module} "$run"'

    def text(self) -> str:
        """Return the text of the sbatch file."""
        return self._make_submission_file_text(self._submitit_command_str, "")

    def send(self) -> str:
        """Call sbatch; return the job id.

        Raises:
            SilentError: if SLURM cannot be reached; the job may have been accepted nevertheless.
            ValueError: with SLURM's message, if it refuses the job.
            OSError: if the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with scrubbed(), redirect_stderr(io.StringIO()):  # submitit both prints and raises sbatch's message
                return str(self._submit_command(self._submitit_command_str).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            raise refusal(str(error), self._cluster) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(self.folder)) from error
        finally:
            for left in self.folder.glob(".submission_file_*"):
                with suppress(OSError):
                    left.unlink()


@contextmanager
def scrubbed() -> Iterator[None]:
    """Remove variables of an allocation, a launcher or a snapshot from the environment within the block."""
    gone = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(LEFTOVERS) and name not in KEPT) or name in RANKS
    }
    for name in gone:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(gone)


def _parameters(batch: Batch, cluster: Cluster, dependency: str | None) -> dict[str, Any]:
    shape = batch.shape
    typed = f"{cluster.gpu_type}:{shape.gpus}" if cluster.gpu_type else shape.gpus
    wanted = {
        "job_name": batch.job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "wckey": cluster.wckey,
        "time": shape.minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks,
        "cpus_per_task": shape.cpus,
        "mem": None if shape.memory_gb is None else f"{round(shape.memory_gb * 1024)}MB",
        "gpus_per_node": typed if shape.gpus and cluster.gpu_request == "gpus-per-node" else None,
        "gres": f"gpu:{typed}" if shape.gpus and cluster.gpu_request == "gres" else None,
        "dependency": dependency,
        "array_parallelism": cluster.throttle,
        "stderr_to_stdout": True,
        "setup": [*cluster.setup, *_choice(batch), *_environment(batch, cluster)],
        "teardown": _afterwards(batch, cluster),
        "srun_args": ["--kill-on-bad-exit=1", *_cpus(shape, cluster)],
        "additional_parameters": _additional(batch, cluster),
    }
    return {key: value for key, value in wanted.items() if value is not None or key == "wckey"}


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


def _choice(batch: Batch) -> list[str]:
    """Return the shell lines that select the run of a job of the array."""
    quoted = {index: shlex.quote(str(batch.root / path)) for index, path in sorted(batch.runs.items())}
    if len(quoted) == 1:
        return [f"run={next(iter(quoted.values()))}", "job=$SLURM_JOB_ID"]
    return [
        "runs=(",
        *(f"  [{index}]={path}" for index, path in quoted.items()),
        ")",
        "run=${runs[$SLURM_ARRAY_TASK_ID]}",
        "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
    ]


def _environment(batch: Batch, cluster: Cluster) -> list[str]:
    code = batch.code.get("snapshot")
    return [
        "trap : TERM USR1 USR2  # this shell ignores warnings; the run handles them",
        f"export MIMBENCH_JOB_WARNING={cluster.signal}",
        'export MIMBENCH_JOB_ID="$job"',
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{batch.shape.cpus}}}",
        f"export PYTHONPATH={shlex.quote(code)}  # the code at submission"
        if code
        else f"# the code: the installed mimbench {batch.code.get('version', '')}",
        *_tasks(),
    ]


def _tasks() -> list[str]:
    """Return the shell lines for tasks from elsewhere: they are not copied, only the code of mimbench is."""
    folders = os.pathsep.join(map(str, elsewhere()))
    return [f"export {VARIABLE}={shlex.quote(folders)}"] if folders else []


def _afterwards(batch: Batch, cluster: Cluster) -> list[str]:
    if not cluster.can_requeue:
        return ["exit $?"]
    return [
        "code=$?",
        "# Above 128 a signal stopped the run, not an error: requeue the job, to resume from the last checkpoint.",
        f'[ $code -gt 128 ] && {_python(cluster)} -m mimbench.jobs.slurm.job "$run" "$job" $code',
        "exit $code",
    ]


def _python(cluster: Cluster) -> str:
    """Return the interpreter with -P, because the working directory of a job must not provide its code."""
    return f"{cluster.python or shlex.quote(sys.executable)} -P"

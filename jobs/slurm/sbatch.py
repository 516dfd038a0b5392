"""The sbatch file, written and submitted by submitit's SLURM executor.

The job is `mimbench run RUN_DIR`: the file is complete, and a person can submit it as well.
If a run was stopped from outside, the file asks `jobs.slurm.job` whether to requeue the job.
"""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from mimbench.jobs.runs.tasks import VARIABLE, elsewhere
from mimbench.jobs.slurm import staging
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.slurm.commands import refusal
from mimbench.jobs.slurm.container import before_python, beside, python
from mimbench.jobs.slurm.directives import parameters
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
        self._module, self._cluster, self._before = module, cluster, before_python(batch, cluster)
        self.update_parameters(
            **parameters(batch, cluster, dependency),
            setup=[
                *cluster.setup,
                *_choice(batch),
                *_environment(batch, cluster),
                *staging.lines(batch, cluster),
                *_lookout(batch, cluster),
            ],
            teardown=_afterwards(batch, cluster),
        )
        if len(batch.runs) > 1:
            self.parameters["map_count"] = len(batch.runs)

    @classmethod
    def affinity(cls) -> int:
        """Claim to be usable everywhere, so that the text can be rendered on a machine without SLURM."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f'{self._before}{python(self._cluster)} -u -m {self._module} "$run"'

    def text(self) -> str:
        """Return the text of the sbatch file."""
        return self._make_submission_file_text(self._submitit_command_str, "")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        text = super()._make_submission_file_text(command, uid)
        return text.replace("#!/bin/bash\n", "#!/bin/bash -l\n", 1) if self._cluster.login_shell else text

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
    gone = {name: value for name, value in os.environ.items() if _is_leftover(name) or name in RANKS}
    for name in gone:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(gone)


def _is_leftover(name: str) -> bool:
    return name.startswith(LEFTOVERS) and name not in KEPT


def overridden() -> list[str]:
    """Return sbatch's options in this shell's environment, which a submission ignores: `SBATCH_...=value`."""
    names = (name for name in sorted(os.environ) if name.startswith("SBATCH_") and name not in KEPT)
    return [f"{name}={os.environ[name]}" for name in names]


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
        "trap : TERM USR1 USR2 INT HUP QUIT  # this shell ignores signals; the run handles them",
        'export MIMBENCH_JOB_SHELL="$SLURMD_NODENAME:$$"  # if this shell is killed, the run requeues the job',
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


def _lookout(batch: Batch, cluster: Cluster) -> list[str]:
    """Return the shell lines that end srun where SLURM's process of the step and the run were killed: it would hang.

    A second shell looks every five minutes whether the files of the run's starts change, as a heartbeat changes them.
    If they do not, Python looks whether the run's processes are gone.
    """
    ask = f'{beside(batch, cluster)}{python(cluster)} -m mimbench.jobs.slurm.hung_step "$run" "$job"'
    return [
        "# If SLURM's process of the step is killed together with the run, srun hangs: end it once the run is gone.",
        '(trap "" USR1 USR2 INT HUP QUIT',
        "while ! read -rt ${MIMBENCH_JOB_LOOK:-300} <> <(:) && kill -0 $$; do  # without a process that sleeps",
        '  was=${now:-}; now=$(ls -l --full-time "$run/attempts" 2>&1)',
        f'  [ "$now" = "$was" ] && {ask}',
        "done) & lookout=$!; disown",
    ]


def _afterwards(batch: Batch, cluster: Cluster) -> list[str]:
    """Return the shell lines after the run: the site's own, then the decision to requeue the job."""
    done = '[ -e "$run/result.json" ] && code=0  # the run is done, even if SLURM lost sight of it'
    kept = ["code=$?", "kill $lookout 2>/dev/null", *cluster.cleanup, done]
    if not cluster.can_requeue:
        return [*kept, "exit $code"]
    ask = f'{python(cluster)} -m mimbench.jobs.slurm.job "$run" "$job" $code'
    # Where the process of SLURM that runs this script was killed, SLURM does not hear of its end: start it once more.
    orphan = '[ "$(cut -d" " -f4 /proc/$$/stat)" = 1 ]'  # others' entries in /proc may be hidden
    unheard = f'[ $code -eq 0 ] && {orphan} && scontrol requeue "$job"  # else SLURM would not hear of the end'
    kept.append(unheard)
    comment = "# Above 128 a signal stopped the run, not an error: requeue the job, to resume from the last checkpoint."
    if cluster.container is None:
        return [*kept, comment, f"[ $code -gt 128 ] && {ask}", "exit $code"]
    # An image has no SLURM: the shell asks for the job's state, the image decides, the shell requeues.
    state = '"$(squeue -h -r -j "$job" -o %T)"'
    decide = f'{beside(batch, cluster)}{ask} {state} && scontrol requeue "$job"'
    return [*kept, comment, f"[ $code -gt 128 ] && {decide}", "exit $code"]

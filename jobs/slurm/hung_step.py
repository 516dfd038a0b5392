"""End the srun of a job whose run is gone, so that the job's shell goes on and requeues the job.

    python -P -m mimbench.jobs.slurm.hung_step RUN_DIR JOB     # called by the job's shell while srun runs

If SLURM's own process of the step (slurmstepd) and the run are killed at the same moment, nobody tells srun that the
step has ended, and the job would stay "running" until its time limit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.job import end_srun, last_of, restarts


def is_gone(run: RunDir, job: str) -> bool:
    """Return whether the run of this start of the job has begun and its processes are gone."""
    run = last_of(run)
    attempts = run.attempts()
    if not attempts or (attempts[-1].get("job"), attempts[-1].get("restart")) != (job, restarts()):
        return False  # it is still importing, or copying its data
    return run.state() != "running"


def main(arguments: list[str]) -> int:
    """End srun if the run is gone, and say so in the job's output."""
    run, job = RunDir(Path(arguments[0])), arguments[1]
    if is_gone(run, job):
        print(f"job {job}: the run's processes are gone, but srun still waits for them: srun is ended", file=sys.stderr)
        end_srun()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

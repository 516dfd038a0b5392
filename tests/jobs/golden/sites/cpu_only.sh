#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=4
#SBATCH --exclusive
#SBATCH --job-name=vit.0011aabb
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-cpu=2048MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/lustre/runs/.mimbench/jobs/0011aabb/%A_%a_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
runs=(
  [0]=/lustre/runs/cls/a
  [1]=/lustre/runs/cls/b
)
run=${runs[$SLURM_ARRAY_TASK_ID]}
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap : TERM USR1 USR2 INT HUP QUIT  # this shell ignores signals; the run handles them
export MIMBENCH_JOB_SHELL="$SLURMD_NODENAME:$$"  # if this shell is killed, the run requeues the job
export MIMBENCH_JOB_WARNING=USR2
export MIMBENCH_JOB_ID="$job"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export PYTHONPATH=/lustre/runs/.mimbench/code/ab  # the code at submission
# If SLURM's process of the step is killed together with the run, srun hangs: end it once the run is gone.
(trap "" USR1 USR2 INT HUP QUIT
while ! read -rt ${MIMBENCH_JOB_LOOK:-300} <> <(:) && kill -0 $$; do  # without a process that sleeps
  was=${now:-}; now=$(ls -l --full-time "$run/attempts" 2>&1)
  [ "$now" = "$was" ] && /sw/python -P -m mimbench.jobs.slurm.hung_step "$run" "$job"
done) & lookout=$!; disown

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /lustre/runs/.mimbench/jobs/0011aabb/%A_%a_%t_log.out --kill-on-bad-exit=1 --export=ALL --cpus-per-task=4 /sw/python -P -u -m mimbench run "$run"


# teardown
code=$?
kill $lookout 2>/dev/null
[ -e "$run/result.json" ] && code=0  # the run is done, even if SLURM lost sight of it
[ $code -eq 0 ] && [ "$(cut -d" " -f4 /proc/$$/stat)" = 1 ] && scontrol requeue "$job"  # else SLURM would not hear of the end
# Above 128 a signal stopped the run, not an error: requeue the job, to resume from the last checkpoint.
[ $code -gt 128 ] && /sw/python -P -m mimbench.jobs.slurm.job "$run" "$job" $code
exit $code
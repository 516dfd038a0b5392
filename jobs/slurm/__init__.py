"""Runs on a SLURM cluster: submission, states, and the start and end of a job."""

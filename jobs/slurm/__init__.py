"""Runs on a SLURM cluster: what is handed in, what becomes of it, and what a job does when it starts and ends."""

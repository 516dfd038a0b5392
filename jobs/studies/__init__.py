"""Studies: runs and what each needs; sweeps, plans, submission, and the ready studies of papers."""

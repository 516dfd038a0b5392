"""Configs, run directories, results, and what a process is before it computes."""

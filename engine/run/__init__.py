"""Configs, run directories, results, and the setup of a process."""

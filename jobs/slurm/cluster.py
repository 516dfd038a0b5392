"""Cluster profiles: all settings of a SLURM site, in one small TOML file for each site.

    ~/.config/mimbench/clusters/NAME.toml      MIMBENCH_CLUSTERS sets another directory

    mimbench cluster add a100 partition=gpu account=vision gpu_type=a100 setup="module load cuda"
    mimbench cluster check a100        # asks SLURM whether it would accept a job of this profile
    mimbench doctor --cluster a100     # runs a probe job for a minute and updates the profile

No code depends on a site. The cluster `local`, this machine, always exists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.config import from_text, plumbing, to_text, with_overrides
from mimbench.engine.run.nearest import did_you_mean

LOCAL = "local"


class Shape(NamedTuple):
    """The resources of one run. Runs with the same shape can share an array."""

    nodes: int = 1
    tasks: int = 1  # processes on each node: one for each GPU
    cpus: int = 1  # for each process
    gpus: int = 0  # on each node
    memory_gb: float | None = None  # on each node; None: the site's default
    minutes: int = 60


@dataclass(frozen=True)
class Cluster:
    """A site. Fields that are none are left out of the sbatch file, so the site's default applies."""

    name: str = plumbing("", about="the file's name")
    kind: Literal["slurm", "local"] = plumbing("slurm", about="slurm, or this machine")
    partition: str | None = plumbing(None, about="partition; several separated by commas")
    account: str | None = plumbing(None, about="who pays")
    qos: str | None = plumbing(None, about="quality of service")
    constraint: str | None = plumbing(None, about="features that nodes must have")
    reservation: str | None = plumbing(None, about="reservation to run in")
    exclude: str | None = plumbing(None, about="nodes to avoid, for example node[03,07]")
    licenses: str | None = plumbing(None, about="licences a job takes, for example scratch:1")
    comment: str | None = plumbing(None, about="comment that the site requires or reads")
    exclusive: bool = plumbing(False, about="no other job on the nodes")
    mail_user: str | None = plumbing(None, about="address for SLURM's mails")
    mail_type: str = plumbing("END,FAIL", about="events that send a mail, if mail_user is set")
    gpu_request: Literal["gpus-per-node", "gpus-per-task", "gres", "none"] = plumbing(
        "gpus-per-node", about="how to request GPUs"
    )
    gpu_type: str | None = plumbing(None, about="the site's name of the GPU, for example a100")
    gpus_per_node: int = plumbing(8, about="GPUs on each node; 0: none")
    gpu_memory_gb: float | None = plumbing(None, about="GiB of each GPU; runs that do not fit are not submitted")
    cpus_per_task: int = plumbing(8, about="CPUs for each process; each GPU has one process")
    srun_inherits_cpus: bool = plumbing(False, about="srun inherits cpus-per-task from sbatch (not in 22.05)")
    memory_gb: float | None = plumbing(None, about="GiB for each process")
    memory_request: Literal["mem", "mem-per-cpu", "mem-per-gpu"] = plumbing("mem", about="how to request memory")
    minutes: int = plumbing(1440, about="default time limit of a job; a run continues in the next job")
    max_minutes: int | None = plumbing(None, about="the longest time limit of the site")
    signal: Literal["USR2", "USR1"] = plumbing("USR2", about="signal before the time limit; NCCL may catch USR1")
    signal_seconds: int = plumbing(120, about="seconds between the signal and the time limit")
    can_requeue: bool = plumbing(True, about="jobs may requeue themselves with scontrol")
    has_sacct: bool = plumbing(False, about="sacct works: the site has an accounting database")
    login_shell: bool = plumbing(False, about="start the job's shell as a login shell, for sites whose modules need it")
    export: Literal["ALL", "NONE"] | None = plumbing(None, about="does the job get the submitting shell's variables?")
    setup: tuple[str, ...] = plumbing((), about="shell lines before the run: modules, proxies, a cache directory")
    cleanup: tuple[str, ...] = plumbing((), about="shell lines after the run, however it ended")
    scratch: str | None = plumbing(None, about="local directory of a node, for example $SLURM_TMPDIR")
    stage: tuple[str, ...] = plumbing((), about="data to copy to scratch once per node, each as NAME=DIRECTORY")
    container: str | None = plumbing(None, about="image to run in: a .sif file, or what Pyxis imports")
    container_kind: Literal["apptainer", "pyxis"] = plumbing("apptainer", about="what runs the container")
    container_binds: tuple[str, ...] = plumbing((), about="further directories that the container sees")
    shared_root: str | None = plumbing(None, about="directory shared by nodes and login node; contains the runs")
    python: str | None = plumbing(None, about="Python interpreter on the nodes; none: the submitting one")
    max_array: int | None = plumbing(None, about="MaxArraySize; none: ask SLURM")
    max_submit: int | None = plumbing(None, about="jobs that you may have in the queue (MaxSubmitJobs); more wait here")
    throttle: int = plumbing(64, about="runs of one array that run at the same time")
    wckey: str | None = plumbing(None, about="workload characterization key")
    sbatch: tuple[str, ...] = plumbing((), about="further options of sbatch, for example --reservation=x")
    slurm: str | None = plumbing(None, about="SLURM's version, written by the doctor")
    probed: str | None = plumbing(None, about="time of the doctor's last successful probe")

    def __post_init__(self) -> None:
        for key in ("cpus_per_task", "minutes", "signal_seconds", "throttle"):
            if getattr(self, key) < 1:  # with timeout_min=0, submitit's jobs stay pending for ever
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.gpus_per_node < 0:
            raise ValueError(f"gpus_per_node={self.gpus_per_node} must not be negative")
        if self.max_minutes is not None and self.minutes > self.max_minutes:
            raise ValueError(
                f"minutes={self.minutes} exceeds the site's limit max_minutes={self.max_minutes}; lower minutes"
            )
        if self.max_submit is not None and self.max_submit < 1:
            raise ValueError(f"max_submit={self.max_submit} must be at least 1")
        if self.memory_request == "mem-per-gpu" and self.gpu_request == "none":
            raise ValueError("memory_request=mem-per-gpu needs GPUs, but gpu_request=none; use mem or mem-per-cpu")
        if bad := [data for data in self.stage if not all(data.partition("="))]:
            raise ValueError(f"stage={bad[0]!r} is not NAME=DIRECTORY, for example imagenet=/data/imagenet-shards")
        if self.stage and self.scratch is None:
            raise ValueError("stage needs scratch, the local directory of a node, for example scratch='$SLURM_TMPDIR'")
        if bad := [option for option in self.sbatch if not option.startswith("--")]:
            raise ValueError(f"sbatch={bad[0]!r} is not a long option; write it as --reservation=x")

    def shape(self, gpus: int = 1, nodes: int = 1, minutes: int | None = None) -> Shape:
        """Return the resources of a run of `nodes` x `gpus` processes; on a cluster without GPUs, only their CPUs.

        If the cluster's nodes have fewer GPUs than `gpus`, more nodes are used to get the same number of GPUs.

        Raises:
            ValueError: if no number of nodes has exactly these GPUs, or the time exceeds the site's limit.
        """
        wanted = self.minutes if minutes is None else minutes
        has_gpus = self.gpu_request != "none" and self.gpus_per_node > 0
        if has_gpus and gpus > self.gpus_per_node:
            total, each = gpus * nodes, self.gpus_per_node
            if total % each:
                raise ValueError(
                    f"{total} GPUs are not a multiple of gpus_per_node={each} of cluster {self.name}; "
                    f"request a multiple of {each}"
                )
            gpus, nodes = each, total // each
        tasks = max(1, gpus)
        if wanted < 1 or (self.max_minutes is not None and wanted > self.max_minutes):
            raise ValueError(
                f"a time limit of {wanted} minutes exceeds max_minutes={self.max_minutes} of cluster {self.name}; "
                "request less: an unfinished run continues in the next job"
            )
        memory = None if self.memory_gb is None else self.memory_gb * tasks
        return Shape(nodes, tasks, self.cpus_per_task, gpus if has_gpus else 0, memory, wanted)


def directory() -> Path:
    """Return the directory of the profiles."""
    if given := os.environ.get("MIMBENCH_CLUSTERS"):
        return Path(given).expanduser()
    return Path(os.environ.get("MIMBENCH_HOME") or "~/.config/mimbench").expanduser() / "clusters"


def names() -> list[str]:
    """Return the names of all clusters with a profile, `local` first."""
    return [LOCAL, *sorted(file.stem for file in directory().glob("*.toml"))]


def load(name: str) -> Cluster:
    """Return the profile called `name`.

    Raises:
        ValueError: if it does not exist, or has a wrong key or value.
    """
    if name == LOCAL:
        return Cluster(name=LOCAL, kind="local", gpus_per_node=0)
    file = directory() / f"{name}.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = did_you_mean(name, names(), f"`mimbench cluster add {name} partition=...` adds it")
        raise ValueError(f"unknown cluster {name!r} (known: {', '.join(names())}); {hint}") from None
    return replace(from_text(Cluster, text, str(file)), name=name)


def add(name: str, settings: Sequence[str]) -> Path:
    """Create the profile `name`, or update it with `settings` (key=value); return its file.

    Raises:
        ValueError: if the name cannot be a file name, or a key or value is wrong.
    """
    if name == LOCAL or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{name!r} is not a valid cluster name; use letters, digits, - and _, and not {LOCAL!r}")
    before = load(name) if name in names() else Cluster(name=name)
    return save(with_overrides(before, settings))


def save(cluster: Cluster) -> Path:
    """Write the profile; return its file."""
    file = directory() / f"{cluster.name}.toml"
    write_text(file, profile_text(cluster))
    return file


def profile_text(cluster: Cluster) -> str:
    """Return the profile as TOML, with an explanation of each key."""
    lines = to_text(cluster).splitlines()
    return "".join(
        f"{line.removesuffix('  # plumbing')}  # {field.metadata['about']}\n"
        for field, line in zip(fields(cluster), lines, strict=True)
        if field.name != "name"
    )

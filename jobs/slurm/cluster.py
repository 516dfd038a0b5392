"""Cluster profiles: everything that is known of a SLURM site, in one small TOML file a site.

    ~/.config/mimbench/clusters/NAME.toml      MIMBENCH_CLUSTERS names another directory

    mimbench cluster add a100 partition=gpu account=vision gpu_type=a100 setup="module load cuda"
    mimbench cluster check a100        # asks SLURM whether it would take a job of this profile
    mimbench doctor --cluster a100     # runs a probe job for a minute and writes down what it learned

Nothing about a site is in code. The cluster `local`, this machine, is always there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mimbench.engine.run.atomic import write_text
from mimbench.engine.run.config import from_text, plumbing, to_text, with_overrides

LOCAL = "local"


class Shape(NamedTuple):
    """What one run asks of a cluster. Runs of one shape can share an array."""

    nodes: int = 1
    tasks: int = 1  # processes on each node: one for each GPU
    cpus: int = 1  # for each process
    gpus: int = 0  # on each node
    memory_gb: float | None = None  # on each node; None leaves it to the site
    minutes: int = 60


@dataclass(frozen=True)
class Cluster:
    """A site. Fields that are none are left out of the sbatch file: the site's own default holds."""

    name: str = plumbing("", about="the file's name")
    kind: Literal["slurm", "local"] = plumbing("slurm", about="slurm, or this machine")
    partition: str | None = plumbing(None, about="comma-separated if several will do")
    account: str | None = plumbing(None, about="who pays")
    qos: str | None = plumbing(None, about="quality of service")
    constraint: str | None = plumbing(None, about="features that nodes must have")
    gpu_request: Literal["gpus-per-node", "gres", "none"] = plumbing("gpus-per-node", about="how GPUs are asked for")
    gpu_type: str | None = plumbing(None, about="as the site calls it, a100 for instance")
    gpus_per_node: int = plumbing(8, about="GPUs that a node has; 0: it has none")
    gpu_memory_gb: float | None = plumbing(None, about="GiB of each GPU: detection must fit before it is submitted")
    cpus_per_task: int = plumbing(8, about="CPUs for each process, of which there is one for each GPU")
    srun_inherits_cpus: bool = plumbing(False, about="srun takes cpus-per-task over from sbatch (not in 22.05)")
    memory_gb: float | None = plumbing(None, about="GiB for each process")
    minutes: int = plumbing(1440, about="time limit of a job that names none; it goes on in the next one")
    max_minutes: int | None = plumbing(None, about="the longest time limit the site grants")
    signal: Literal["USR2", "USR1"] = plumbing("USR2", about="the warning before the time limit; NCCL may catch USR1")
    signal_seconds: int = plumbing(120, about="how long before")
    can_requeue: bool = plumbing(True, about="a job may put itself back into the queue with scontrol")
    has_sacct: bool = plumbing(False, about="there is an accounting database")
    setup: tuple[str, ...] = plumbing((), about="shell lines before the run: modules, proxies, a cache directory")
    shared_root: str | None = plumbing(None, about="the directory that nodes and login node share; runs lie under it")
    python: str | None = plumbing(None, about="the interpreter on the nodes; none: the one that submits")
    max_array: int | None = plumbing(None, about="MaxArraySize; none: ask SLURM")
    throttle: int = plumbing(64, about="runs of one array at a time")
    wckey: str | None = plumbing(None, about="workload characterization key")
    sbatch: tuple[str, ...] = plumbing((), about="more options of sbatch, --reservation=x for instance")
    slurm: str | None = plumbing(None, about="SLURM's version, as the doctor found it")
    probed: str | None = plumbing(None, about="when the doctor last found everything in order")

    def __post_init__(self) -> None:
        for key in ("cpus_per_task", "minutes", "signal_seconds", "throttle"):
            if getattr(self, key) < 1:  # submitit's own timeout_min=0 pends for ever
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.gpus_per_node < 0:
            raise ValueError(f"gpus_per_node={self.gpus_per_node} must not be negative")
        if self.max_minutes is not None and self.minutes > self.max_minutes:
            raise ValueError(f"minutes={self.minutes} is above the site's limit max_minutes={self.max_minutes}")
        if bad := [option for option in self.sbatch if not option.startswith("--")]:
            raise ValueError(f"sbatch={bad[0]!r}: write options in their long form, as --reservation=x")

    def shape(self, gpus: int = 1, nodes: int = 1, minutes: int | None = None) -> Shape:
        """What a run of `nodes` x `gpus` processes asks for; where there are no GPUs, each has its CPUs alone.

        Smaller nodes than the run thinks of: more of them, if that comes to as many GPUs.

        Raises:
            ValueError: for GPUs that no number of nodes comes to, or more time than the site grants.
        """
        wanted = self.minutes if minutes is None else minutes
        has_gpus = self.gpu_request != "none" and self.gpus_per_node > 0
        if has_gpus and gpus > self.gpus_per_node:
            total, each = gpus * nodes, self.gpus_per_node
            if total % each:
                raise ValueError(
                    f"{total} GPUs, but nodes of cluster {self.name} have gpus_per_node={each}, and no number of them "
                    f"comes to that: ask for a multiple of {each}"
                )
            gpus, nodes = each, total // each
        tasks = max(1, gpus)
        if wanted < 1 or (self.max_minutes is not None and wanted > self.max_minutes):
            raise ValueError(
                f"a time limit of {wanted} minutes, but cluster {self.name} grants max_minutes={self.max_minutes}: "
                "ask for less; a run that is not done by then goes on in another job"
            )
        memory = None if self.memory_gb is None else self.memory_gb * tasks
        return Shape(nodes, tasks, self.cpus_per_task, gpus if has_gpus else 0, memory, wanted)


def directory() -> Path:
    """Where the profiles lie."""
    if given := os.environ.get("MIMBENCH_CLUSTERS"):
        return Path(given).expanduser()
    return Path(os.environ.get("MIMBENCH_HOME") or "~/.config/mimbench").expanduser() / "clusters"


def names() -> list[str]:
    """Every cluster there is a profile of, `local` first."""
    return [LOCAL, *sorted(file.stem for file in directory().glob("*.toml"))]


def load(name: str) -> Cluster:
    """The profile called `name`.

    Raises:
        ValueError: if there is none, or a key or value in it is wrong.
    """
    if name == LOCAL:
        return Cluster(name=LOCAL, kind="local", gpus_per_node=0)
    file = directory() / f"{name}.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(names())
        raise ValueError(
            f"no cluster is called {name!r} (there is {known}); `mimbench cluster add {name} partition=...` makes one"
        ) from None
    return replace(from_text(Cluster, text, str(file)), name=name)


def add(name: str, settings: Sequence[str]) -> Path:
    """Write the profile `name`, or change the one there is by `settings` (key=value); its file.

    Raises:
        ValueError: for a name that is no file's, or a wrong key or value.
    """
    if name == LOCAL or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"a cluster cannot be called {name!r}: letters, digits, - and _, and not {LOCAL!r}")
    before = load(name) if name in names() else Cluster(name=name)
    return save(with_overrides(before, settings))


def save(cluster: Cluster) -> Path:
    """Write the profile; its file."""
    file = directory() / f"{cluster.name}.toml"
    write_text(file, profile_text(cluster))
    return file


def profile_text(cluster: Cluster) -> str:
    """The profile as TOML, each key with what it means."""
    lines = to_text(cluster).splitlines()
    return "".join(
        f"{line.removesuffix('  # plumbing')}  # {field.metadata['about']}\n"
        for field, line in zip(fields(cluster), lines, strict=True)
        if field.name != "name"
    )

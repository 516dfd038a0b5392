"""Find settings of a profile that SLURM accepts: which GPU form, memory, account, QOS or partition the site wants.

    fitted(cluster, objection)      # the changed profile, or None

`objection` asks SLURM (`sbatch --test-only`), which objects to one thing at a time. For each objection, the settings
that the site offers for it are tried in turn, until SLURM accepts the job or objects to something else.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Literal

from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.cluster import Cluster

ROUNDS = 5  # objections that are answered at most
MEMORY_GB = 8.0  # of a process, where the site wants a number and the profile has none
FORMS: tuple[Literal["gpus-per-node", "gres", "gpus-per-task"], ...] = ("gpus-per-node", "gres", "gpus-per-task")
EXPORTS: tuple[Literal["NONE", "ALL"], ...] = ("NONE", "ALL")
GRES = re.compile(r"\bgpu(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>\d+)")


def fitted(cluster: Cluster, objection: Callable[[Cluster], str | None]) -> Cluster | None:
    """Return the profile with the settings that SLURM accepts; None if none of those tried is.

    Raises:
        OSError: if SLURM does not answer.
    """
    said = objection(cluster)
    for _ in range(ROUNDS):
        if said is None:
            return cluster
        for candidate in candidates(cluster, said):
            answer = objection(candidate)
            if answer is None or answer.lower() != said.lower():
                cluster, said = candidate, answer
                break
        else:
            return None
    return cluster if said is None else None


def changes(before: Cluster, after: Cluster) -> list[str]:
    """Return the settings in which two profiles differ, as `mimbench cluster add` takes them: `gpu_request=gres`."""
    pairs = ((field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(Cluster))
    return [f"{name}={_text(new)}" for name, old, new in pairs if old != new]


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def candidates(cluster: Cluster, said: str) -> Iterator[Cluster]:
    """Yield profiles that may answer an objection of SLURM, the most likely first."""
    low = said.lower()
    if "account" in low and "policy" not in low:
        yield from (replace(cluster, account=name) for name in _mine("account"))
    if "partition" in low:
        yield from (replace(cluster, partition=name) for name in _words("sinfo", "-h", "-o", "%R"))
    if "qos" in low:
        yield from (replace(cluster, qos=name) for name in _mine("qos"))
    if "feature" in low:
        yield replace(cluster, constraint=None)
    if "time limit" in low:
        yield from _shorter(cluster)
    if "export" in low:
        yield from (replace(cluster, export=value) for value in EXPORTS if value != cluster.export)
    if "reservation" in low:
        yield replace(cluster, reservation=None)
    if any(word in low for word in ("gres", "generic resource", "gpu", "node configuration")):
        yield from _gpus(cluster)
    if any(word in low for word in ("memory", "--mem", "node configuration")):
        yield from _memory(cluster)
    if any(word in low for word in ("processors", "cpu", "node configuration")):
        yield from _cpus(cluster)


def _words(*command: str) -> list[str]:
    """Return the different words that a command of SLURM prints, in order; none if it fails."""
    try:
        return list(dict.fromkeys(slurm.ask(*command).split()))
    except ValueError:
        return []


def _mine(what: str) -> list[str]:
    """Return the accounts or the QOS that accounting has for this user."""
    command = ("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", f"format={what}")
    return [name for word in _words(*command) for name in word.split(",") if name]


def _shorter(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the profile with the time limits of its partitions."""
    names = (cluster.partition or "").split(",")
    limits = {slurm.minutes_of(word) for word in _words("sinfo", "-h", "-p", ",".join(names), "-o", "%l")}
    for limit in sorted((limit for limit in limits if limit), reverse=True):
        if limit < cluster.minutes:
            yield replace(cluster, minutes=limit, max_minutes=limit)


def _gpus(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the forms of a GPU request with the types and numbers that the nodes have; last, none."""
    if not cluster.gpus_per_node:
        return
    offered = [match for word in _words("sinfo", "-h", "-o", "%G") for match in GRES.finditer(word)]
    types: Sequence[str | None] = list(dict.fromkeys([None, cluster.gpu_type, *(match["type"] for match in offered)]))
    most = max((int(match["count"]) for match in offered), default=0)
    if not offered:
        yield replace(cluster, gpus_per_node=0, gpu_type=None)
        return
    for kind in types:
        for form in FORMS:
            fewer = min(cluster.gpus_per_node, most)
            yield replace(cluster, gpu_request=form, gpu_type=kind, gpus_per_node=fewer)


def _memory(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the forms of a memory request, and less of it."""
    if cluster.memory_gb is None:
        yield from (replace(cluster, memory_gb=MEMORY_GB, memory_request=form) for form in ("mem", "mem-per-cpu"))
        return
    most = max((int(word) for word in _words("sinfo", "-h", "-o", "%m") if word.isdigit()), default=0)
    for share in (1, 2, 4, 8):
        if most and most / 1024 / share < cluster.memory_gb:
            yield replace(cluster, memory_gb=most // share / 1024)
    yield replace(cluster, memory_gb=None)


def _cpus(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the profile with fewer CPUs for a process."""
    most = max((int(word) for word in _words("sinfo", "-h", "-o", "%c") if word.isdigit()), default=0)
    number = min(cluster.cpus_per_task // 2, most)
    while number:
        yield replace(cluster, cpus_per_task=number)
        number //= 2

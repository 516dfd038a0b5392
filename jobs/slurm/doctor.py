"""What can be found out about a cluster: `mimbench cluster check` asks SLURM, `mimbench doctor --cluster` tries it.

`examine` submits nothing: would SLURM take a job of this profile, does it warn of a preemption, can jobs come back.
`rehearse` runs a probe of a minute: its processes look at GPUs, clock, the shared directory and whether they can talk
to each other; then the job is sent the warning of a preemption, goes back into the queue, and has to come back. What
was learned is written into the profile.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.jobs.local.doctor import Check
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.cluster import Cluster, save
from mimbench.jobs.slurm.snapshot import snapshot
from mimbench.jobs.slurm.submission import Batch

SKEW = 2.0  # seconds between the clocks of two machines that no heartbeat minds
PATIENCE = 600.0  # seconds that the probe may wait for a node and for coming back


def examine(cluster: Cluster, root: Path) -> Iterator[Check]:
    """What SLURM says, from here."""
    try:
        facts = slurm.configuration()
    except (ValueError, OSError) as error:
        yield Check("SLURM", "problem", str(error), "run this where sbatch works")
        return
    yield Check("SLURM", "ok", f"{facts.get('SLURM_VERSION', '?')}, cluster {facts.get('ClusterName', '?')}")
    yield _would_take(cluster)
    yield from _time_limit(cluster)
    yield _preemption(facts)
    yield _requeueing(cluster, facts)
    yield _arrays(cluster, facts)
    yield _accounting(cluster)
    yield _directory(cluster, root)


def _would_take(cluster: Cluster) -> Check:
    """Whether SLURM would take a job of this profile: `sbatch --test-only`."""
    from mimbench.jobs.slurm.sbatch import Executor, scrubbed

    batch = Batch(Path("/tmp"), cluster.name, "check", {0: "check"}, cluster.shape(gpus=min(1, cluster.gpus_per_node)))
    text = Executor(batch, cluster, None).text()
    with scrubbed():
        done = subprocess.run(
            ["sbatch", "--test-only"], input=text, capture_output=True, text=True, check=False, timeout=slurm.PATIENCE
        )
    if done.returncode == 0:
        return Check("a job", "ok", done.stderr.strip().removeprefix("sbatch: ") or "SLURM would take it")
    return Check(
        "a job", "problem", str(slurm.refusal(done.stderr, cluster)), f"`mimbench cluster add {cluster.name} ...`"
    )


def _time_limit(cluster: Cluster) -> Iterator[Check]:
    """The longest limit the partition grants, beside the profile's."""
    if cluster.partition is None:
        return
    limits = []
    for name in cluster.partition.split(","):
        try:
            limits.append(_minutes(_field(slurm.ask("scontrol", "show", "partition", name), "MaxTime")))
        except ValueError as error:
            yield Check("partition", "problem", str(error), f"`mimbench cluster add {cluster.name} partition=...`")
            return
    longest = min((limit for limit in limits if limit is not None), default=None)
    if longest is not None and cluster.minutes > longest:
        yield Check(
            "time limit",
            "problem",
            f"minutes={cluster.minutes}, but partition {cluster.partition} grants {longest}",
            f"`mimbench cluster add {cluster.name} minutes={longest} max_minutes={longest}`",
        )
    else:
        shown = "no limit" if longest is None else f"at most {longest} minutes"
        yield Check("time limit", "ok", f"{cluster.minutes} minutes; partition {cluster.partition}: {shown}")


def _preemption(facts: dict[str, str]) -> Check:
    mode = facts.get("PreemptMode", "OFF")
    if mode.upper() == "OFF":
        return Check("preemption", "ok", "off")
    warned = "preempt_send_user_signal" in facts.get("SlurmctldParameters", "")
    how = "announced by a signal" if warned else "announced by SIGTERM alone, which runs here take as a warning too"
    return Check("preemption", "ok", f"{mode}, {how}")


def _requeueing(cluster: Cluster, facts: dict[str, str]) -> Check:
    allowed = facts.get("JobRequeue", "1") == "1"
    if cluster.can_requeue and not allowed:
        return Check(
            "requeue",
            "note",
            "JobRequeue=0 on this site; jobs ask for it by --requeue",
            "the probe tells whether it works",
        )
    if not cluster.can_requeue:
        return Check("requeue", "note", "can_requeue=false: a run out of time waits for the next `mimbench submit`")
    return Check("requeue", "ok", "a job that is stopped from outside goes back into the queue")


def _arrays(cluster: Cluster, facts: dict[str, str]) -> Check:
    size = int(facts.get("MaxArraySize", "1001"))
    if cluster.max_array is not None and cluster.max_array > size:
        return Check(
            "arrays",
            "problem",
            f"max_array={cluster.max_array}, but the site's MaxArraySize is {size}",
            f"`mimbench cluster add {cluster.name} max_array={size}`",
        )
    return Check("arrays", "ok", f"of {cluster.max_array or size} runs, {cluster.throttle} at a time")


def _accounting(cluster: Cluster) -> Check:
    works = has_sacct()
    if works == cluster.has_sacct:
        return Check("sacct", "ok", "works" if works else "none here; queue and files tell what is going on")
    return Check(
        "sacct",
        "problem" if cluster.has_sacct else "note",
        f"has_sacct={str(cluster.has_sacct).lower()}, but sacct {'works' if works else 'does not work'}",
        f"`mimbench cluster add {cluster.name} has_sacct={str(works).lower()}`",
    )


def has_sacct() -> bool:
    """Whether there is an accounting database that answers."""
    if shutil.which("sacct") is None:
        return False
    done = subprocess.run(["sacct", "-n", "-X"], capture_output=True, text=True, check=False, timeout=slurm.PATIENCE)
    return done.returncode == 0


def _directory(cluster: Cluster, root: Path) -> Check:
    from mimbench.jobs.slurm.schedulers import check

    try:
        check(cluster, root.absolute())
    except ValueError as error:
        return Check("runs", "problem", str(error))
    if cluster.shared_root is None:
        return Check("runs", "note", f"{root.absolute()}: whether nodes share it, the probe tells", "set shared_root")
    return Check("runs", "ok", f"{root.absolute()}, under shared_root")


def _field(text: str, key: str) -> str:
    found = re.search(rf"\b{key}=(\S+)", text)
    return found[1] if found else ""


def _minutes(text: str) -> int | None:
    """`1-12:00:00` in minutes; None for no limit."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not parts[0].isdigit():
        return None
    hours, minutes = (int(parts[0]), int(parts[1])) if len(parts) == 3 else (0, int(parts[0]))
    return int(days or 0) * 1440 + hours * 60 + minutes


# ----------------------------------------------------------------------------------------------------------- the probe


def rehearse(cluster: Cluster, root: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[Check]:
    """Submit the probe, wait for it, rehearse a preemption, and write what was learned into the profile.

    Raises:
        ValueError: in SLURM's words, if it refuses the job.
        OSError: if SLURM is silent, or the directory cannot be written.
        TimeoutError: if the job did not start or come back in ten minutes; it is cancelled.
    """
    from mimbench.jobs.slurm.sbatch import Executor

    gpus = min(2, cluster.gpus_per_node)
    shape = cluster.shape(gpus=gpus or 2, minutes=min(cluster.minutes, 10))
    base = root.absolute()
    batch = Batch(base, cluster.name, "probe", {0: ".mimbench/probe"}, shape, code=snapshot(base))
    batch = replace(batch, runs={0: f".mimbench/jobs/{batch.id}/probe"})
    place = base / batch.runs[0]
    place.mkdir(parents=True)
    job = Executor(batch, cluster, None, module="mimbench.jobs.slurm.probe").send()
    say(f"job {job} submitted; its output is in {batch.folder}")
    try:
        first = _wait(place, 0, job, say)
        yield from _seen(cluster, first)
        yield _clock(first)
        back = _preempt(cluster, place, job, say) if cluster.can_requeue else None
    finally:
        slurm.cancel([job])
    if back is not None:
        yield back
        cluster = replace(cluster, can_requeue=back.verdict == "ok")
    save(_learned(cluster, first))


def _wait(place: Path, restart: int, job: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What every process of a start of the probe wrote, once all have."""
    deadline, shown = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline:
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob(f"{restart}-*.json"))]
        if found and len(found) == found[0]["world"]:
            return found
        state = slurm.state_of(job) or "gone"
        if state != shown:
            say(f"job {job}: {state}")
            shown = state
        if state == "gone" and restart == 0:
            break
        time.sleep(2.0)
    output = "".join(file.read_text(encoding="utf-8")[-500:] for file in place.parent.glob("*_log.out"))
    why = f"it said: {output.strip()}" if output else f"nothing of it is in {place}: do nodes share that directory?"
    raise TimeoutError(f"the probe, job {job}, has not reported: it is {shown}, and {why}")


def _seen(cluster: Cluster, reports: list[dict[str, Any]]) -> Iterator[Check]:
    """What the processes saw."""
    hosts = sorted({report["host"] for report in reports})
    yield Check("nodes", "ok", f"{len(reports)} processes on {', '.join(hosts)}; they share the runs' directory")
    cpus = min(report["cpus"] for report in reports)
    if cpus < cluster.cpus_per_task:
        yield Check(
            "CPUs",
            "problem",
            f"{cpus} for a process, {cluster.cpus_per_task} were asked for",
            f"`mimbench cluster add {cluster.name} srun_inherits_cpus=false`",
        )
    else:
        yield Check("CPUs", "ok", f"{cpus} for a process")
    names = sorted({name for report in reports for name in report["gpus"]})
    if names:
        yield Check("GPUs", "ok", f"{len(reports[0]['gpus'])} for the processes of a node: {', '.join(names)}")
    elif cluster.gpus_per_node and cluster.gpu_request != "none":
        yield Check("GPUs", "problem", "torch sees none on the nodes", "look at gpu_request, gpu_type and setup")
    talk = next((report["talk_error"] for report in reports if report["talk_error"]), None)
    backend = reports[0]["backend"]
    if talk:
        yield Check(backend, "problem", talk, "look at NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME in setup")
    else:
        yield Check(backend, "ok", f"the processes met on port {reports[0]['port']} and summed a number")


def _clock(reports: list[dict[str, Any]]) -> Check:
    """The nodes' clocks beside the file server's, whose times heartbeats are."""
    skew = max(abs(report["clock"] - report["file_time"]) for report in reports)
    if skew > SKEW:
        return Check("clock", "note", f"nodes and file server differ by {skew:.1f} s", "ask the site to run ntp")
    return Check("clock", "ok", f"nodes and file server agree to {max(skew, 0.1):.1f} s")


def _preempt(cluster: Cluster, place: Path, job: str, say: Callable[[str], None]) -> Check:
    """Send the job the warning of a preemption, and wait for it to come back."""
    say(f"job {job}: sending it SIG{cluster.signal}, as a preemption would")
    began = time.monotonic()
    slurm.ask("scancel", f"--signal={cluster.signal}", job)
    try:
        _wait(place, 1, job, say)
    except TimeoutError as error:
        return Check("requeue", "problem", f"the job did not come back: {error}", "can_requeue is false now")
    return Check(
        "requeue",
        "ok",
        f"warned, the job went back into the queue and ran again after {time.monotonic() - began:.0f} s",
    )


def _learned(cluster: Cluster, reports: list[dict[str, Any]]) -> Cluster:
    facts = slurm.configuration()
    return replace(
        cluster,
        slurm=facts.get("SLURM_VERSION"),
        max_array=cluster.max_array or int(facts.get("MaxArraySize", "1001")),
        has_sacct=has_sacct(),
        probed=time.strftime("%Y-%m-%d %H:%M") if not any(report["talk_error"] for report in reports) else None,
    )

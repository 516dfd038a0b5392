"""Check a cluster: `mimbench cluster check` asks SLURM, `mimbench doctor --cluster` also runs a probe job.

`examine` submits nothing: would SLURM accept a job of this profile, and if not, with which settings; does it warn of
a preemption, can jobs be requeued; which jobs belong to a runs root that is gone. `rehearse` runs a probe of a minute:
its processes check GPUs, clock, the shared directory and their communication, and its shell `scontrol`, modules,
scratch, containers and the variables that jobs get; then the job gets the warning of a preemption, requeues itself, and
must start again. The results are written into the profile.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.cores import loading_processes
from mimbench.jobs.local.doctor import Check
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm.cluster import Cluster, save
from mimbench.jobs.slurm.leftovers import findings
from mimbench.jobs.slurm.node_shell import container, marked, of_shell, probe_setup, read_report
from mimbench.jobs.slurm.proposals import changes, fitted
from mimbench.jobs.slurm.snapshot import snapshot
from mimbench.jobs.slurm.submission import Batch

SKEW = 2.0  # largest difference in seconds between the clocks of two machines that heartbeats tolerate
PATIENCE = 600.0  # longest wait of the probe, for a node and for its restart


def examine(cluster: Cluster, root: Path) -> Iterator[Check]:
    """Yield the checks that ask SLURM from this machine."""
    try:
        facts = slurm.configuration()
    except (ValueError, OSError) as error:
        yield Check("SLURM", "problem", str(error), "run this on a machine where sbatch works")
        return
    yield Check("SLURM", "ok", f"{facts.get('SLURM_VERSION', '?')}, cluster {facts.get('ClusterName', '?')}")
    yield _would_take(cluster)
    yield from _time_limit(cluster)
    yield _preemption(facts)
    yield _requeueing(cluster, facts)
    yield _arrays(cluster, facts)
    yield _accounting(cluster)
    yield _directory(cluster, root)
    if "jobs" in facts.get("PrivateData", ""):
        found = "PrivateData=jobs hides the jobs of others: runs that they submitted from a shared root look lost"
        yield Check("sharing", "note", found, "let each person submit from a runs root of their own")
    yield from findings()


def _would_take(cluster: Cluster) -> Check:
    """Check whether SLURM would accept a job of this profile, and propose settings that it accepts if not."""
    accepted, said = _test(cluster)
    if accepted:
        return Check("a job", "ok", said)
    better = proposal(cluster)
    remedy = "..." if better is None else shlex.join(changes(cluster, better))
    return Check("a job", "problem", said, f"`mimbench cluster add {cluster.name} {remedy}`")


def proposal(cluster: Cluster) -> Cluster | None:
    """Return the profile with settings that SLURM accepts instead of those it refuses; None if none were found.

    Raises:
        OSError: if SLURM does not answer.
    """

    def objection(candidate: Cluster) -> str | None:
        accepted, said = _test(candidate)
        return None if accepted else said.partition(". Check ")[0]

    return fitted(cluster, objection)


def _test(cluster: Cluster) -> tuple[bool, str]:
    """Return whether SLURM would accept a job of this profile (`sbatch --test-only`), and its message."""
    from mimbench.jobs.slurm.sbatch import Executor, scrubbed

    batch = Batch(Path("/tmp"), cluster.name, "check", {0: "check"}, cluster.shape(gpus=min(1, cluster.gpus_per_node)))
    text = Executor(batch, cluster, None).text()
    with scrubbed():
        done = subprocess.run(
            ["sbatch", "--test-only"], input=text, capture_output=True, text=True, check=False, timeout=slurm.PATIENCE
        )
    if done.returncode == 0:
        return True, done.stderr.strip().removeprefix("sbatch: ") or "SLURM would accept it"
    refused = slurm.refusal(done.stderr, cluster)
    if isinstance(refused, slurm.SilentError):
        raise refused
    return False, str(refused)


def _time_limit(cluster: Cluster) -> Iterator[Check]:
    """Check the time limit of the profile against that of the partition."""
    if cluster.partition is None:
        return
    limits = []
    for name in cluster.partition.split(","):
        try:
            limits.append(slurm.minutes_of(_field(slurm.ask("scontrol", "show", "partition", name), "MaxTime")))
        except ValueError as error:
            yield Check("partition", "problem", str(error), f"`mimbench cluster add {cluster.name} partition=...`")
            return
    longest = min((limit for limit in limits if limit is not None), default=None)
    if longest is not None and cluster.minutes > longest:
        yield Check(
            "time limit",
            "problem",
            f"minutes={cluster.minutes}, but partition {cluster.partition} allows at most {longest}",
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
    how = "announced by a signal" if warned else "announced by SIGTERM only, which runs also treat as a warning"
    return Check("preemption", "ok", f"{mode}, {how}")


def _requeueing(cluster: Cluster, facts: dict[str, str]) -> Check:
    allowed = facts.get("JobRequeue", "1") == "1"
    if cluster.can_requeue and not allowed:
        return Check(
            "requeue",
            "note",
            "JobRequeue=0 on this site; jobs request it with --requeue",
            "the probe tests whether this works",
        )
    if not cluster.can_requeue:
        return Check(
            "requeue",
            "note",
            "can_requeue=false: a run that reaches its time limit waits for the next `mimbench submit`",
        )
    return Check("requeue", "ok", "a job that SLURM stops is requeued")


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
        return Check("sacct", "ok", "works" if works else "not available; states come from the queue and the files")
    return Check(
        "sacct",
        "problem" if cluster.has_sacct else "note",
        f"has_sacct={str(cluster.has_sacct).lower()}, but sacct {'works' if works else 'does not work'}",
        f"`mimbench cluster add {cluster.name} has_sacct={str(works).lower()}`",
    )


def has_sacct() -> bool:
    """Return whether the accounting database exists and answers."""
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
        return Check("runs", "note", f"{root.absolute()}: the probe tests whether nodes share it", "set shared_root")
    return Check("runs", "ok", f"{root.absolute()}, under shared_root")


def _field(text: str, key: str) -> str:
    found = re.search(rf"\b{key}=(\S+)", text)
    return found[1] if found else ""


# ----------------------------------------------------------------------------------------------------------- the probe


def rehearse(cluster: Cluster, root: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[Check]:
    """Submit the probe, wait for it, rehearse a preemption, and write the results into the profile.

    Raises:
        ValueError: with SLURM's message, if it refuses the job.
        OSError: if SLURM does not answer, or the directory cannot be written.
        TimeoutError: if the job does not start or restart within ten minutes; it is cancelled.
    """
    from mimbench.jobs.slurm.sbatch import Executor

    gpus = min(2, cluster.gpus_per_node)
    shape = cluster.shape(gpus=gpus or 2, minutes=min(cluster.minutes, 10))
    base = root.absolute()
    batch = Batch(base, cluster.name, "probe", {0: ".mimbench/probe"}, shape, code=snapshot(base))
    batch = replace(batch, runs={0: f".mimbench/jobs/{batch.id}/probe"})
    place = base / batch.runs[0]
    place.mkdir(parents=True)
    asking = replace(cluster, setup=(*cluster.setup, *probe_setup(cluster, place / "shell")))
    with marked():
        job = Executor(batch, asking, None, module="mimbench.jobs.slurm.probe").send()
    say(f"job {job} submitted; its output is in {batch.folder}")
    try:
        try:
            first = _wait(place, 0, job, say)
        except TimeoutError:
            seen = read_report(place / "shell")
            if not seen or (lacks := container(cluster, seen)).verdict == "ok":
                raise
            yield lacks
            return
        yield from _seen(cluster, first)
        yield _clock(first)
        cluster, shell = of_shell(cluster, read_report(place / "shell"))
        yield from shell
        back = _preempt(cluster, place, job, say) if cluster.can_requeue else None
    finally:
        slurm.cancel([job])
    if back is not None:
        yield back
        cluster = replace(cluster, can_requeue=back.verdict == "ok")
    save(_learned(cluster, first))


def _wait(place: Path, restart: int, job: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the reports of all processes of a start of the probe, once all are written."""
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
    why = f"its output is: {output.strip()}" if output else f"{place} is empty; check that nodes share that directory"
    raise TimeoutError(f"the probe, job {job}, has not reported; its state is {shown}, and {why}")


def _seen(cluster: Cluster, reports: list[dict[str, Any]]) -> Iterator[Check]:
    """Yield the checks of the probe's reports."""
    hosts = sorted({report["host"] for report in reports})
    yield Check("nodes", "ok", f"{len(reports)} processes on {', '.join(hosts)} share the runs' directory")
    cpus = min(report["cpus"] for report in reports)
    if cpus < cluster.cpus_per_task:
        yield Check(
            "CPUs",
            "problem",
            f"{cpus} for a process, but cpus_per_task={cluster.cpus_per_task}",
            f"`mimbench cluster add {cluster.name} srun_inherits_cpus=false`",
        )
    else:
        fitted = loading_processes(cpus, bool(reports[0]["gpus"]))
        yield Check("CPUs", "ok", f"{cpus} for a process; compute.workers=auto is {fitted} data loading processes")
    names = sorted({name for report in reports for name in report["gpus"]})
    if names:
        yield Check("GPUs", "ok", f"{len(reports[0]['gpus'])} for the processes of a node: {', '.join(names)}")
    elif cluster.gpus_per_node and cluster.gpu_request != "none":
        yield Check("GPUs", "problem", "torch sees none on the nodes", "check gpu_request, gpu_type and setup")
    talk = next((report["talk_error"] for report in reports if report["talk_error"]), None)
    backend = reports[0]["backend"]
    if talk:
        yield Check(backend, "problem", talk, "check NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME in setup")
    else:
        yield Check(backend, "ok", f"the processes connected on port {reports[0]['port']} and summed a number")


def _clock(reports: list[dict[str, Any]]) -> Check:
    """Check the nodes' clocks against the file server's, which heartbeats use."""
    skew = max(abs(report["clock"] - report["file_time"]) for report in reports)
    if skew > SKEW:
        return Check("clock", "note", f"nodes and file server differ by {skew:.1f} s", "ask the site to run ntp")
    return Check("clock", "ok", f"nodes and file server agree to {max(skew, 0.1):.1f} s")


def _preempt(cluster: Cluster, place: Path, job: str, say: Callable[[str], None]) -> Check:
    """Send the job the warning of a preemption and wait for its restart."""
    say(f"job {job}: sending it SIG{cluster.signal}, as a preemption would")
    began = time.monotonic()
    slurm.ask("scancel", f"--signal={cluster.signal}", job)
    try:
        _wait(place, 1, job, say)
    except TimeoutError as error:
        return Check("requeue", "problem", f"the job did not restart: {error}", "can_requeue is set to false")
    return Check(
        "requeue",
        "ok",
        f"after the warning, the job was requeued and ran again after {time.monotonic() - began:.0f} s",
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

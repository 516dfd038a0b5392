"""The faults of tests/slurm/survival_table.py that strike files: disks, locks, paths, and the people who share them."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import schedulers
from mimbench.jobs.slurm.cluster import save
from mimbench.jobs.slurm.job import steps_done
from mimbench.jobs.slurm.leftovers import findings
from tests.slurm.cluster import wait_for
from tests.slurm.conftest import in_another_shell
from tests.slurm.faults import FAULTS, fault
from tests.slurm.scene import START, Outcome, Scene

__all__ = ["FAULTS"]

TOP = Path(__file__).parents[2]
LOCK = """
import sys, time
from pathlib import Path
from mimbench.jobs.runs.lock import lock
with lock(Path(sys.argv[1]) / ".mimbench" / "submit"):
    print("held", flush=True)
    time.sleep(600)
"""
SUBMIT = """
import sys
from pathlib import Path
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm.cluster import load
from mimbench.jobs.slurm.schedulers import Unit, queue, status_of, submit
root, name = Path(sys.argv[1]), sys.argv[2]
profile, run = load("tiny"), RunDir(root / name)
sent = submit([Unit(run, profile.shape(), (), "tiny")], profile, root)
time = __import__("time"); time.sleep(2)
print(sent[0].job, status_of(run, queue(profile, root), profile))
"""


@contextmanager
def _disk(scene: Scene, size: str) -> Iterator[Path]:
    """A small file system that holds the runs."""
    disk = scene.root.parent / "small disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    scene.root = disk / "runs"
    try:
        yield disk
    finally:
        home = scene.root.parent.parent / "kept"
        shutil.copytree(disk, home, symlinks=True)
        subprocess.run(["umount", "-l", disk], check=True)


@fault("the disk is full for a while; `mimbench retry` after there is space")
def full_disk(scene: Scene) -> Outcome | None:
    """The run fails and says why; nothing that it had written is damaged."""
    with _disk(scene, "100m") as disk:
        scene.begin()
        filler = disk / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True, check=False)
        wait_for(lambda: scene.status(scene.run) not in ("running", "queued"), START, "the end of the run")
        scene.beside.append(f"status said {scene.status(scene.run)}")
        filler.unlink()
        schedulers.requeue([scene.run], scene.profile, scene.root)
        return scene.settle()


@fault("the run's directory cannot be written for a while; then `mimbench retry`")
def read_only_directory(scene: Scene) -> Outcome | None:
    """As on a file server that answers, but refuses to write."""
    scene.begin()
    folders = [str(scene.run.path), str(scene.run.checkpoints), str(scene.run.path / "attempts")]
    subprocess.run(["chattr", "+i", *folders], check=True)
    try:
        wait_for(lambda: scene.status(scene.run) not in ("running", "queued"), START, "the end of the run")
        scene.beside.append(f"status said {scene.status(scene.run)}")
    finally:
        subprocess.run(["chattr", "-i", *folders], check=True)
    schedulers.requeue([scene.run], scene.profile, scene.root)
    return scene.settle()


@fault("a runs root that is read-only: `submit` and `status`")
def read_only_root(scene: Scene) -> Outcome | None:
    """One line, and nothing is submitted."""
    with _disk(scene, "100m") as disk:
        run = scene.create()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        try:
            scene.submit(run)
            said, stuck = "submitted nevertheless", "a job without a record"
        except OSError as error:
            said, stuck = f"refused: {error}", ""
        status = scene.status(run)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        left = scene.cluster.ask("squeue", "-h", "-n", "tiny")
        return Outcome(f"{said.replace(str(disk), 'DISK')}; status: {status}", stuck=stuck, doubled=left)


@fault("a runs root whose path has a space and a symlink")
def space_and_symlink(scene: Scene) -> None:
    """All paths are quoted, and the link is followed."""
    real = scene.root.parent / "a place with a space"
    real.mkdir(parents=True)
    link = scene.root.parent / "a link"
    link.symlink_to(real)
    scene.root = link / "my runs"
    scene.begin()
    scene.cluster.ask("scontrol", "requeue", scene.job)


@fault("a submitter is killed and leaves its lock")
def stale_lock(scene: Scene) -> None:
    """The next one finds that its process is gone."""
    _leave_lock(scene, "")
    scene.begin(step=0)


@fault("a submitter of another machine is killed and leaves its lock")
def stale_lock_of_another_machine(scene: Scene) -> None:
    """Its heartbeat stops, and after a minute the lock is broken."""
    _leave_lock(scene, "elsewhere")
    began = time.monotonic()
    scene.begin(step=0)
    scene.beside.append(f"submitted after {time.monotonic() - began:.0f} s")


def _leave_lock(scene: Scene, host: str) -> None:
    scene.root.mkdir(parents=True)
    shell = in_another_shell(LOCK, scene.root)
    assert shell.stdout is not None
    assert shell.stdout.readline() == "held\n"
    shell.kill()
    shell.wait()
    file = scene.root / ".mimbench" / "submit"
    if host:
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": host}))


@fault("two shells submit one run at the same moment")
def two_shells(scene: Scene) -> None:
    """It gets one job."""
    run = scene.create()
    save(scene.profile)
    shells = [in_another_shell(SUBMIT, scene.root, str(run.path.relative_to(scene.root))) for _ in range(2)]
    said = {shell.communicate(timeout=120)[0].split()[0] for shell in shells}
    assert said == {scene.job}, said
    scene.beside.append(f"both say job {scene.job}")


@fault("two people of a group submit one run from one runs root")
def two_people(scene: Scene) -> Outcome | None:
    """`umask 002` and a directory whose group is inherited; each sees the other's job."""
    scene.root.mkdir(parents=True)
    shutil.chown(scene.root, group="users")
    scene.root.chmod(0o2775)
    before = os.umask(0o002)
    try:
        run = scene.create()
        for place in [scene.root, *scene.root.rglob("*")]:
            shutil.chown(place, group="users")
            if place.is_dir():
                place.chmod(0o2775)
    finally:
        os.umask(before)
    scene.profile = replace(scene.profile, sbatch=("--hold",), name="tiny")
    save(scene.profile)
    said = [_as(user, SUBMIT, scene.root, str(run.path.relative_to(scene.root))) for user in ("games", "daemon")]
    jobs = scene.cluster.ask("squeue", "-h", "-o", "%i %u %j").splitlines()
    mine = [line for line in jobs if "games" in line or "daemon" in line]
    scene.cluster.ask("scancel", *[line.split()[0] for line in mine])
    again = "" if len(mine) == 1 else f"{len(mine)} jobs: {mine}"
    lost = "" if said[0].split()[-1:] == said[1].split()[-1:] == ["queued"] else f"they see {said}"
    return Outcome("one job, which both see as queued" if not again + lost else "not so", doubled=again, lost=lost)


def _as(user: str, code: str, *arguments: str | Path) -> str:
    """What Python code of another user prints. An interpreter of the system, because ours may be in root's home."""
    own = {"PYTHONPATH": f"{TOP}:{site.getsitepackages()[0]}", "PATH": os.environ["PATH"], "HOME": "/tmp", "USER": user}
    kept = {name: os.environ[name] for name in ("SLURM_CONF", "MIMBENCH_HOME", "MIMBENCH_DATA_HANDWRITTEN")}
    command = ["setpriv", f"--reuid={user}", "--regid=users", "--clear-groups", "sh", "-c"]
    command += ['umask 002; exec /usr/bin/python3 -P -c "$@"', "sh", code, *map(str, arguments)]
    done = subprocess.run(command, env={**own, **kept}, capture_output=True, text=True, check=False, cwd="/")
    return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]


@fault("the runs root is removed while a job waits: `doctor` lists the job")
def lost_root(scene: Scene) -> Outcome | None:
    """It names the root, and the command that removes the job."""
    scene.profile = replace(scene.profile, sbatch=("--hold",))
    scene.submit(scene.create())
    job = scene.job
    shutil.rmtree(scene.root)
    found = [finding for finding in findings() if job in finding.remedy.split("`")[1].split()]
    scene.cluster.ask("scancel", job)
    if not found:
        return Outcome("no word of it", silent="a job without a root")
    return Outcome("listed, with the command that removes it")


@fault("a k-NN evaluation is killed while it reads images")
def evaluation_killed(scene: Scene) -> Outcome | None:
    """Its metrics are those of one that was not killed."""
    other = Scene(scene.root.parent / "undisturbed", scene.profile, scene.cluster)
    runs: list[RunDir] = []
    for place in (scene, other):
        place.submit(place.create_knn())
        runs.append(place.run)
    wait_for(scene.run.attempts, START, "a start")
    wait_for(scene.kill_now, START, "a process to kill")
    for place in (scene, other):
        place.wait(place.run, "done", START)
    one, two = (json.loads(run.result.read_text())["metrics"] for run in runs)
    starts = f"{len(scene.run.attempts())} starts"
    return Outcome("done", one == two, starts, "" if steps_done(scene.run) == 0 else "unexpected checkpoints")

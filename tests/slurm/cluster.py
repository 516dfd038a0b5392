"""A SLURM cluster of two nodes on this machine, in a directory of its own: what tests/slurm runs on.

    python -m tests.slurm.cluster DIRECTORY -- COMMAND ...      # a command with a cluster around it

Two slurmd stand for two nodes of two cores and of two GPUs that exist in name only. Jobs of partition `low` are
preempted by those of `high`: announced by SIGUSR2, or by SIGTERM alone where `user_signal` is off; those of `spot` are
cancelled instead of requeued. Ports, keys and files are its own; what it starts, it stops. With `accounting`, there is
a database (tests/slurm/accounting.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.slurm.accounting import Accounting

WITH_US = ("setpriv", "--pdeathsig", "TERM")  # ends when this process does, even if by SIGKILL

# Reads a pipe that ends with its writer, however that ends; then kills what has the cluster's configuration in its
# environment: daemons, and jobs, which would outlive them.
GUARD = """
import os, signal, sys, time
sys.stdin.read()
mine = f"SLURM_CONF={sys.argv[1]}".encode()
for _ in range(3):
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mine in open(f"/proc/{name}/environ", "rb").read().split(b"\\0"):
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.2)
"""

CONF = """\
ClusterName=mimbench
SlurmctldHost={host}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={munge}
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=5
MaxArraySize=20
MinJobAge=600
FirstJobId={ports[0]}
SlurmctldTimeout=300
SlurmdTimeout=300
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}
{accounting}
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 Gres=gpu:tiny:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:tiny:2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=60
PartitionName=spot Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=30 MaxTime=60
PartitionName=spot0 Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=0 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no cluster on this machine; None if there can."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if _program(name) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)} not found): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting SLURM's daemons takes root"


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Cluster:
    """The daemons. `user_signal=False` makes preemption say SIGTERM only, as most sites do."""

    def __init__(self, directory: Path, accounting: bool = False) -> None:
        self.directory = directory
        self.conf = directory / "slurm.conf"
        self.munge = directory / "munge"
        self.ports = _free_ports(5)
        self.accounting = Accounting(directory, self.ports[3], self.ports[4]) if accounting else None
        self.controller: subprocess.Popen[bytes] | None = None
        self.munged: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        (self.directory / "state").mkdir(parents=True)
        self.guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD, str(self.conf)], stdin=subprocess.PIPE, start_new_session=True
        )
        self.munge.mkdir(mode=0o755)
        self.start_munge()
        self.configure(user_signal=True)
        if self.accounting is not None:
            self.accounting.start(self.munge / "munge.socket", self.environment)
        self.start_controller()
        for name in ("n1", "n2"):
            self.start_node(name)
        wait_for(
            lambda: self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2, 60, "two idle nodes"
        )

    def stop(self) -> None:
        """Stop everything."""
        with suppress(TimeoutError, subprocess.TimeoutExpired):
            self.ask("scancel", "-f", "-u", "root")
            wait_for(lambda: not self.ask("squeue", "-h"), 15, "an empty queue")
        for daemon in [*self.nodes.values(), self.controller]:
            if daemon is not None:
                _stop(daemon)
        if self.accounting is not None:
            self.accounting.stop()
        if self.munged is not None:
            _stop(self.munged)
        if self.guard is not None:
            self.guard.communicate(timeout=30)

    def configure(self, user_signal: bool) -> None:
        """Write slurm.conf."""
        option = "SlurmctldParameters=preempt_send_user_signal" if user_signal else ""
        socket_file = self.munge / "munge.socket"
        host = socket.gethostname().partition(".")[0]
        values = {"host": host, "ports": self.ports, "munge": socket_file, "directory": self.directory}
        database = self.accounting.settings(socket_file) if self.accounting is not None else ""
        self.conf.write_text(CONF.format(user_signal=option, accounting=database, **values))
        gpus = "".join(f"Name=gpu Type=tiny File=/dev/{name}\n" for name in ("null", "zero"))  # in name only
        (self.directory / "gres.conf").write_text(gpus)

    def start_controller(self) -> None:
        """Start slurmctld and wait for it to answer."""
        self.controller = self._daemon("slurmctld", "-D")
        wait_for(lambda: self.ask("scontrol", "ping").count(" UP"), 60, "slurmctld")

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs run on."""
        assert self.controller is not None
        _stop(self.controller)

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        self.nodes[name] = self._daemon("slurmd", "-D", "-N", name)

    def restart_controller(self, user_signal: bool) -> None:
        """Let slurmctld read another configuration; slurmd keeps its own."""
        self.stop_controller()
        self.configure(user_signal)
        self.start_controller()

    def ask(self, *command: str) -> str:
        """What a command prints; empty if it fails."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self.environment
        ).stdout

    @property
    def environment(self) -> dict[str, str]:
        """With what SLURM's commands find this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def _daemon(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.out").open("ab") as out:
            command = [*WITH_US, str(_program(name)), *options, "-f", str(self.conf)]
            return subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=self.environment,
            )

    def start_munge(self) -> None:
        """Start munged, with its own key and socket, and wait for it to answer."""
        key = self.munge / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
        files = [f"--{name}-file={self.munge}/munged.{name}" for name in ("log", "pid", "seed")]
        command = [*WITH_US, str(_program("munged")), "--foreground", "--force", f"--socket={self.munge}/munge.socket"]
        with (self.munge / "out").open("ab") as out:
            self.munged = subprocess.Popen(
                [*command, f"--key-file={key}", *files],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_for(lambda: self.ask("munge", "-n", f"--socket={self.munge}/munge.socket"), 20, "munged")


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait(5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Until `condition` holds.

    Raises:
        TimeoutError: naming `what`, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def main(arguments: list[str]) -> int:
    """Run a command with a cluster around it."""
    cluster = Cluster(Path(arguments[0]).absolute())
    try:
        cluster.start()
        return subprocess.run(arguments[arguments.index("--") + 1 :], check=False, env=cluster.environment).returncode
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

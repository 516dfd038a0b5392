"""An accounting database for the cluster of tests/slurm/cluster.py: MariaDB and slurmdbd, in directories of their own.

The user root has the account `vision`, whose limits `limit` sets: `limit(MaxSubmitJobs=3)`.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "sacctmgr")
CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdPort={port}
SlurmUser=root
LogFile={directory}/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""
GRANT = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';"


def missing() -> str | None:
    """Why there can be no database on this machine; None if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return f"{', '.join(absent)} not found: apt-get install slurmdbd mariadb-server" if absent else None


class Accounting:
    """The two daemons."""

    def __init__(self, directory: Path, port: int, database_port: int) -> None:
        self.directory, self.port, self.database_port = directory, port, database_port
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment: Mapping[str, str] = {}

    def settings(self, munge: Path) -> str:
        """The lines of slurm.conf."""
        return (
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\n"
            f"AccountingStoragePort={self.port}\nAccountingStoragePass={munge}\n"
            "AccountingStorageEnforce=associations,limits,qos\nJobAcctGatherType=jobacct_gather/none"
        )

    def start(self, munge: Path, environment: Mapping[str, str]) -> None:
        """Start both, and add the cluster, the account and the user."""
        self.environment = environment
        data, socket = self.directory / "database", self.directory / "database.sock"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], capture_output=True, check=True)
        server = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket}"]
        self._daemon(*server, "--bind-address=127.0.0.1", f"--port={self.database_port}")
        sql = ["mariadb", "--no-defaults", "-u", "root", f"--socket={socket}", "-e"]
        self._until([*sql, "SELECT 1"])
        subprocess.run([*sql, GRANT], check=True)
        conf = self.directory / "slurmdbd.conf"
        values = {"munge": munge, "port": self.port, "database_port": self.database_port}
        conf.write_text(CONF.format(directory=self.directory, **values), encoding="utf-8")
        conf.chmod(0o600)
        self._daemon("slurmdbd", "-D")
        self._until(["sacctmgr", "-i", "add", "cluster", "mimbench"])
        for entity in (["account", "vision"], ["user", "root", "account=vision"]):
            subprocess.run(["sacctmgr", "-i", "add", *entity], env=dict(environment), capture_output=True, check=True)

    def limit(self, **limits: int) -> None:
        """Set limits of root's association; -1 removes one."""
        settings = [f"{name}={value}" for name, value in limits.items()]
        command = ["sacctmgr", "-i", "modify", "user", "root", "set", *settings]
        subprocess.run(command, env=dict(self.environment), capture_output=True, check=True)

    def stop(self) -> None:
        """Stop both."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(30)

    def _daemon(self, name: str, *options: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as out:
            path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
            command = ["setpriv", "--pdeathsig", "TERM", str(path), *options]
            self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out, env=dict(self.environment)))

    def _until(self, command: list[str], seconds: float = 60.0) -> None:
        """Repeat a command until it succeeds."""
        deadline = time.monotonic() + seconds
        while subprocess.run(command, env=dict(self.environment), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{' '.join(command)}: not within {seconds:.0f} s")
            time.sleep(0.5)

"""The `mimbench` command in processes of their own that need not import torch for themselves.

    done = mimbench("run", "cls/knn_handwritten", "k=10")        # as subprocess.run: returncode, stdout, stderr
    running = started("run", "pretrain/crossmae_handwritten")    # running.process.pid, running.wait()

They are forked by multiprocessing's forkserver, one for all tests of a worker, which has imported what runs need. That
the command starts by itself, and what it then imports, is shown by tests/jobs/test_cli.py, tests/jobs/test_torchrun.py,
tests/test_packaging.py and tests/test_architecture.py.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "mimbench.jobs.cli.main", "mimbench.pretrain.run", "mimbench.cls.run", "mimbench.engine.training.loop",
    "torch._dynamo", "torch.utils.tensorboard",
]  # fmt: skip
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


@dataclass
class Command:
    """A process of the command, and the folder with what it prints."""

    arguments: list[str]
    process: ForkServerProcess
    folder: tempfile.TemporaryDirectory[str]

    def wait(self, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        """Wait until it ends; return its exit code (-9 of one that SIGKILL ended) and what it printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"mimbench {' '.join(self.arguments)} has not ended"
        out, err = (Path(self.folder.name, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def started(*arguments: str | Path, first: str = "") -> Command:
    """Start `mimbench` with `arguments` in this repository, after the statements `first`."""
    words, folder = list(map(str, arguments)), tempfile.TemporaryDirectory()
    process = FORKS.Process(target=_command, args=(words, first, dict(os.environ), folder.name))
    process.start()
    return Command(words, process, folder)


def mimbench(*arguments: str | Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `mimbench` with `arguments` in this repository, after the statements `first`."""
    return started(*arguments, first=first).wait()


def _command(words: list[str], first: str, environment: Mapping[str, str], folder: str) -> None:
    """Be the command, in the forked process."""
    multiprocessing.set_start_method(None, force=True)  # its own processes start as the command's do
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for name, target in (("out", 1), ("err", 2)):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, target)
        os.close(file)
    sys.argv = ["mimbench", *words]
    exec(first)
    from mimbench.jobs.cli.main import main

    main()

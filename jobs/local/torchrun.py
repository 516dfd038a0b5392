"""Several processes for one run on this machine, as torchrun starts them: one for each GPU, or gloo on the CPU.

mimbench run RECIPE --gpus 8                                   starts this by itself, and so does
mimbench submit STUDY --cluster local --gpus 8
torchrun --standalone --nproc-per-node 8 -m mimbench run RECIPE        the same by hand

The first two start `python -m mimbench.jobs.local.torchrun` with torchrun's arguments. It is torchrun's launcher, but
when a run fails it prints no traceback of its own and does not repeat the processes' messages.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def command(run_dir: Path, processes: int) -> list[str]:
    """Return the command that executes a run directory in `processes` processes of this machine."""
    start = [sys.executable, "-m", "mimbench.jobs.local.torchrun", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, "-m", "mimbench", "run", str(run_dir)]


def must_be_here(gpus: int, devices: Sequence[str]) -> None:
    """Check that this machine has `gpus` GPUs. Without any GPU the processes share the CPU.

    Raises:
        ValueError: if it has some, but fewer.
    """
    if devices and gpus > len(devices):
        raise ValueError(f"--gpus {gpus} exceeds the {len(devices)} GPUs that this process may use; give fewer")


def main(words: Sequence[str]) -> int:
    """Do torchrun's work with its arguments `words`; return the exit code.

    That is the code of the process that failed first; if a signal ended it, one line on stderr names the signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(list(words)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        print(f"error: process {rank} of the run was ended by {name}{hint}", file=sys.stderr)
        return 128 - int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

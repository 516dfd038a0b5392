"""The probe of `mimbench doctor --cluster` on the nodes: examine the node, write a report, wait for a signal.

python -m mimbench.jobs.slurm.probe DIRECTORY      # each process writes DIRECTORY/<restart>-<rank>.json
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.slurm import job as slurm_job

LONGEST = 300.0  # longest wait in seconds for the rehearsed preemption
TALK = timedelta(seconds=60)


def look(run: RunDir) -> dict[str, Any]:
    """Return a report of this node and of the communication between the processes."""
    import torch

    from mimbench.engine.run.cores import available_cores

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    backend = "nccl" if gpus else "gloo"
    try:
        error = _talk(run, backend)
    except (OSError, RuntimeError, ValueError) as fault:
        error = str(fault).strip().partition("\n")[0] or type(fault).__name__
    return {
        "host": socket.gethostname(),
        "world": int(os.environ.get("WORLD_SIZE", "1")),
        "cpus": available_cores(),
        "gpus": gpus,
        "backend": backend,
        "port": os.environ.get("MASTER_PORT"),
        "talk_error": error,
        **_clocks(run.path),
    }


def _talk(run: RunDir, backend: str) -> str | None:
    """Sum a number over all processes; return the error, or None."""
    import torch
    import torch.distributed as dist

    slurm_job.meet(run)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        return None
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(backend, timeout=TALK)
    number = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(number)
    dist.destroy_process_group()
    return None if number.item() == world else f"the sum of 1 over {world} processes is {number.item()}"


def _clocks(directory: Path) -> dict[str, float]:
    """Return this node's time, and the file server's for a file written now."""
    file = directory / f".clock-{os.environ.get('RANK', '0')}"
    file.touch()
    os.utime(file)
    times = {"clock": time.time(), "file_time": file.stat().st_mtime}
    file.unlink()
    return times


def main(directory: str) -> int:
    """Run the probe."""
    run, restart = RunDir(Path(directory)), os.environ.get("SLURM_RESTART_COUNT", "0")
    slurm_job.take_ranks()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":
            sys.exit(128 + number)

    if (warning := slurm_job.warning()) is not None:
        signal.signal(warning, stop)
    rank = os.environ.get("RANK", "0")
    write_json(run.path / f"{restart}-{rank}.json", look(run))
    if restart == "0":
        time.sleep(LONGEST)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Several processes for one run on this machine, as torchrun starts them: one for each GPU, or gloo on the CPU.

mimbench run RECIPE --gpus 8                                   starts this by itself, and so does
mimbench submit STUDY --cluster local --gpus 8
torchrun --standalone --nproc-per-node 8 -m mimbench run RECIPE        the same by hand
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def command(run_dir: Path, processes: int) -> list[str]:
    """Return the command that executes a run directory in `processes` processes of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, "-m", "mimbench", "run", str(run_dir)]


def must_be_here(gpus: int, devices: Sequence[str]) -> None:
    """Check that this machine has `gpus` GPUs. Without any GPU the processes share the CPU.

    Raises:
        ValueError: if it has some, but fewer.
    """
    if devices and gpus > len(devices):
        raise ValueError(f"--gpus {gpus} exceeds the {len(devices)} GPUs that this process may use; give fewer")

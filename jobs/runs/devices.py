"""The GPUs that this process may use, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess


def visible_devices() -> list[str]:
    """Return the GPUs this process may use, as in CUDA_VISIBLE_DEVICES. Asks the driver: torch takes seconds."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in done.stdout.splitlines()))]


def gpus_in_use(device: str) -> int:
    """Return the number of GPUs of a run started here with `compute.device=device`: one per process, 0 on a CPU."""
    if device == "cpu" or not visible_devices():
        return 0
    return int(os.environ.get("WORLD_SIZE", "1"))

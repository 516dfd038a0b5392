"""The setup of a process: its device, threads, precision, rank and random state.

Only `setup_process` seeds and sets threads; importing a module does nothing.

    device = setup_process(config.compute, config.seed)
    dtype = autocast_dtype(config.compute, device)     # None: plain float32

Started by torchrun, `setup_process` also joins the process group (NCCL on GPUs, gloo on CPUs).
"""

from __future__ import annotations

import hashlib
import os
import platform
import random
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mimbench.engine.run.config import Compute
from mimbench.engine.run.cores import available_cores

T = TypeVar("T")


def setup_process(compute: Compute, seed: int) -> torch.device:
    """Choose the device, set CPU threads, join torchrun's process group if there is one, and seed everything.

    Raises:
        ValueError: if a GPU is requested but torch sees none.
    """
    device = _device(compute)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.init()
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    seed_all(seed)
    return device


def _device(compute: Compute) -> torch.device:
    if compute.device == "cpu" or (compute.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("compute.device=cuda, but torch sees no GPU: use compute.device=auto or cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))  # if SLURM shows each process only its own GPU, that is number 0
    return torch.device("cuda", local % torch.cuda.device_count())


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def part_of_rank(count: int, rank: int | None = None) -> range:
    """Return the contiguous share of `count` items of a process, this one by default; shares differ by at most one."""
    own, world = rank_and_world()
    rank = own if rank is None else rank
    return range(count * rank // world, count * (rank + 1) // world)


def meet() -> None:
    """Wait for all processes of the run."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the process group at the end of a run, once this process has sent and received everything."""
    if dist.is_initialized():
        dist.destroy_process_group()


def announced(value: T) -> T:
    """Return the first process's `value` in every process; for small objects that can be pickled."""
    if not dist.is_initialized():
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, in every process."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def largest(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the largest of each of `values` over all processes, in every process; NCCL uses `device` for it."""
    if not dist.is_initialized():
        return list(values)
    held = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    found: list[float] = held.tolist()
    return found


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on all parts; neighbouring parts produce unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and the GPU's if this process uses one."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def autocast_dtype(compute: Compute, device: torch.device) -> torch.dtype | None:
    """Return the type of matrix products; None for plain float32.

    `auto` selects bfloat16 if the hardware computes in it: NVIDIA from compute capability 8.0, CPUs with
    AVX512-BF16 or AMX. On other hardware bfloat16 is emulated and slower than float32.
    """
    if compute.precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[compute.precision]
    return torch.bfloat16 if _multiplies_in_bf16(device) else None


def _multiplies_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on the GPU if that is the device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Return the device's name for people: the GPU's, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())

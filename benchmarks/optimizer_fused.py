"""B8: one AdamW step over ViT-B's parameters, fused as in engine/training/optim.py, against torch's default.

    python benchmarks/optimizer_fused.py [--repeats 7] [--json]

Weights agree to 1e-6 after ten steps. Sides take turns and the least time of each counts. The limit is memory
bandwidth: a step reads weight, gradient and two moments and writes three of them, 28 bytes a parameter, which is what
the bandwidth below is reckoned from. The machine's matrix-product rate is measured in the same run.
Ends with status 1 below the floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import torch
from measure import seconds
from torch.nn import Parameter

from mimbench.engine.run.process import device_name
from mimbench.engine.training.optim import adamw, parameter_groups

FLOOR, AIM, LIMIT = 5.0, 8.0, 9.0  # the limit is bandwidth
WIDTH, DEPTH, CLASSES = 768, 12, 1000
BYTES = 28  # moved per parameter and step


def vit_b(seed: int) -> list[Parameter]:
    """The 86 million parameters of a ViT-B/16 classifier, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for shape in _shapes():
        parameter = Parameter(torch.randn(shape, generator=generator) * 0.02)
        parameter.grad = torch.randn(shape, generator=generator) * 0.001
        parameters.append(parameter)
    return parameters


def _shapes() -> Iterator[tuple[int, ...]]:
    yield from ((1, 1, WIDTH), (1, 197, WIDTH), (WIDTH, 3, 16, 16), (WIDTH,))
    for _ in range(DEPTH):
        yield from ((WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,))
        yield from ((WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,))
    yield from ((WIDTH,), (WIDTH,), (CLASSES, WIDTH), (CLASSES,))


def matrix_rate() -> float:
    """GFLOP/s of float32 matrix products, the better of five."""
    left, right = torch.randn(1536, 1536), torch.randn(1536, 1536)
    return 2 * 1536**3 / min(seconds(lambda: left @ right) for _ in range(5)) / 1e9


def measure(repeats: int) -> dict[str, float]:
    """Seconds of either side's step, after checking that they do the same."""
    ours, plain = vit_b(0), vit_b(0)
    groups = parameter_groups(((str(i), p) for i, p in enumerate(ours)), 0.05, lambda _, p: False)
    fused = adamw(groups, lr=1e-3, betas=(0.9, 0.95))
    default = torch.optim.AdamW(plain, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for _ in range(10):
        fused.step()
        default.step()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    times = [(seconds(fused.step), seconds(default.step)) for _ in range(repeats)]
    best = [min(side) for side in zip(*times, strict=True)]
    size = sum(p.numel() for p in ours)
    return {
        "parameters": size,
        "fused_seconds": best[0],
        "default_seconds": best[1],
        "ratio": best[1] / best[0],
        "gigabytes_per_second": size * BYTES / best[0] / 1e9,
        "gflops_per_second": matrix_rate(),
    }


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.repeats)
    if options.json:
        print(json.dumps({**found, "floor": FLOOR, "aim": AIM, "limit": LIMIT}))
    else:
        print(f"{device_name(torch.device('cpu'))}; matrix products {found['gflops_per_second']:.0f} GFLOP/s fp32")
        print(
            f"B8  AdamW, {found['parameters'] / 1e6:.0f} M parameters: fused {found['fused_seconds'] * 1e3:.1f} ms "
            f"({found['gigabytes_per_second']:.0f} GB/s), default {found['default_seconds'] * 1e3:.1f} ms: "
            f"{found['ratio']:.2f}x  (floor {FLOOR}, aim {AIM}, limit about {LIMIT})"
        )
    return int(found["ratio"] < FLOOR)


if __name__ == "__main__":
    sys.exit(main())

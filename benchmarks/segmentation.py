"""S1, S2: UperNet's last convolution and its loss, against the same modules as mmsegmentation writes them.

    python benchmarks/segmentation.py [--repeats 5] [--json]

S1  the 3 x 3 convolution over four maps enlarged to 128 x 128 (57 % of a ViT-B segmenter), 256 channels, one
    image, forward and backward: channels mixed before enlarging against after. Outputs and gradients agree to 1e-4.
S2  logits (B, 150, 128, 128) enlarged to 512 x 512 and their cross-entropy, forward and backward: some rows at a time
    against all at once; memory that autograd's graph and the computation take at the peak, and time. Loss and gradient
    agree to 1e-6.

Sides take turns, and the least time of each counts. Ends with status 1 below a floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import Measured, Target, peak_beyond, relative, take_turns, total_failed
from torch import Tensor

from mimbench.engine.run.process import device_name
from mimbench.seg.model.enlarge import enlarged
from mimbench.seg.model.heads import mixed_then_enlarged
from mimbench.seg.model.loss import pixel_loss

S1 = Target(floor=1.8, aim=2.3, limit=3.0)
S2_MEMORY, S2_TIME = Target(floor=3.0, aim=10.0), Target(floor=1.0, aim=1.3)
CHANNELS, SIDES, CLASSES, IMAGE = 256, (128, 64, 32, 16), 150, 512


def bottleneck(repeats: int) -> Measured:
    """S1's stand-in on a CPU."""
    torch.manual_seed(0)
    maps = [torch.randn(1, CHANNELS, side, side, requires_grad=True) for side in SIDES]
    kernel = (torch.randn(CHANNELS, 4 * CHANNELS, 3, 3) * 0.01).requires_grad_()
    size = (SIDES[0], SIDES[0])

    def plain() -> Tensor:
        return F.conv2d(torch.cat([enlarged(one, size) for one in maps], dim=1), kernel, padding=1)

    def fused() -> Tensor:
        first, *others = kernel.chunk(4, dim=1)
        summed = F.conv2d(maps[0], first, padding=1)
        for one, part in zip(maps[1:], others, strict=True):
            summed = summed + mixed_then_enlarged(one, part, size)
        return summed

    off = 0.0
    inputs = (*maps, kernel)
    made, wanted = fused(), plain()
    weight = torch.randn_like(made)
    for one, other in zip(
        (made, *torch.autograd.grad((made * weight).sum(), inputs)),
        (wanted, *torch.autograd.grad((wanted * weight).sum(), inputs)),
        strict=True,
    ):
        off = max(off, relative(one, other))
    assert off < 1e-4, off

    def step(side: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(side().square().sum(), inputs)

    ours, peer = take_turns(step(fused), step(plain), repeats)
    return Measured("S1 bottleneck", "s", ours, peer, S1, f"differs by {off:.0e}")


def loss(repeats: int, batch: int) -> list[Measured]:
    """S2."""
    torch.manual_seed(0)
    logits = torch.randn(batch, CLASSES, IMAGE // 4, IMAGE // 4, requires_grad=True)
    labels = torch.randint(CLASSES, (batch, IMAGE, IMAGE)).to(torch.uint8)
    labels[:, :100] = 255

    def plain() -> Tensor:
        whole = F.cross_entropy(enlarged(logits, labels.shape[1:]), labels.long(), ignore_index=255, reduction="sum")
        return whole / labels.numel()

    def tiled() -> Tensor:
        return pixel_loss(logits, labels)

    one, other = tiled(), plain()
    off = max(
        relative(one, other), relative(torch.autograd.grad(one, logits)[0], torch.autograd.grad(other, logits)[0])
    )
    assert off < 1e-6, off
    del one, other

    def step(side: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(side(), logits)

    memory = [peak_beyond(step(side)) for side in (tiled, plain)]
    ours, peer = take_turns(step(tiled), step(plain), repeats)
    return [
        Measured("S2 memory", "MiB", memory[0], memory[1], S2_MEMORY, f"{batch} images; differs by {off:.0e}"),
        Measured("S2 time", "s", ours, peer, S2_TIME),
    ]


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="images of S2; the papers' step has 16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [bottleneck(options.repeats), *loss(options.repeats, options.batch)]
    if options.json:
        print(json.dumps([result.row() for result in results]))
    else:
        print(device_name(torch.device("cpu")))
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

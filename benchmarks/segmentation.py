"""S1, S2: UperNet's last convolution, its training step and its loss, as mmsegmentation writes the same modules.

    python benchmarks/segmentation.py [--repeats 5] [--json]
    python benchmarks/segmentation.py --step 512 [--repeats 1]    # only S1's training step of UperNet-B; minutes

S1  the 3 x 3 convolution over four maps enlarged to 128 x 128 (57 % of a ViT-B segmenter), 256 channels, one
    image, forward and backward: channels mixed before enlarging against after. Outputs and gradients agree to 1e-4.
    With --step, a training step of UperNet-B on two images of so many pixels: encoder, pyramid, both heads, losses and
    gradients, in single precision on one core. The same weights give the same loss to 1e-4 and the same gradients, all
    parameters together, to 1e-3. In seconds of processor, because a step of 512 pixels takes one or two minutes.
S2  logits (B, 150, 128, 128) enlarged to 512 x 512 and their cross-entropy, forward and backward: some rows at a time
    against all at once; memory that autograd's graph and the computation take at the peak, and time. Loss and gradient
    agree to 1e-6.

Sides take turns, and the least time of each counts (the step has no warm-up). Ends with status 1 below a floor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from measure import Measured, Target, peak_beyond, relative, take_turns, total_failed
from torch import Tensor, nn

from mimbench.engine.data.images import normalise
from mimbench.engine.run.process import device_name
from mimbench.seg.config import Backbone, Heads, UPerNetConfig
from mimbench.seg.model.build import build_segmenter
from mimbench.seg.model.enlarge import enlarged
from mimbench.seg.model.heads import mixed_then_enlarged
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.segmenter import UPerNet

S1 = Target(floor=1.8, aim=2.3, limit=3.0)
S1_STEP = Target(floor=1.25, aim=1.45, limit=1.62)
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


class PlainUPerNet(UPerNet):
    """The same modules, with the loss on logits that are enlarged all at once."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses, as `UPerNet` does."""
        maps = self.neck(self.backbone(normalise(batch["images"], self.mean, self.std)))
        assert self.auxiliary_head is not None
        losses = [
            _plain_loss(self.decode_head(maps), batch["labels"]),
            self.config.aux_weight * _plain_loss(self.auxiliary_head(maps[2]), batch["labels"]),
        ]
        return {"loss": torch.stack(losses).sum()}


def _plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    whole = F.cross_entropy(enlarged(logits, labels.shape[1:]), labels.long(), ignore_index=255, reduction="sum")
    return whole / labels.numel()


def step(repeats: int, side: int, batch: int = 2) -> Measured:
    """S1 itself: forward and backward of UperNet-B."""
    backbone, heads = Backbone(drop_path=0.0), Heads(dropout=0.0)
    config = UPerNetConfig(data="x", image=side, backbone=backbone, heads=heads)
    torch.manual_seed(0)
    fused = build_segmenter(config, CLASSES).model.train()
    plain = build_segmenter(replace(config, fused_head=False), CLASSES).model.train()
    plain.load_state_dict(fused.state_dict())
    plain.__class__ = PlainUPerNet
    inputs = {
        "images": torch.randint(0, 255, (batch, 3, side, side)).to(torch.uint8),
        "sizes": [(side, side)] * batch,
        "labels": torch.randint(CLASSES, (batch, side, side)).to(torch.uint8),
    }

    def trained(model: UPerNet) -> tuple[float, Tensor]:
        """Seconds of processor of a step, and its loss; gradients stay in the model."""
        model.zero_grad()
        begun = time.process_time()
        loss: Tensor = model(inputs)["loss"]
        loss.backward()
        return time.process_time() - begun, loss.detach()

    best, off = [float("inf")] * 2, (0.0, 0.0)
    for repeat in range(1, repeats + 1):
        taken, losses = zip(*(trained(model) for model in (fused, plain)), strict=True)
        off = relative(*losses), gradients_differ(fused, plain)
        assert off[0] < 1e-4 and off[1] < 1e-3, off
        best = [min(pair) for pair in zip(best, taken, strict=True)]
        said = f"repeat {repeat} of {repeats}, ours {taken[0]:.3g} s, peer {taken[1]:.3g} s of processor"
        print(f"S1 step: {said}", file=sys.stderr, flush=True)
    note = f"{batch} images of {side}; loss differs by {off[0]:.0e}, gradients by {off[1]:.0e}"
    return Measured("S1 step", "s", *best, S1_STEP, note)


def gradients_differ(ours: nn.Module, peer: nn.Module) -> float:
    """Distance of the gradients of all parameters, by the peer's norm."""
    pairs = [(a.grad, b.grad) for a, b in zip(ours.parameters(), peer.parameters(), strict=True)]
    apart = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return float(apart / torch.stack([b.norm() for _, b in pairs]).norm())


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
    parser.add_argument("--repeats", type=int, help="5 by default, or 1 with --step")
    parser.add_argument("--step", type=int, metavar="SIDE", help="only time a whole step, on images of SIDE pixels")
    parser.add_argument("--batch", type=int, default=2, help="images of S2; the papers' step has 16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step:
        results = [step(options.repeats or 1, options.step)]
    else:
        results = [bottleneck(options.repeats or 5), *loss(options.repeats or 5, options.batch)]
    if options.json:
        print(json.dumps([result.row() for result in results]))
    else:
        print(device_name(torch.device("cpu")))
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

"""ViTDet of DINOv2-B and DINOv3-B against the authors' and RF-DETR's ways, and frozen against full training.

    python benchmarks/vitdet_any.py [--size B|T] [--image 1024] [--repeats 3] [--only NAME,...] [--json]
    python benchmarks/vitdet_any.py --only dinov2-whole --repeats 2     a pair at 1,024 px: 3 to 6 minutes of one core
    python benchmarks/vitdet_any.py --only frozen --image 512           the steps: a quarter of the image

Forward passes of the backbone on one image in fp32, class tokens and registers kept, with the final norm:

    dinov2-whole    every block sees the image, against timm's DINOv2. Equal to 1e-4.
    dinov2-windows  4 x 4 windows with a class token each, blocks 2, 5, 8, 11 global, against RF-DETR's way: windows as
                    a batch of images, put together and taken apart around each global block. Equal to 1e-4.
    dinov3-whole    every block sees the image, against timm's DINOv3. Equal to 1e-4.
    dinov3-crops    2 x 2 windows alone, against the way of DINOv3's detection: each crop through the encoder. Equal to
                    1e-4.

`frozen` is a step of the whole Mask R-CNN on ViTDet-B (forward, backward, AdamW; one image, seven objects) with a
frozen encoder against one that is trained, both ours: seconds, and the bytes that autograd keeps, gradients and AdamW's
moments.

DINOv2 has patches of 14: its images have 14/16 of the side, so that the grid is the same (1,024 px: 64 x 64). The
peer's RoPE and position table are timm's. Sides take turns, the least time of each counts; standard error gets a line
for each repeat. Ends with status 1 below a floor; size T is a toy to try the script with and has no floors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from measure import Kept, Measured, Target, relative, take_turns, total_failed
from torch import Tensor, nn
from vitdet_step import MIB, Side, config_for

from mimbench.backbones.vitdet import ViTDet
from mimbench.backbones.weights import open_weights
from mimbench.det.model.build import from_scratch
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.engine.run.process import device_name

SMALL = {"T": {"embed_dim": 64, "depth": 4, "num_heads": 1}, "B": {}}
GLOBAL = {"T": (3,), "B": (2, 5, 8, 11)}
NEAR = 1e-4
TARGETS = {
    "dinov2-whole": Target(0.97, 1.0),
    "dinov2-windows": Target(0.97, 1.05),
    "dinov3-whole": Target(0.97, 1.05),
    "dinov3-crops": Target(0.97, 1.05),
    "frozen": Target(1.3, 1.67),  # by operations a step of ViTDet-B has .597 left (det/cost.py)
}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    size: str
    image: int  # pixels, with patches of 16
    repeats: int

    def target(self, name: str) -> Target | None:
        """What benchmark `name` has to reach at this size."""
        return TARGETS[name] if self.size == "B" and self.image >= (512 if name == "frozen" else 1024) else None

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image // 16


def peer_of(name: str, case: Case) -> nn.Module:
    """timm's encoder with random weights, LayerScale away from its start."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL[case.size]).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "gamma" in key:
                weight.add_(0.5)
    return model


def ours_of(peer: nn.Module, image: int, **options: object) -> ViTDet:
    """Our ViTDet of the same weights, read from a file of timm's."""
    with tempfile.TemporaryDirectory() as home:
        torch.save(peer.state_dict(), Path(home) / "encoder.pth")
        encoder, info = open_weights(Path(home) / "encoder.pth").build_encoder()
    model = ViTDet(
        info.vit, info.traits, image=image, rel_pos=False, norm=True, interpolation=info.interpolation, **options
    )
    model.load_encoder(encoder.state_dict(), info.traits)
    return model.eval()


def patches_of(tokens: Tensor, prefix: int, side: int) -> Tensor:
    """The map (B, D, side, side) of tokens (B, P + side * side, D)."""
    return tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def whole(peer: nn.Module, images: Tensor, side: int) -> Tensor:
    """The map of timm's encoder."""
    return patches_of(peer.forward_features(images), peer.num_prefix_tokens, side)


def rf_detr(peer: nn.Module, images: Tensor, windows: int, global_blocks: Sequence[int]) -> Tensor:
    """RF-DETR's way: windows as a batch, each with a class token; put together around each global block."""
    tokens = peer._pos_embed(peer.patch_embed(images))
    prefix, count = peer.num_prefix_tokens, windows**2
    side = round((tokens.shape[1] - prefix) ** 0.5) // windows
    cut = tokens[:, prefix:].unflatten(1, (windows, side, windows, side)).transpose(2, 3).flatten(0, 2).flatten(1, 2)
    tokens = torch.cat([tokens[:, :prefix].repeat(count, 1, 1), cut], dim=1)
    for index, block in enumerate(peer.blocks):
        if index in global_blocks:
            tokens = block(tokens.flatten(0, 1)[None]).unflatten(1, (count, -1))[0]
        else:
            tokens = block(tokens)
    patches = peer.norm(tokens)[:, prefix:].unflatten(1, (side, side)).unflatten(0, (windows, windows))
    return patches.transpose(1, 2).flatten(0, 1).flatten(1, 2).permute(2, 0, 1)[None]


def crops(peer: nn.Module, images: Tensor, windows: int) -> Tensor:
    """DINOv3's way: each crop of one image through the encoder."""
    side = images.shape[-1] // windows
    cut = images.unflatten(3, (windows, side)).unflatten(2, (windows, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    maps = whole(peer, cut, side // 16).unflatten(0, (windows, windows))  # (rows, columns, D, h, w)
    return maps.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[None]


@torch.no_grad()
def forward(case: Case, name: str, ours: ViTDet, peer: Callable[[Tensor], Tensor], images: Tensor) -> Measured:
    """Both sides' time, once they are equal."""
    wrong = relative(ours(images), peer(images))
    assert wrong <= NEAR, f"{name}: features differ by {wrong:.1e}"
    print(f"{name}: features differ by {wrong:.0e}", file=sys.stderr, flush=True)
    times = take_turns(lambda: ours(images), lambda: peer(images), case.repeats, progress=name, warm=True)
    return Measured(name, "s", *times, case.target(name), f"features differ by {wrong:.0e}")


def dinov2(case: Case, name: str) -> Measured:
    """Whole, or in windows with a class token each."""
    peer, side = peer_of("vit_base_patch14_dinov2", case), case.grid * 14
    torch.manual_seed(1)
    images = torch.randn(1, 3, side, side)
    if name == "dinov2-whole":
        ours = ours_of(peer, side, prefix="global", global_blocks=range(len(peer.blocks)))
        return forward(case, name, ours, lambda images: whole(peer, images, case.grid), images)
    chosen = GLOBAL[case.size]
    ours = ours_of(peer, side, prefix="copies", global_blocks=chosen, window=case.grid // 4)
    return forward(case, name, ours, lambda images: rf_detr(peer, images, 4, chosen), images)


def dinov3(case: Case, name: str) -> Measured:
    """Whole, or in crops."""
    peer = peer_of("vit_base_patch16_dinov3", case)
    torch.manual_seed(1)
    images = torch.randn(1, 3, case.image, case.image)
    if name == "dinov3-whole":
        ours = ours_of(peer, case.image, prefix="global", global_blocks=range(len(peer.blocks)))
        return forward(case, name, ours, lambda images: whole(peer, images, case.grid), images)
    ours = ours_of(peer, case.image, prefix="copies", global_blocks=(), window=case.grid // 2)
    return forward(case, name, ours, lambda images: crops(peer, images, 2), images)


def frozen(case: Case, name: str) -> Measured:
    """A training step with a frozen encoder against one that is trained."""
    sides = []
    for kept in (True, False):
        config = config_for(case.size, case.image)
        config = replace(config, vitdet=replace(config.vitdet, rel_pos=False, frozen=kept))
        torch.manual_seed(0)
        model = from_scratch(config, 80, config.encoder, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        sides.append(Side(model, case.image, torch.device("cpu"), torch.float32))
    ours, peer = sides
    losses, activations = [], []
    for side in sides:
        counted = Kept(side.model)
        with counted.saving():
            losses.append(float(side.losses()["loss"].detach()))
        activations.append(counted.bytes / MIB)
        print(f"{name}: autograd keeps {activations[-1]:.0f} MiB, loss {losses[-1]:.5f}", file=sys.stderr, flush=True)
    assert abs(losses[0] - losses[1]) <= 1e-5 * losses[1], f"losses {losses} of the same weights"
    times = take_turns(ours.step, peer.step, case.repeats, progress=name)
    state = [
        sum(3 * 4 * weight.numel() for weight in side.model.parameters() if weight.requires_grad) for side in sides
    ]
    note = " and ".join(f"{kept:.0f} + {held / MIB:.0f}" for kept, held in zip(activations, state, strict=True))
    return Measured(name, "s", *times, case.target(name), f"MiB of activations + gradients and moments: {note}")


RUNS: dict[str, Callable[[Case, str], Measured]] = {
    "dinov2-whole": dinov2,
    "dinov2-windows": dinov2,
    "dinov3-whole": dinov3,
    "dinov3-crops": dinov3,
    "frozen": frozen,
}


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SMALL), default="B")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels; a multiple of 128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(RUNS), help="names of benchmarks, separated by commas")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    case = Case(options.size, options.image, options.repeats)
    results = [RUNS[name](case, name) for name in options.only.split(",")]
    machine = {"device": device_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    if options.json:
        rows = [result.row() for result in results]
        print(json.dumps({"size": case.size, "image": case.image, **machine, "results": rows}, indent=2))
    else:
        print(f"ViTDet-{case.size} on a grid of {case.grid} x {case.grid}, {machine['device']}")
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

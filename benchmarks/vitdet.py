"""ViTDet's backbone against detectron2's, or its plain form: forward (B14, B15), one global block (B16), training.

    python benchmarks/vitdet.py [--original PATH] [--size B|T] [--image 1024] [--repeats 5] [--training] [--json]

    B14  forward of the backbone and the pyramid on one image, fp32. Features equal to 1e-5.
    B15  the same in bf16, where the processor multiplies in it, against the peer as shipped (fp32). Equal to 3e-2.
    B16  the attention of one block that sees the whole image, fp32. Equal to 5e-6 (single precision over 4,096 tokens).
    train    forward and backward, fp32, no slower; bytes that autograd keeps beside it. Losses equal to 1e-5.

Sides take turns, the least time of each counts; the peak memory of each is that of a process of its own. Ends with
status 1 below a floor. Size T is a toy to try the script with; it has no floors, nor has any other image than 1024.
bf16 in hardware is AVX512-BF16 or AMX; on a processor without, B15 is left out, for it would time an emulation.

DINOv2-B and DINOv3-B against RF-DETR's and their authors' ways, and frozen training: benchmarks/vitdet_any.py.

The peer is detectron2 where it is importable (--original names a checkout, or PYTHONPATH; its Python part, uncompiled,
is enough), else the plain form of its attention in the same model: windows cut out, the whole matrix of logits, the
biases added to it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Kept, Measured, Target, relative, take_turns, total_failed
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.pyramid import SimpleFeaturePyramid
from mimbench.backbones.vitdet import Block, ViTDet
from mimbench.backbones.window_attention import WindowAttention
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import autocast_dtype, device_name

MIB = 2**20
SHAPES = {"T": ViT(64, 4, 4, patch=16, image=64), "B": SIZES["B"]}
GLOBAL = {"T": (3,), "B": (2, 5, 8, 11)}
TARGETS = {
    "B14": Target(1.35, 1.65, 1.81),
    "B15": Target(2.5, 3.5, 8.5),
    "B16": Target(1.8, 2.6, 3.3),
    "train": Target(0.97, 1.05),
}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    size: str
    image: int
    repeats: int
    original: Path | None = None

    def ours(self) -> SimpleFeaturePyramid:
        """Our backbone, relative positions not zero."""
        torch.manual_seed(0)
        net = ViTDet(SHAPES[self.size], image=self.image, global_blocks=GLOBAL[self.size])
        model = SimpleFeaturePyramid(net)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ".rel_pos_" in name:
                    weight.normal_(std=0.02)
        return model

    def peer(self) -> nn.Module:
        """detectron2's, or ours with the plain attention, of the same weights."""
        ours = self.ours()
        if not self.real:
            return plain(ours)
        theirs = detectron2_backbone(self)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        return theirs

    @property
    def real(self) -> bool:
        """detectron2 is importable."""
        if self.original is not None and str(self.original) not in sys.path:
            sys.path.append(str(self.original))
        return importlib.util.find_spec("detectron2") is not None

    def images(self) -> Tensor:
        """One normalised image."""
        torch.manual_seed(1)
        return torch.randn(1, 3, self.image, self.image)

    def target(self, name: str) -> Target | None:
        """What benchmark `name` has to reach at this size."""
        return TARGETS[name] if self.size == "B" and self.image == 1024 else None


def detectron2_backbone(case: Case) -> nn.Module:
    """detectron2's, with random weights."""
    from detectron2.modeling import SimpleFeaturePyramid as Pyramid
    from detectron2.modeling import ViT as Net
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    vit = SHAPES[case.size]
    net = Net(
        img_size=case.image,
        patch_size=vit.patch,
        embed_dim=vit.width,
        depth=vit.depth,
        num_heads=vit.heads,
        window_size=14,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_block_indexes=[block for block in range(vit.depth) if block not in GLOBAL[case.size]],
        use_rel_pos=True,
        pretrain_img_size=vit.image,
    )
    scales = (4.0, 2.0, 1.0, 0.5)
    return Pyramid(net, "last_feat", 256, scales, top_block=LastLevelMaxPool(), norm="LN", square_pad=case.image)


class PlainAttention(nn.Module):
    """Attention in its plain form, with the weights of another."""

    def __init__(self, of: WindowAttention) -> None:
        super().__init__()
        self.of = of

    def forward(self, tokens_BhwD: Tensor, prefix: None = None, rope: None = None) -> tuple[Tensor, None]:
        """Tokens (B, h, w, D) to the same; without any before them, and without rotary positions."""
        images, height, width, channels = tokens_BhwD.shape
        side_h, side_w = (self.of.window, self.of.window) if self.of.window else (height, width)
        padded = F.pad(tokens_BhwD, (0, 0, 0, -width % side_w, 0, -height % side_h))
        down, across = padded.shape[1] // side_h, padded.shape[2] // side_w
        windows = padded.view(images, down, side_h, across, side_w, channels).transpose(2, 3).flatten(0, 2)
        mixed = self._attended(windows.contiguous()).view(images, down, across, side_h, side_w, channels)
        return mixed.transpose(2, 3).reshape(padded.shape)[:, :height, :width], None

    def _attended(self, windows_BhwD: Tensor) -> Tensor:
        count, rows, columns, _ = windows_BhwD.shape
        heads = self.of.heads
        qkv = self.of.qkv(windows_BhwD).view(count, rows * columns, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, count * heads, rows * columns, -1).unbind(0)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        grid = q.view(count * heads, rows, columns, -1)
        assert self.of.rel_pos_h is not None
        assert self.of.rel_pos_w is not None
        by_row = torch.einsum("bhwc,hkc->bhwk", grid, _towards(self.of.rel_pos_h, rows))
        by_column = torch.einsum("bhwc,wkc->bhwk", grid, _towards(self.of.rel_pos_w, columns))
        logits = logits.view(-1, rows, columns, rows, columns)
        logits = logits + by_row[..., :, None] + by_column[..., None, :]
        mixed = logits.flatten(3).flatten(1, 2).softmax(-1) @ v
        mixed = mixed.view(count, heads, rows, columns, -1).permute(0, 2, 3, 1, 4)
        return self.of.proj(mixed.reshape(windows_BhwD.shape))


def _towards(table_Rd: Tensor, side: int) -> Tensor:
    place = torch.arange(side)
    return table_Rd[place[:, None] - place + side - 1]


def plain(model: SimpleFeaturePyramid) -> SimpleFeaturePyramid:
    """The model with every attention in its plain form."""
    model = copy.deepcopy(model)
    for block in model.net.blocks:
        assert isinstance(block, Block)
        block.attn = PlainAttention(block.attn)  # type: ignore[assignment]
    return model


def levels(found: Any) -> list[Tensor]:
    """Maps of either side."""
    return list(found.values()) if isinstance(found, dict) else list(found)


# ------------------------------------------------------------------------------------------------------- measurement


def farthest(ours: Any, peer: Any) -> float:
    """The largest relative difference of any map."""
    return max(relative(a, b) for a, b in zip(levels(ours), levels(peer), strict=True))


@torch.no_grad()
def b14(case: Case, ours: nn.Module, peer: nn.Module) -> Measured:
    """Forward in fp32."""
    images = case.images()
    wrong = farthest(ours(images), peer(images))
    assert wrong <= 1e-5, f"features differ by {wrong:.1e}"
    times = take_turns(lambda: ours(images), lambda: peer(images), case.repeats)
    memory = f"peak memory {_peak(case, 'ours'):.0f} and {_peak(case, 'peer'):.0f} MiB"
    return Measured("B14", "s", *times, case.target("B14"), f"features differ by {wrong:.0e}; {memory}")


@torch.no_grad()
def b15(case: Case, ours: nn.Module, peer: nn.Module) -> Measured | None:
    """Forward as it is run; None where bf16 would be emulated."""
    dtype = autocast_dtype(Compute(), torch.device("cpu"))
    if dtype is None:
        return None
    images = case.images()

    def half() -> Any:
        with torch.autocast("cpu", dtype):
            return ours(images)

    wrong = farthest(half(), peer(images))
    assert wrong <= 3e-2, f"features differ by {wrong:.1e}"
    times = take_turns(half, lambda: peer(images), case.repeats)
    return Measured("B15", "s", *times, case.target("B15"), f"bf16, features differ by {wrong:.0e}")


@torch.no_grad()
def b16(case: Case, ours: nn.Module, peer: nn.Module) -> Measured:
    """The attention of a block that attends to the whole image."""
    index, vit = GLOBAL[case.size][0], SHAPES[case.size]
    one, theirs = (side.net.blocks[index].attn for side in (ours, peer))  # type: ignore[union-attr,index]
    grid = case.image // vit.patch
    tokens = torch.randn(1, grid, grid, vit.width)

    def other(tokens: Tensor) -> Tensor:
        return theirs(tokens)[0] if isinstance(theirs, PlainAttention) else theirs(tokens)

    wrong = relative(one(tokens)[0], other(tokens))
    assert wrong <= 5e-6, f"attention differs by {wrong:.1e}"
    times = take_turns(lambda: one(tokens), lambda: other(tokens), case.repeats)
    return Measured("B16", "s", *times, case.target("B16"), f"differs by {wrong:.0e}")


def training(case: Case, ours: nn.Module, peer: nn.Module) -> Measured:
    """Forward and backward."""
    images = case.images()
    for side in (ours, peer):
        side.train()

    def step(side: nn.Module) -> float:
        loss = torch.stack([level.square().mean() for level in levels(side(images))]).sum()
        loss.backward()
        side.zero_grad(set_to_none=True)
        return loss.item()

    kept = []
    for side in (ours, peer):
        counted = Kept(side)
        with counted.saving():
            loss = torch.stack([level.square().mean() for level in levels(side(images))]).sum()
        kept.append((loss.item(), counted.bytes / MIB))
        del loss
    (loss, bytes_ours), (wanted, bytes_peer) = kept
    assert abs(loss - wanted) <= 1e-5 * abs(wanted), f"losses {loss} and {wanted}"
    times = take_turns(lambda: step(ours), lambda: step(peer), case.repeats)
    note = f"autograd keeps {bytes_ours:.0f} and {bytes_peer:.0f} MiB"
    return Measured("train", "s", *times, case.target("train"), note)


def _peak(case: Case, side: str) -> float:
    """Peak resident memory, in MiB, of a process that does one forward."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_forward_alone, (case, side, torch.get_num_threads()))


def _forward_alone(case: Case, side: str, threads: int) -> float:
    torch.set_num_threads(threads)
    make: Callable[[], nn.Module] = case.ours if side == "ours" else case.peer
    with torch.no_grad():
        make()(case.images())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="B")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="measure forward and backward too")
    parser.add_argument("--original", type=Path, help="a checkout of github.com/facebookresearch/detectron2")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    case = Case(options.size, options.image, options.repeats, options.original)
    ours, peer = case.ours().eval(), case.peer().eval()
    found = [b14(case, ours, peer), b15(case, ours, peer), b16(case, ours, peer)]
    results = [one for one in found if one is not None]
    if options.training:
        results.append(training(case, ours, peer))
    about = {"size": case.size, "image": case.image, "peer": "detectron2" if case.real else "the plain form"}
    machine = {"device": device_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    if options.json:
        print(json.dumps({**about, **machine, "results": [result.row() for result in results]}, indent=2))
        return total_failed(results)
    print(f"ViTDet-{case.size} at {case.image} px, {machine['device']}; peer: {about['peer']}")
    for result in results:
        print(result.line())
    if None in found:
        print("B15           left out: this processor does not multiply in bf16")
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

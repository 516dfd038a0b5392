"""An AMT training step against MAE's, and what the renewal of the weight maps adds to it (B5).

    python benchmarks/famt_step.py [--size S|B] [--batch 16] [--repeats 5] [--json]

    B5       MAE with 45 % masked and 40 % thrown away against MAE with 75 % masked; both fp32, forward and backward.
             The encoder gets 30 of 196 patches (MAE: 49), the decoder 118 (196): asserted, and for ViT-B the
             operations, 34.3 and 58.8 GFLOP an image. Ends with status 1 if the ratio is below its floor.
    renewal  seconds for each image of making its map, on the weights as they are; spread over the 40 epochs between two
             renewals it is a share of the training's time.
    lookup   seconds for each batch of finding its images' maps in the file, cutting out the crops and drawing patches:
             all that a guided step does beside the model.

Sides take turns and the least time of each counts. FAMT's frequencies change the renewal only, by a Fourier transform
for each image. Size T is a toy to try the script with; it has no floors.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import Target, least, take_turns
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.data.images import Crop
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import autocast_dtype, device_name
from mimbench.pretrain.config import AttentionMasking, MAEConfig, RandomMasking
from mimbench.pretrain.masking.attention import class_attention, follow_crops, weight_map
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.masking.weight_maps import Subject, WeightMaps
from mimbench.pretrain.methods.mae import MAE
from mimbench.pretrain.methods.table import build_masking

SHAPES = {"T": ViT(64, 2, 2, patch=8, image=64), "S": SIZES["S"], "B": SIZES["B"]}
DECODERS = {"T": MAEConfig(depth=2, width=32, heads=2), "S": MAEConfig(width=256, heads=8), "B": MAEConfig()}
TARGET = Target(floor=1.5, aim=1.65, limit=1.71)
GFLOPS = (34.3, 58.8)  # of AMT and MAE with ViT-B, an image, forward and backward; ours embed fewer patches (-1 %)
TOKENS = ((30, 118), (49, 196))  # patches that the encoder and the decoder of AMT and MAE get, of 196
INTERVAL = 40  # epochs between two renewals
IMAGES = 100_000  # with maps in the file that lookups are timed on


@dataclass(frozen=True)
class Measured:
    """Seconds; of a step, of one image, or of one batch."""

    amt_step: float
    mae_step: float
    ratio: float
    amt_gflop: float
    mae_gflop: float
    renewal_image: float
    renewal_share: float  # of the training's time
    lookup_batch: float


def measure(size: str, batch: int, repeats: int) -> Measured:
    """All figures for one size of encoder."""
    shape = SHAPES[size]
    torch.manual_seed(0)
    model, images = MAE(shape, DECODERS[size]), torch.randn(batch, 3, shape.image, shape.image)
    noise, weights = torch.rand(batch, shape.grid**2), torch.rand(batch, shape.grid**2)
    guided = AttentionMasking(start_epoch=0)
    masks = [
        build_masking(config, shape, 1)(noise, weights, (shape.grid, shape.grid), 0.0)
        for config in (guided, RandomMasking(mask_ratio=0.75, predict=0.75))
    ]
    if shape.grid == 14:
        found = [(mask.shown.shape[1], mask.shown.shape[1] + mask.predicted.shape[1]) for mask in masks]
        assert found == list(TOKENS), found
    gflop = [_gflop(model, images, mask) for mask in masks]
    if size == "B":
        for counted, expected in zip(gflop, GFLOPS, strict=True):
            assert abs(counted / expected - 1) < 0.02, gflop
    amt, mae = take_turns(lambda: _step(model, images, masks[0]), lambda: _step(model, images, masks[1]), repeats)
    renewal = least(lambda: _renew(model, images), repeats) / batch
    lookup = _lookup(shape, batch, repeats)
    share = renewal / (renewal + INTERVAL * amt / batch)
    return Measured(amt, mae, mae / amt, *gflop, renewal, share, lookup)


def _step(model: MAE, images: Tensor, mask: Masked) -> None:
    model.zero_grad(set_to_none=True)
    model(images, mask).backward()


def _gflop(model: MAE, images: Tensor, mask: Masked) -> float:
    """For one image, counted without computing anything."""
    ghost = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter:
        _step(ghost, images[:1].to("meta"), Masked(*(index[:1].to("meta") for index in mask)))
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def _renew(model: MAE, images: Tensor) -> Tensor:
    dtype = autocast_dtype(Compute(), images.device)
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        return weight_map(class_attention(model, images))


def _lookup(shape: ViT, batch: int, repeats: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        maps = WeightMaps(Path(directory), Subject(IMAGES, shape.grid, shape.grid, ""), "benchmark")
        maps.write(0, torch.rand(IMAGES, shape.grid, shape.grid).split(10_000))
        masking = build_masking(AttentionMasking(start_epoch=0), shape, 1)
        sizes = {"height": 200, "width": 250, "image_height": 375, "image_width": 500}
        corners = {"top": torch.randint(0, 175, (batch,)), "left": torch.randint(0, 250, (batch,))}
        fixed = {name: torch.full((batch,), value) for name, value in sizes.items()}
        crop = Crop(**corners, **fixed, flip=torch.rand(batch) < 0.5)  # type: ignore[arg-type]

        def look() -> None:
            weights = follow_crops(maps[torch.randint(0, IMAGES, (batch,))], crop)
            masking(torch.rand(batch, shape.grid**2), weights, (shape.grid, shape.grid), 0.0)

        return least(look, 5 * repeats)


def main() -> None:
    """Measure, print, and fail below the floor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SHAPES, default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.size, options.batch, options.repeats)
    target = None if options.size == "T" else TARGET
    if options.json:
        print(json.dumps({**asdict(found), "target": target and asdict(target)}))
    else:
        print(f"{device_name(torch.device('cpu'))}, ViT-{options.size}, batch {options.batch}")
        print(f"B5       AMT {found.amt_step:.3f} s, MAE {found.mae_step:.3f} s: {found.ratio:.2f}x", end="")
        print(f" (floor {target.floor}, aim {target.aim}, limit {target.limit})" if target else "")
        print(f"         {found.amt_gflop:.1f} and {found.mae_gflop:.1f} GFLOP an image")
        print(f"renewal  {1e3 * found.renewal_image:.2f} ms an image, {found.renewal_share:.1%} of the training's time")
        print(f"lookup   {1e3 * found.lookup_batch:.2f} ms a batch")
    sys.exit(int(target is not None and found.ratio < target.floor))


if __name__ == "__main__":
    main()

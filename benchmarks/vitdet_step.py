"""A training step of the whole Mask R-CNN on ViTDet, ours and detectron2's: five losses, backward, AdamW.

    python benchmarks/vitdet_step.py [--original PATH] [--size B|T] [--image 1024] [--repeats 5] [--json]

One image with seven objects a step. On a GPU ours runs in bf16 and detectron2 as it ships, fp16 with loss scaling; on a
CPU both in fp32. Beside the times stand each side's memory (a GPU's peak with that side alone on it, on a CPU the bytes
that autograd keeps) and what detectron2 publishes for ViTDet-B on an A100, an image to a GPU: .314 s and 10.9 GB.

In fp32, from the same weights and with the same regions sampled, all losses must agree to 1e-3: regions that score the
same but for rounding may be sampled differently. Ends with status 1 if ours is slower. Without detectron2, which
--original or PYTHONPATH makes known, ours is measured alone. Size T is a toy to try the script with.

    python benchmarks/vitdet_step.py --drop-path .1 --image 512

measures ours alone with drop path: all branches computed against those that are kept (skip_dropped), by the same draws,
whose losses must be equal; --repeats is the number of steps with draws of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_eval import CATEGORIES, boxes, outline
from measure import Kept, Measured, Target, least, seconds, take_turns, total_failed
from torch import Tensor, nn
from vitdet import SHAPES

from mimbench.backbones.window_block import Block
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.detectron2.lazyconfig import Source, lazyconfig
from mimbench.det.model.build import from_scratch
from mimbench.det.model.masks import InstanceMasks
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep
from mimbench.engine.data.datasets import CocoFiles
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.engine.run.process import device_name

PUBLISHED = {"seconds": 0.314, "memory": 10.9, "what": "detectron2's ViTDet-B, an A100, an image to a GPU"}
OBJECTS, NEAR, MIB = 7, 1e-3, 2**20
TARGET = Target(1.0, 1.2)


def config_for(size: str, image: int) -> MaskRCNNConfig:
    """The published recipe, with nothing dropped at random; the toy's heads are small, too."""
    base = mask_rcnn_vitdet_b_100ep()
    base = replace(base, encoder=SHAPES[size], image=image, vitdet=replace(base.vitdet, drop_path=0.0))
    if size != "T":
        return base
    heads = replace(base.heads, samples=32, convs=1, channels=32, fc=64)
    return replace(base, heads=heads, vitdet=replace(base.vitdet, channels=32))


def objects(image: int) -> tuple[Tensor, Tensor, list[list[np.ndarray]]]:
    """Corners (N, 4), labels and polygons of made-up objects."""
    rng = np.random.default_rng(0)
    xywh = boxes(rng, OBJECTS) * (image / 640)
    xywh[:, 2:] = xywh[:, 2:].clip(8)
    xywh[:, :2] = xywh[:, :2].clip(0, image - xywh[:, 2:].max() - 1)
    corners = torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)).float()
    polygons = [[octagon_of(box)] for box in xywh.tolist()]
    return corners, torch.arange(OBJECTS) * 11, polygons


def octagon_of(box: list[float]) -> np.ndarray:
    """x y x y ... of an octagon in the box x y w h."""
    unit = np.array(outline([0.0, 0.0, 1.0, 1.0])).reshape(-1, 2)
    return (unit * box[2:] + box[:2]).ravel()


class Side:
    """One detector with its optimiser and its way to take a batch."""

    def __init__(self, model: nn.Module, image: int, device: torch.device, precision: torch.dtype) -> None:
        self.model, self.image, self.device, self.precision = model.to(device).train(), image, device, precision
        on_gpu = device.type == "cuda"
        self.seed = 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=on_gpu or None)
        self.scaler = torch.amp.GradScaler(enabled=on_gpu and precision == torch.float16)
        pixels = np.random.default_rng(1).integers(0, 256, (3, image, image), dtype=np.uint8)
        self.batch = self.batch_of(torch.from_numpy(pixels))

    def batch_of(self, pixels: Tensor) -> Any:
        """What the model takes."""
        corners, labels, polygons = objects(self.image)
        masks = InstanceMasks(polygons)
        target = {"boxes": corners.to(self.device), "labels": labels.to(self.device), "masks": masks}
        return {"images": pixels[None].to(self.device), "sizes": [(self.image, self.image)], "targets": [target]}

    def losses(self) -> Mapping[str, Tensor]:
        """By name, regions sampled by the same draws each time."""
        torch.manual_seed(self.seed)
        found: Mapping[str, Tensor] = self.model(self.batch)
        return found

    def half(self) -> Any:
        """Within, as it trains."""
        return torch.autocast("cuda", self.precision) if self.device.type == "cuda" else nullcontext()

    def step(self) -> None:
        """A whole step, to its end."""
        with self.half():
            found = self.losses()
            loss = torch.stack([value for name, value in found.items() if name != "loss"]).sum()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> float:
        """MiB: a GPU's peak over two steps with this side alone on it, or what autograd keeps on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                self.step()
            return torch.cuda.max_memory_allocated() / MIB
        kept = Kept(self.model)
        with kept.saving():
            self.losses()
        return kept.bytes / MIB

    def to(self, device: torch.device | str) -> None:
        """Model, its gradients and moments to a device, so that they make room on a GPU."""
        self.model.to(device)
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[key] = value.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Detectron2(Side):
    """The same in detectron2."""

    def batch_of(self, pixels: Tensor) -> Any:
        """A list of dictionaries."""
        from detectron2.structures import Boxes, Instances, PolygonMasks

        corners, labels, polygons = objects(self.image)
        found = Instances((self.image, self.image))
        found.gt_boxes, found.gt_classes, found.gt_masks = Boxes(corners), labels, PolygonMasks(polygons)
        return [{"image": pixels, "instances": found, "height": self.image, "width": self.image}]

    def losses(self) -> Mapping[str, Tensor]:
        """Within its storage of events."""
        from detectron2.utils.events import EventStorage

        with EventStorage():
            return super().losses()


def sides(config: MaskRCNNConfig, device: torch.device) -> list[Side]:
    """Ours, and detectron2's of the same weights where it is importable."""
    torch.manual_seed(0)
    shape = config.shape_for(config.encoder)
    model = from_scratch(config, CATEGORIES, shape, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = [Side(model, config.image, device, torch.bfloat16)]
    if importlib.util.find_spec("detectron2") is not None:
        theirs = detectron2_model(config)
        theirs.load_state_dict(model.state_dict(), strict=True)
        found.append(Detectron2(theirs, config.image, device, torch.float16))
    return found


def detectron2_model(config: MaskRCNNConfig) -> nn.Module:
    """Its detector, by the LazyConfig that we write for it."""
    from detectron2.config import LazyConfig, instantiate

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        nowhere = CocoFiles(root / "none.json", root)
        source = Source(
            train=nowhere, val=nowhere, images_showing=[1] * CATEGORIES, bitmaps=False, shape=config.encoder,
            mean=IMAGENET_MEAN, std=IMAGENET_STD, start=root / "none.pth", output=root, device="cpu",
        )  # fmt: skip
        (root / "config.py").write_text(lazyconfig(config, source))
        model: nn.Module = instantiate(LazyConfig.load(str(root / "config.py")).model)
    return model


def measured(config: MaskRCNNConfig, device: torch.device, repeats: int, full: bool) -> tuple[Measured, list[float]]:
    """Seconds a step, and the memory of each side."""
    both = sides(config, device)
    for side in both:
        side.to("cpu")
    memory, told = [], []
    for side in both:
        side.to(device)
        told.append({name: value.item() for name, value in side.losses().items() if name != "loss"})
        memory.append(side.memory())
        side.to("cpu")
    for side in both:
        side.to(device)
    if len(both) == 1:
        alone = least(both[0].step, repeats)
        return Measured("step", "s", alone, alone, None, "detectron2 is not there: ours alone"), memory
    apart = max(abs(told[0][name] / value - 1) for name, value in told[1].items())
    assert apart <= NEAR, f"losses {told[0]} and {told[1]}"
    times = take_turns(both[0].step, both[1].step, repeats)
    note = f"{len(told[1])} losses differ by {apart:.0e}; memory {memory[0]:,.0f} and {memory[1]:,.0f} MiB"
    return Measured("step", "s", *times, TARGET if full else None, note), memory


def skipped(config: MaskRCNNConfig, rate: float, device: torch.device, steps: int) -> Measured:
    """Seconds of steps with drop path: branches that are dropped left out, against computed."""
    config = replace(config, vitdet=replace(config.vitdet, drop_path=rate))
    torch.manual_seed(0)
    model = from_scratch(config, CATEGORIES, config.shape_for(config.encoder), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    side = Side(model, config.image, device, torch.bfloat16)
    side.optimizer.param_groups[0]["lr"] = 0.0
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    took, losses = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
    side.step()
    for side.seed in range(steps):
        for skip in (False, True):
            for block in blocks:
                block.skip_dropped = skip
            took[skip] += seconds(side.step)
        if side.seed == 0 and device.type == "cpu":
            for skip in (False, True):
                for block in blocks:
                    block.skip_dropped = skip
                with torch.no_grad():
                    losses[skip] = sum(value.item() for value in side.losses().values())
            assert losses[True] == losses[False], losses
    each = {skip: total / steps for skip, total in took.items()}
    return Measured("skip", "s", each[True], each[False], None, f"drop path {rate}, {steps} steps, equal losses")


def main() -> int:
    """Measure, print, and say by the exit status whether ours is as fast."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="B")
    parser.add_argument("--image", type=int, default=1024, help="side in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--original", type=Path, help="a checkout of github.com/facebookresearch/detectron2")
    parser.add_argument("--drop-path", type=float, help="measure what skip_dropped gains at this rate")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.original is not None:
        sys.path.append(str(options.original))
    device = torch.device(options.device)
    if options.drop_path is not None:
        gained = skipped(config_for(options.size, options.image), options.drop_path, device, options.repeats)
        print(json.dumps([gained.row()], indent=2) if options.json else gained.line())
        return 0
    full = options.size == "B" and options.image == 1024
    result, memory = measured(config_for(options.size, options.image), device, options.repeats, full)
    about = {"size": options.size, "image": options.image, "device": device_name(device), "published": PUBLISHED}
    if options.json:
        print(json.dumps({**about, "memory_mib": memory, "results": [result.row()]}, indent=2))
        return total_failed([result])
    print(f"Mask R-CNN on ViTDet-{options.size} at {options.image} px, {about['device']}")
    print(result.line())
    print(f"published: {PUBLISHED['seconds']} s, {PUBLISHED['memory']} GB ({PUBLISHED['what']})")
    return total_failed([result])


if __name__ == "__main__":
    sys.exit(main())

"""What a GPU tells about mimbench, in under ten minutes: parity, throughput, memory, waits, compile. Useful cut short.

    python benchmarks/gpu.py [--out gpu.jsonl] [--only parity,pretraining] [--seconds 5] [--data imagenet] [--size T]

Each part prints lines of JSON as soon as they are measured, and appends them to `--out`; a part that fails says so and
the next one runs. Without `--data` the loader reads JPEG files that are made first. Size T is a toy for a CPU.

    parity         features, losses and detections on the device in fp32, tf32 and bf16, against fp32 on the CPU
    attention      ViTDet's global blocks, relative positions folded or masked, for window_attention.FASTEST
    pretraining    CrossMAE and MAE: images per second of the step alone and fed by the loader, MFU, peak memory
    peer           CrossMAE's step against the authors' (--original, a checkout), or the same written out; aim 1.8x
    detector       ViTDet: seconds of a training step and of an inference, peak memory against `mimbench memory`
    frozen         images per second of feature extraction; queries per second of k-NN
    waits          how often a step waits for the device, by torch's set_sync_debug_mode (GPU only)
    compile        seconds to the first step, and images per second, with and without compile

Published: ViTDet-B with detectron2 on an A100, one image to a GPU: .314 s and 10.9 GB a step, .079 s an inference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_attention import attention
from gpu_peer import peer
from gpu_rates import apart, peak, rate, wait
from torch import Tensor
from torchvision.io import write_jpeg
from torchvision.ops import box_iou
from vitdet_step import PUBLISHED, SHAPES, Side, config_for

from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.frozen.nearest import nearest
from mimbench.det.memory import estimate
from mimbench.det.model.build import from_scratch
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, normalise
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import available_cores, device_name, setup_process
from mimbench.engine.training.compiling import blocks_of, compile_parts
from mimbench.engine.training.step import Stepper
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, Pretrain
from mimbench.pretrain.flops import method_operations, without_numbers
from mimbench.pretrain.recipes.crossmae import crossmae_vitb_400ep
from mimbench.pretrain.run import build_step, training, training_batches

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}  # bf16 FLOP/s without sparsity
TOY = ViT(48, 3, 4, patch=8, image=32)
CLASSES = 80


@dataclass(frozen=True)
class Bench:
    """What is measured, on what."""

    size: str  # "B", or "T"
    device: torch.device
    seconds: float  # of each rate
    folder: Path  # images for the loader
    workers: int
    original: Path | None = None  # a checkout of the authors' CrossMAE

    @property
    def toy(self) -> bool:
        """Whether everything is small."""
        return self.size == "T"

    @property
    def shape(self) -> ViT:
        """Sizes of the encoder."""
        return TOY if self.toy else SIZES[self.size]

    @property
    def batch(self) -> int:
        """Images in a step of pretraining."""
        return 4 if self.toy else 256

    def pretrain(self, method: str, compiled: Any = False) -> Pretrain:
        """Return the config of a pretraining: "crossmae" or "mae"."""
        small: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4} if self.toy else {}
        chosen = CrossMAEConfig(**small) if method == "crossmae" else MAEConfig(**small)
        compute = Compute(workers=self.workers, device=self.device.type)  # type: ignore[arg-type]
        base = crossmae_vitb_400ep()
        masking = replace(base.masking, predict=0.25 if method == "crossmae" else 0.75)
        return replace(
            base, data=str(self.folder), encoder=self.shape, method=chosen, masking=masking, batch=self.batch,
            compile=compiled, compute=compute,
        )  # fmt: skip


Line = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- parity


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Within, matrix products are in "fp32", "tf32" or "bf16"."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def parity(bench: Bench) -> Iterator[Line]:
    """Yield how far the device's features, losses and detections are from the CPU's in fp32."""
    torch.manual_seed(0)
    encoder = VisionTransformer(bench.shape).eval()
    step = build_step(bench.pretrain("crossmae")).eval()
    config = config_for(bench.size, 128 if bench.toy else 1024)
    config = replace(config, heads=replace(config.heads, score_threshold=0.0))  # random weights are sure of nothing
    shape = config.shape_for(config.encoder)
    detector = from_scratch(config, CLASSES, shape, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    images = torch.randint(0, 256, (4, 3, bench.shape.image, bench.shape.image), dtype=torch.uint8)
    noise, large = torch.rand(4, bench.shape.grid**2), torch.rand(1, 3, config.image, config.image) * 255

    @torch.no_grad()
    def values(device: torch.device) -> dict[str, Tensor]:
        pixels = normalise(images.to(device))
        masked, context = step.choose(pixels, noise.to(device), None, 0.0)
        maps = detector.features(large.to(device), [(config.image, config.image)])
        logits, codes = detector.proposal_generator.rpn_head(maps)
        found = detector.detect(large.to(device), [(config.image, config.image)])[0]
        return {
            "features": encoder(pixels).pooled,
            "loss": step.method(pixels, masked, context),
            "pyramid": maps[0],
            "objectness": torch.cat([one.flatten() for one in logits]),
            "box_codes": torch.cat([one.flatten() for one in codes]),
            "scores": found.scores,
            "boxes": found.boxes,
        }

    with precision("fp32", torch.device("cpu")):
        wanted = values(torch.device("cpu"))
    for module in (encoder, step, detector):
        module.to(bench.device)
    for name in ("fp32", "tf32", "bf16"):
        with precision(name, bench.device):
            found = values(bench.device)
        near = {key: apart(found[key], wanted[key]) for key in wanted if found[key].shape == wanted[key].shape}
        overlap = box_iou(wanted["boxes"].cpu(), found["boxes"].cpu().float())
        again = float((overlap.amax(1) > 0.9).float().mean())
        yield {"precision": name, "apart": near, "detections": len(wanted["scores"]), "boxes_found_again": again}


# -------------------------------------------------------------------------------------------------------- throughput


def stepper_of(bench: Bench, config: Pretrain) -> tuple[Stepper, Any]:
    """Return the real training step of a pretraining, and its batches."""
    setup_process(config.compute, config.seed)
    folder = ImageFolder(bench.folder, "train")
    batches = training_batches(config, folder)
    made = training(config, build_step(config), batches, torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    return Stepper(made, bench.device), batches


def pretraining(bench: Bench) -> Iterator[Line]:
    """Yield images per second of both methods, of the step alone and fed by the loader."""
    for method in ("crossmae", "mae"):
        config = bench.pretrain(method)
        stepper, batches = stepper_of(bench, config)
        stream = batches.starting_at(0)
        same = itertools.repeat(next(stream))
        peak(bench.device)
        alone = bench.batch * rate(partial(stepper.step, 0, same), bench.seconds, bench.device)
        memory = peak(bench.device)
        fed = bench.batch * rate(partial(stepper.step, 0, stream), bench.seconds, bench.device)
        counted, _ = method_operations(*without_numbers(config))
        flops = 3 * counted[""] * alone
        best = next((value for name, value in PEAKS.items() if name in device_name(bench.device)), None)
        yield {
            "method": method, "batch": bench.batch, "workers": bench.workers, "images_per_second": alone,
            "loader_fed": fed, "fed_share": fed / alone, "tflops": flops / 1e12, "mfu": best and flops / best,
            "peak_gib": memory,
        }  # fmt: skip


def detector(bench: Bench) -> Iterator[Line]:
    """Yield seconds and memory of a training step and an inference of one image."""
    config = replace(config_for(bench.size, 128 if bench.toy else 1024), batch=1)
    torch.manual_seed(0)
    model = from_scratch(config, CLASSES, config.shape_for(config.encoder), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    side = Side(model, config.image, bench.device, torch.bfloat16)
    peak(bench.device)
    step = 1 / rate(side.step, bench.seconds, bench.device)
    needed = estimate(config, classes=CLASSES).total / 2**30
    yield {"seconds": step, "peak_gib": peak(bench.device), "estimated_gib": needed, "published": PUBLISHED}
    model.eval()
    sizes = [(config.image, config.image)]
    with torch.no_grad(), side.half():
        seconds = 1 / rate(lambda: model.detect(side.batch["images"], sizes), bench.seconds, bench.device)
    yield {"inference_seconds": seconds, "published_inference": 0.079, "peak_gib": peak(bench.device)}


def frozen(bench: Bench) -> Iterator[Line]:
    """Yield the rates of feature extraction and of k-NN."""
    encoder = VisionTransformer(bench.shape).eval().to(bench.device)
    batch, side = bench.batch, bench.shape.image
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8).to(bench.device)
    with torch.no_grad(), precision("bf16", bench.device):
        encoded = batch * rate(lambda: encoder(normalise(pixels)), bench.seconds, bench.device)
    train, query = (64, 16) if bench.toy else (1_281_167, 4096)
    train_ND = torch.randn(train, bench.shape.width, dtype=torch.float16, device=bench.device)
    query_QD = torch.randn(query, bench.shape.width, device=bench.device)
    found = query * rate(lambda: nearest(query_QD, train_ND, 20), bench.seconds, bench.device, warm=1)
    yield {"images_per_second": encoded, "knn_queries_per_second": found, "knn_of": train}


# -------------------------------------------------------------------------------------------------- waits and compile


def waited(device: torch.device, work: Callable[[], object]) -> int | None:
    """Return how often `work` waits for the device; None on a CPU."""
    work()
    if device.type != "cuda":
        work()
        return None
    wait(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def waits(bench: Bench) -> Iterator[Line]:
    """Yield the waits of a pretraining step, a detector's losses and an inference."""
    stepper, batches = stepper_of(bench, bench.pretrain("crossmae"))
    same = itertools.repeat(next(batches.starting_at(0)))
    yield {"what": "pretraining step", "waits": waited(bench.device, lambda: stepper.step(0, same))}
    config = config_for(bench.size, 128 if bench.toy else 1024)
    model = from_scratch(config, CLASSES, config.shape_for(config.encoder), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    side = Side(model, config.image, bench.device, torch.bfloat16)
    with side.half():
        yield {"what": "detector, losses", "waits": waited(bench.device, side.losses)}
        model.eval()
        images, sizes = side.batch["images"], [(config.image, config.image)]
        yield {"what": "detector, inference", "waits": waited(bench.device, lambda: model.detect(images, sizes))}


def compiled(bench: Bench) -> Iterator[Line]:
    """Yield the first step and the rate of CrossMAE as it is, with compiled blocks and compiled whole; then ViTDet."""
    for how in (False, "blocks", True):
        torch._dynamo.reset()
        stepper, batches = stepper_of(bench, bench.pretrain("crossmae", how))
        same = itertools.repeat(next(batches.starting_at(0)))
        begun = time.perf_counter()
        stepper.step(0, same)
        wait(bench.device)
        first = time.perf_counter() - begun
        found = bench.batch * rate(partial(stepper.step, 0, same), bench.seconds, bench.device)
        yield {"what": "crossmae", "compile": how, "first_step_seconds": first, "images_per_second": found}
    config = config_for(bench.size, 128 if bench.toy else 1024)
    for parts in (False, True):
        torch._dynamo.reset()
        model = from_scratch(config, CLASSES, config.shape_for(config.encoder), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        if parts:
            compile_parts(model.compilable())
        side = Side(model, config.image, bench.device, torch.bfloat16)
        begun = time.perf_counter()
        side.step()
        first = time.perf_counter() - begun
        step = 1 / rate(side.step, bench.seconds, bench.device)
        yield {"what": "detector", "compile": parts, "first_step_seconds": first, "seconds": step}
    encoder = VisionTransformer(bench.shape).requires_grad_(False).eval().to(bench.device)
    pixels = torch.randn(bench.batch, 3, bench.shape.image, bench.shape.image, device=bench.device)
    for blocks in (False, True):
        if blocks:
            compile_parts(blocks_of(encoder))
        with torch.no_grad(), precision("bf16", bench.device):
            found = bench.batch * rate(lambda: encoder(pixels), bench.seconds, bench.device)
        yield {"what": "frozen encoder", "compile": blocks, "images_per_second": found}


PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "parity": parity,
    "attention": lambda bench: attention(bench.device, bench.seconds, toy=bench.toy),
    "pretraining": pretraining,
    "peer": lambda bench: peer(bench.device, bench.pretrain("crossmae"), bench.seconds, bench.original),
    "detector": detector,
    "frozen": frozen,
    "waits": waits,
    "compile": compiled,
}


def measured(bench: Bench, only: list[str]) -> Iterator[Line]:
    """Yield every line of the parts `only`; a part that fails yields its error."""
    for name in only:
        begun = time.perf_counter()
        try:
            for line in PARTS[name](bench):
                yield {"part": name, **line}
        except Exception as error:  # the next part may still tell something
            yield {"part": name, "error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        yield {"part": name, "took_seconds": time.perf_counter() - begun}
        peak(bench.device)


def made_images(root: Path, number: int) -> Path:
    """Write `number` JPEG files of ImageNet's usual size into two classes, and return the data set."""
    generator = torch.Generator().manual_seed(0)
    for index in range(number):
        folder = root / "train" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = torch.rand(1, 3, 24, 32, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=(375, 500), mode="bicubic").clamp(0, 1)
        write_jpeg((pixels[0] * 255).byte(), str(folder / f"{index}.jpg"), quality=90)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen parts; print and append each line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="B")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--data", help="an ImageNet-like data set for the loader; none: made JPEG files")
    parser.add_argument("--workers", type=int, default=max(2, available_cores() - 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--original", type=Path, help="a checkout of github.com/TonyLianLong/CrossMAE")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as directory, options.out.open("a", encoding="utf-8") as file:
        folder = (
            locate(options.data) if options.data else made_images(Path(directory), 8 if options.size == "T" else 2048)
        )
        bench = Bench(options.size, device, options.seconds, folder, options.workers, options.original)
        about = {"part": "about", "device": device_name(device), "torch": torch.__version__, "size": options.size}
        for line in itertools.chain([about], measured(bench, options.only.split(","))):
            text = json.dumps(line)
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Linear probes: many heads at once against as many alone, and against one papers' probe of ImageNet (B20).

    python benchmarks/probe.py                        # minutes on two cores
    python benchmarks/probe.py --size S --images 16 --batch 512 --repeats 2

B20 heads     13 heads of 768 -> 1000 stacked, against 13 modules: weights equal to 1e-4 after a step, asserted
B20 pass      encoding images and training 13 heads on them, against one head: what the others cost
B20 40 heads  an epoch's share of the fast probe's grid (8 features, 5 heads each), against 40 plain probes
B20 ImageNet  the whole fast probe, its features and the last training counted, against ONE papers' probe of 90 epochs,
              in hours here: images and steps are timed on a fraction, as many as ImageNet has are multiplied out, and
              the papers' augmentation and head are left out of the peer (its input is taken to cost nothing)
B20 overlap   features of a split, and classes as fine-tuning finds them, whose images are decoded in another process,
              against the slower of the two alone, on one core each

Where a processor does not multiply in bf16 stacked heads are bound by the same float32 products as single ones, and
only what lies between the products is saved: there the floors of the first and the third are low.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import Measured, Target, least, relative, take_turns, total_failed
from torch import Tensor
from torchvision.io import encode_jpeg

from mimbench.backbones.classifier import build_classifier
from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.accuracy import accuracy
from mimbench.cls.data.crops import CentreCrops
from mimbench.cls.frozen.encoders import FrozenViT
from mimbench.cls.frozen.features import Source, encoded
from mimbench.cls.frozen.heads import HeadOptimizer, Heads
from mimbench.cls.frozen.linear import Probe
from mimbench.engine.data.batches import evaluation_loader
from mimbench.engine.data.images import ImageFolder, normalise
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import autocast_dtype, device_name
from mimbench.engine.training.optim import LARS

CLASSES, TRAIN, VAL, EPOCHS = 1000, 1_281_167, 50_000, 90
RATES = tuple(0.4 * 1.3**number for number in range(40))
FEATURES, PER_FEATURE = 8, 5  # of the recipe cls/linear_fast
CPU = torch.device("cpu")
DTYPE = autocast_dtype(Compute(), CPU)
TARGETS = {
    "B20 heads": Target(1.5, 2.0) if DTYPE else Target(0.9, 1.2),
    "B20 pass": Target(1 / 1.05, 1 / 1.01, 1.0),
    "B20 40 heads": Target(1.5, 2.0) if DTYPE else Target(0.9, 1.2),
    "B20 ImageNet": Target(40, 50, 86),  # 90 epochs and validation over one pass through both splits
    "B20 overlap": Target(0.9, 0.95, 1.0),
}
SMALL = ViT(96, 3, 3)  # encodes an image in the time that one core decodes two

# B image of a batch, H head, D feature


class Stacked:
    """Heads as the fast probe trains them."""

    def __init__(self, width: int, count: int) -> None:
        torch.manual_seed(0)
        self.heads = Heads(width, CLASSES, count)
        self.optimizer = HeadOptimizer(self.heads.parameters(), RATES[:count], [0.0] * count, 0.001)

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One optimiser step."""
        with torch.autocast("cpu", DTYPE, enabled=DTYPE is not None):
            loss = self.heads(batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Alone:
    """The same heads, each a probe with an optimiser of its own."""

    def __init__(self, width: int, count: int) -> None:
        self.probes: list[Probe] = []
        for _ in range(count):
            torch.manual_seed(0)
            self.probes.append(Probe(width, CLASSES))
        self.optimizers = [LARS(probe.parameters(), rate) for probe, rate in zip(self.probes, RATES, strict=False)]

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One optimiser step of each."""
        for probe, optimizer in zip(self.probes, self.optimizers, strict=True):
            with torch.autocast("cpu", DTYPE, enabled=DTYPE is not None):
                loss = F.cross_entropy(probe.logits(batch[0].float()).float(), batch[1])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def rows(batch: int, width: int) -> tuple[Tensor, Tensor]:
    """Features as they are stored, and labels."""
    return torch.randn(batch, width).half(), torch.arange(batch) % CLASSES


def heads(width: int, batch: int, count: int, repeats: int) -> Measured:
    """Stacked against alone, on one feature."""
    ours, peer, data = Stacked(width, count), Alone(width, count), rows(batch, width)
    ours.step(data)
    peer.step(data)
    theirs = torch.stack([probe.linear.weight for probe in peer.probes])
    difference = relative(ours.heads.weight, theirs)
    assert difference <= (1e-4 if DTYPE is None else 1e-3), f"weights differ by {difference:.1e}"
    taken = take_turns(lambda: ours.step(data), lambda: peer.step(data), repeats)
    note = f"{count} heads, batch {batch}, {_type()}, weights differ by {difference:.0e}"
    return Measured("B20 heads", "s", *taken, TARGETS["B20 heads"], note)


def whole_grid(width: int, batch: int, repeats: int) -> tuple[Measured, float]:
    """The recipe's 40 heads against 40 plain ones, a step of each; and seconds an image of ours."""
    data = [rows(batch, width) for _ in range(FEATURES)]
    ours, peer = ([kind(width, PER_FEATURE) for _ in data] for kind in (Stacked, Alone))

    def step(sides: Sequence[Stacked | Alone]) -> Callable[[], None]:
        return lambda: [side.step(each) for side, each in zip(sides, data, strict=True)] and None

    taken = take_turns(step(ours), step(peer), repeats)
    count = FEATURES * PER_FEATURE
    note = f"{count} heads, batch {batch}, {_type()}; ours {batch / taken[0]:.0f} images/s"
    return Measured("B20 40 heads", "s", *taken, TARGETS["B20 40 heads"], note), taken[0] / batch


def one_pass(encoder: FrozenViT, images: Tensor, batch: int, repeats: int) -> tuple[Measured, float]:
    """Encoding and 13 heads against encoding and one; and seconds that encoding an image takes.

    The heads' step is taken on a whole batch, and the images' share of it counts.
    """
    many, single = Stacked(encoder.model.width, 13), Stacked(encoder.model.width, 1)
    data, share = rows(batch, encoder.model.width), len(images) / batch
    encoding = least(lambda: encoder(images), repeats)
    heads_13, heads_1 = take_turns(lambda: many.step(data), lambda: single.step(data), repeats)
    ours, peer = encoding + share * heads_13, encoding + share * heads_1
    note = f"{len(images)} images, {_type()}; {1000 * encoding / len(images):.0f} ms an image, of it 13 heads "
    note += f"{1000 * heads_13 / batch:.2f} ms"
    return Measured("B20 pass", "s", ours, peer, TARGETS["B20 pass"], note), encoding / len(images)


def at_imagenet(encoding: float, training: float) -> Measured:
    """Hours of the fast probe with 40 heads and of one papers' probe, from seconds an image."""
    features = encoding * (TRAIN + VAL)
    search = training * TRAIN * EPOCHS
    ours = features + search * (1 + 2 / (FEATURES * PER_FEATURE))  # at most two heads are trained again
    peer = encoding * (TRAIN * EPOCHS + VAL)
    note = f"extrapolated; features {features / 3600:.0f} h, 40 heads {search / 3600:.1f} h"
    return Measured("B20 ImageNet", "h", ours / 3600, peer / 3600, TARGETS["B20 ImageNet"], note)


def overlaps(images: int, repeats: int) -> list[Measured]:
    """Decoding in another process while this one encodes, against the slower of the two; a core for each.

    Of few images the first batch, which nothing overlaps, would be a part.
    """
    encoder = _encoder(SMALL, eval_batch=16)
    classifier = build_classifier(SMALL, CLASSES, drop_path=0.0, pool="avg", image=224).eval()

    def encoding(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        deque(encoded(encoder, batches, [encoder.source]), maxlen=0)

    def classifying(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        accuracy("top", lambda images: classifier(normalise(images)), batches, CPU)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as directory:
            crops = CentreCrops(_photographs(Path(directory), images), 224)
            return [
                overlap(name, crops, work, repeats) for name, work in (("features", encoding), ("classes", classifying))
            ]
    finally:
        torch.set_num_threads(threads)


def overlap(
    name: str, crops: CentreCrops, work: Callable[[Iterable[tuple[Tensor, Tensor]]], None], repeats: int
) -> Measured:
    """Of one evaluation, `work` being what it does with batches of images and labels."""

    def reading() -> list[tuple[Tensor, Tensor]]:
        return list(evaluation_loader(crops, 16, workers=1))

    batches = reading()
    together, slower = take_turns(lambda: work(evaluation_loader(crops, 16, workers=1)), reading, repeats)
    model = least(lambda: work(batches), repeats)
    note = f"{len(crops)} images: read alone {slower:.2f} s, model alone {model:.2f} s"
    return Measured(f"B20 overlap, {name}", "s", together, max(slower, model), TARGETS["B20 overlap"], note)


def _photographs(directory: Path, images: int) -> ImageFolder:
    """JPEG files of ImageNet's usual size, that are neither noise nor flat."""
    (directory / "class").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(images):
        small = torch.rand(1, 3, 47, 63, generator=generator) * 255
        image = F.interpolate(small, (375, 500), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
        (directory / "class" / f"{number}.jpg").write_bytes(encode_jpeg(image, 90).numpy().tobytes())
    return ImageFolder(directory, "train", cache=False)


def _encoder(shape: ViT, eval_batch: int) -> FrozenViT:
    torch.manual_seed(0)
    model = VisionTransformer(shape).requires_grad_(False).eval()
    return FrozenViT(Source("avg", shape.depth, "pooled"), CPU, DTYPE, eval_batch, model, None)


def _type() -> str:
    return str(DTYPE or torch.float32).removeprefix("torch.")


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="B")
    parser.add_argument("--images", type=int, default=16, help="encoded at a time")
    parser.add_argument("--batch", type=int, default=1024, help="features in a step of the heads")
    parser.add_argument("--files", type=int, default=1024, help="images of the overlap")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args()
    shape = SIZES[options.size]
    encoder, images = _encoder(shape, options.images), torch.zeros(options.images, 3, 224, 224, dtype=torch.uint8)
    results = [heads(shape.width, options.batch, 13, options.repeats)]
    grid, training = whole_grid(shape.width, options.batch, options.repeats)
    cost, encoding = one_pass(encoder, images, options.batch, options.repeats)
    results += [cost, grid, at_imagenet(encoding, training), *overlaps(options.files, options.repeats)]
    if options.json:
        print(json.dumps([result.row() for result in results], indent=2))
    else:
        print(f"{device_name(CPU)}, {torch.backends.cpu.get_cpu_capability()}, ViT-{options.size}")
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

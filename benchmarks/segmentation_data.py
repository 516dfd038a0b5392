"""S3, S4, S5: segmentation's loader, evaluation and patch k-NN, against the same work as the originals write it.

    python benchmarks/segmentation_data.py [--only S3 S5] [--repeats 5] [--pictures 200] [--json]

S3  a training sample from files: JPEG and PNG decoded, resized, cropped to 512 by cat_max_ratio, flipped, distorted and
    normalised; the plain form follows mmsegmentation's transforms. The same draws give the same bytes (asserted).
S4  evaluation of pictures of 683 x 512 with 150 classes from files: windows of 512 by 341, logits at the label map's
    size, and mIoU, with a tiny encoder so that the rest counts. The plain form runs windows one by one, each padded to
    a canvas, takes the softmax, and counts by three histograms. Both give the same mIoU to 1e-6 (asserted).
S5  CAPI's grid of eight settings, 20,000 training patches of 1,024 features and 2,000 others: one search for both
    distances against one for each setting. The same setting is chosen, and the same mIoU to 1e-9 (asserted).

Sides take turns, and the least time of each counts. One thread. Ends with status 1 below a floor.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from measure import Measured, Target, take_turns, total_failed
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimbench.backbones.config import ViT
from mimbench.engine.data.handwritten_material import bundled
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, normalise
from mimbench.engine.run.process import device_name
from mimbench.seg.config import Augment, Backbone, Heads, Inference, PatchKnnConfig, UPerNetConfig
from mimbench.seg.data.batches import TrainingCrops
from mimbench.seg.data.pixels import rescaled_size
from mimbench.seg.data.split import LabelledSplit, open_split
from mimbench.seg.evaluation.evaluate import Evaluation
from mimbench.seg.frozen.knn import Setting, best_of
from mimbench.seg.frozen.neighbours import capi_miou, learnable
from mimbench.seg.frozen.patches import Patches, divided
from mimbench.seg.model.build import build_segmenter
from mimbench.seg.model.segmenter import UPerNet

S3, S4, S5 = Target(1.5, 2.2, 2.5), Target(1.5, 2.5), Target(4.0, 7.0, 8.0)
CLASSES, CROP, SIZE = 150, 512, (512, 683)
MEAN, STD = (np.array(values) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))


def data_set(root: Path, pictures: int) -> Path:
    """Write an ADE20K-shaped tree of crops of scikit-learn's photographs and label maps of blobs; return `root`."""
    rng, photographs = np.random.default_rng(0), bundled()[2]
    for folder in ("training", "validation"):
        for above in ("images", "annotations"):
            (root / above / folder).mkdir(parents=True)
        for number in range(pictures):
            photograph = photographs[number % 2]
            left, top = rng.integers(0, photograph.width - 400), rng.integers(0, photograph.height - 300)
            crop = photograph.crop((left, top, left + 400, top + 300)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
            crop.save(root / "images" / folder / f"{number:04d}.jpg", quality=92)
            coarse = rng.choice(CLASSES + 1, 12)[rng.integers(0, 12, (6, 8))].astype(np.uint8)
            labels = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.NEAREST)
            labels.save(root / "annotations" / folder / f"{number:04d}.png")
    return root


# --------------------------------------------------------------------------------------------------------------- loader


def plain_sample(split: LabelledSplit, index: int, config: Augment) -> tuple[NDArray[np.uint8], NDArray[Any], Tensor]:
    """Return crop, labels and the normalised tensor, as mmsegmentation's transforms make them, one after another."""
    root = split.store.path
    image = cv2.imdecode(np.frombuffer((root / split.pairs[index][0]).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    labels = np.array(Image.open(io.BytesIO((root / split.pairs[index][1]).read_bytes())), dtype=np.uint8)
    labels[labels == 0] = 255
    labels = labels - 1
    labels[labels == 254] = 255
    ratio = np.random.random_sample() * (config.largest - config.smallest) + config.smallest
    size = rescaled_size(image.shape[:2], int(config.long * ratio), int(CROP * ratio))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    top, left = _corner(labels)
    for _ in range(10):
        ids, counts = np.unique(labels[top : top + CROP, left : left + CROP], return_counts=True)
        counts = counts[ids != 255]
        if len(counts) > 1 and np.max(counts) / np.sum(counts) < config.cat_max_ratio:
            break
        top, left = _corner(labels)
    image, labels = image[top : top + CROP, left : left + CROP], labels[top : top + CROP, left : left + CROP]
    if np.random.random_sample() < config.flip:
        image, labels = np.flip(image, axis=1), np.flip(labels, axis=1)
    image = _plain_distortion(np.ascontiguousarray(image))
    whole = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2RGB)
    cv2.subtract(whole, MEAN.reshape(1, -1).astype(np.float64), whole)
    cv2.multiply(whole, 1 / STD.reshape(1, -1).astype(np.float64), whole)
    return image, labels, torch.from_numpy(np.ascontiguousarray(whole.transpose(2, 0, 1)))


def _corner(labels: NDArray[Any]) -> tuple[int, int]:
    top = np.random.randint(0, max(labels.shape[0] - CROP, 0) + 1)
    return top, np.random.randint(0, max(labels.shape[1] - CROP, 0) + 1)


def _converted(image: NDArray[np.uint8], factor: float = 1.0, offset: float = 0.0) -> NDArray[np.uint8]:
    made = image.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(made, 0, 255).astype(np.uint8)


def _plain_distortion(image: NDArray[Any]) -> NDArray[Any]:
    draw = np.random
    if draw.randint(2):
        image = _converted(image, offset=draw.uniform(-32, 32))
    first = draw.randint(2) == 1
    if first and draw.randint(2):
        image = _converted(image, factor=draw.uniform(0.5, 1.5))
    if draw.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = _converted(hsv[:, :, 1], factor=draw.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if draw.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + draw.randint(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not first and draw.randint(2):
        image = _converted(image, factor=draw.uniform(0.5, 1.5))
    return image


def loader(root: Path, repeats: int) -> Measured:
    """S3."""
    split, config = open_split(root, "train"), Augment()
    crops, count = TrainingCrops(split, config, CROP), min(len(split), 20)

    def ours() -> list[tuple[Tensor, Tensor, Tensor]]:
        np.random.seed(0)
        made = [crops[index] for index in range(count)]
        return [(image, labels, normalise(image[None])[0]) for image, labels in made]

    def plain() -> list[tuple[NDArray[np.uint8], NDArray[Any], Tensor]]:
        np.random.seed(0)
        return [plain_sample(split, index, config) for index in range(count)]

    for mine, theirs in zip(ours(), plain(), strict=True):
        assert np.array_equal(mine[0].permute(1, 2, 0).numpy()[..., ::-1], theirs[0])
        assert np.array_equal(mine[1].numpy(), theirs[1])
        assert (mine[2] - theirs[2]).abs().max() < 1e-5
    mine, peer = take_turns(ours, plain, repeats)
    return Measured("S3 loader", "ms/image", 1e3 * mine / count, 1e3 * peer / count, S3, "the same bytes")


# ----------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def plain_miou(model: UPerNet, split: LabelledSplit) -> float:
    """Return mIoU as mmsegmentation computes it: windows one by one on canvases, softmax, three histograms."""
    totals = torch.zeros(3, CLASSES)
    for index in range(len(split)):
        image, labels = split.image(index), torch.from_numpy(split.labels(index))
        size = rescaled_size(image.shape[:2], 2048, CROP)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        whole = normalise(torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None])
        height, width = size
        canvas, count = whole.new_zeros(1, CLASSES, height, width), whole.new_zeros(1, 1, height, width)
        stride = 341
        for row in range(max(height - CROP + stride - 1, 0) // stride + 1):
            for column in range(max(width - CROP + stride - 1, 0) // stride + 1):
                bottom, right = min(row * stride + CROP, height), min(column * stride + CROP, width)
                top, left = max(bottom - CROP, 0), max(right - CROP, 0)
                logits = model.logits(whole[:, :, top:bottom, left:right])
                logits = F.interpolate(logits, size=(CROP, CROP), mode="bilinear", align_corners=False)
                canvas += F.pad(logits, (left, width - right, top, height - bottom))
                count[:, :, top:bottom, left:right] += 1
        logits = F.interpolate(canvas / count, size=labels.shape, mode="bilinear", align_corners=False)
        predicted = F.softmax(logits, dim=1).argmax(1)[0]
        known = labels != 255
        predicted, labels = predicted[known], labels[known]
        right_ones = predicted[predicted == labels]
        for place, values in enumerate((right_ones, predicted, labels)):
            totals[place] += torch.histc(values.float(), bins=CLASSES, min=0, max=CLASSES - 1)
    iou = totals[0] / (totals[1] + totals[2] - totals[0])
    return 100 * float(np.nanmean(iou.numpy()))


def evaluation(root: Path, pictures: int, repeats: int) -> Measured:
    """S4."""
    torch.manual_seed(0)
    config = UPerNetConfig(
        data=str(root), encoder=ViT(32, 4, 2, patch=16, image=512), heads=Heads(channels=16), backbone=Backbone()
    )
    model = build_segmenter(config, CLASSES).model.eval()
    split = open_split(root, "val")
    measure = Evaluation(split, Inference(), CROP, torch.device("cpu"), workers=0)
    found: list[float] = []
    ours, peer = take_turns(
        lambda: found.append(measure(model)["miou"]), lambda: found.append(plain_miou(model, split)), repeats
    )
    off = max(found) - min(found)
    assert off < 1e-4 * max(found) or off < 1e-6, found
    return Measured("S4 evaluation", "s", ours, peer, S4, f"{pictures} pictures; mIoU differs by {off:.0e}")


# ----------------------------------------------------------------------------------------------------------------- k-NN


def plain_grid(
    config: PatchKnnConfig, train: Patches, val: Patches, images: int, ignore: tuple[int, ...]
) -> tuple[Setting, float]:
    """Return the setting and mIoU by a search for each setting, as CAPI's code does it."""
    rest, apart, everything, val = divided(config, train, val, images)
    tried = {}
    for distance in config.distances:
        for k in config.neighbours:
            tried[Setting(k, distance)] = capi_miou(_searched(rest, apart, k, distance, ignore), apart.labels, ignore)
    chosen = max(tried, key=lambda setting: tried[setting])
    return chosen, capi_miou(_searched(everything, val, *chosen, ignore), val.labels, ignore)


def _searched(train: Patches, query: Patches, k: int, distance: str, ignore: tuple[int, ...]) -> Tensor:
    kept = learnable(train.labels, ignore)
    features, labels = train.features[kept], train.labels[kept]
    voted = []
    for rows in query.features.split(1024):
        if distance == "cosine":
            closeness = F.normalize(rows, dim=1) @ F.normalize(features, dim=1).T
        else:
            closeness = -torch.cdist(rows, features)
        voted.append(labels[closeness.topk(k, dim=1).indices].mode(dim=1).values)
    return torch.cat(voted)


def knn(repeats: int) -> Measured:
    """S5: 200 training images of 100 patches, 20 of them held out, and no other images: the grid is what is timed."""
    generator = torch.Generator().manual_seed(0)
    images, each, pixels = 200, 100, 64
    classes = torch.randint(1, 21, (images * each,), generator=generator)
    centres = torch.randn(21, 1024, generator=generator)
    features = centres[classes] + 8 * torch.randn(images * each, 1024, generator=generator)
    labels = classes[:, None].repeat(1, pixels).to(torch.uint8)
    train = Patches(features, labels, each)
    val = train.of(torch.arange(2))
    config, ignore = PatchKnnConfig(data="x"), (0, 255)
    chosen, _, miou = best_of(config, train, val, images, ignore)
    theirs, their_miou = plain_grid(config, train, val, images, ignore)
    assert chosen == theirs, (chosen, theirs)
    assert abs(miou - their_miou) < 1e-9, (miou, their_miou)
    ours, peer = take_turns(
        lambda: best_of(config, train, val, images, ignore),
        lambda: plain_grid(config, train, val, images, ignore),
        repeats,
    )
    return Measured("S5 k-NN grid", "s", ours, peer, S5, f"chooses k={chosen.k}, {chosen.distance}; the same mIoU")


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200, help="pictures that S4 evaluates")
    parser.add_argument(
        "--only", nargs="+", choices=("S3", "S4", "S5"), default=("S3", "S4", "S5"), help="benchmarks to run"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as directory:
        root = data_set(Path(directory) / "ade", options.pictures)
        benchmarks = {
            "S3": lambda: loader(root, options.repeats),
            "S4": lambda: evaluation(root, options.pictures, min(options.repeats, 2)),
            "S5": lambda: knn(options.repeats),
        }
        results = [benchmarks[name]() for name in options.only]
    if options.json:
        print(json.dumps([result.row() for result in results]))
    else:
        print(device_name(torch.device("cpu")))
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

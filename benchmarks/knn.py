"""k-NN: ours against DINO's and DINOv2's forms of it, and at ImageNet's size against the bare matrix product (B19).

    python benchmarks/knn.py                                   # minutes on two cores; 100,000 x 2,000 x 768
    python benchmarks/knn.py --train 20000 --queries 500 --imagenet 0

B19    the same predictions for every k, asserted; DINO's form holds 100 queries against all training images, takes the
       best of all of them, votes through indicators of every neighbour's class, and begins anew for each of the four
       ks; DINOv2's searches once and votes in the same way
B19i   1,281,167 x 768 training features, stored in fp16 and mapped into memory, and a fraction of the 50,000 queries:
       images a second, memory, and the share of the time that the matrix products alone would take

Similarities are float32 in all of them, so that most of the time is products that every form has to do, and against
DINOv2's there is little to be had where they are slow, as on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import Measured, Target, least, take_turns, total_failed
from torch import Tensor

from mimbench.cls.frozen.knn import classify
from mimbench.cls.frozen.nearest import QUERIES, TRAINS
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import device_name

WIDTH, CLASSES, KS, TEMPERATURE = 768, 1000, (10, 20, 100, 200), 0.07
IMAGENET = 1_281_167
TARGETS = {"B19 DINO": Target(4, 8, 13.6), "B19 DINOv2": Target(1.15, 1.5, 2.0)}
PRODUCTS = Target(0.60, 0.85, 1.0)  # share of the bare matrix product

# Q query, N training image, K neighbours, C classes, D features


def clouds(images: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of training images and queries, classes overlapping so that ks differ; labels of the former."""
    generator = torch.Generator().manual_seed(seed)
    centres_CD = torch.randn(CLASSES, WIDTH, generator=generator)
    label_N = torch.randint(0, CLASSES, (images,), generator=generator)
    label_Q = torch.randint(0, CLASSES, (queries,), generator=generator)
    train_ND, query_QD = (
        centres_CD[labels] + 4 * torch.randn(len(labels), WIDTH, generator=generator) for labels in (label_N, label_Q)
    )
    return train_ND, label_N, query_QD


def dino(train_ND: Tensor, label_N: Tensor, query_QD: Tensor, k: int) -> Tensor:
    """Predictions (Q,) for one k, 100 queries at a time, with an indicator for every neighbour."""
    train_DN, found = F.normalize(train_ND, dim=1).T, []
    indicator = torch.zeros(k, CLASSES)
    for part_QD in F.normalize(query_QD, dim=1).split(100):
        similarity, index = (part_QD @ train_DN).topk(k, largest=True, sorted=True)
        neighbours = label_N.view(1, -1).expand(len(part_QD), -1).gather(1, index)
        indicator.resize_(len(part_QD) * k, CLASSES).zero_()
        indicator.scatter_(1, neighbours.view(-1, 1), 1)
        weight = similarity.clone().div_(TEMPERATURE).exp_()
        votes = (indicator.view(len(part_QD), -1, CLASSES) * weight.view(len(part_QD), -1, 1)).sum(1)
        found.append(votes.argmax(1))
    return torch.cat(found)


def dinov2(train_ND: Tensor, label_N: Tensor, query_QD: Tensor) -> dict[int, Tensor]:
    """Predictions (Q,) for every k from one search: softmax weights times indicators of the greatest k's classes."""
    train_DN, most = F.normalize(train_ND, dim=1).T.contiguous(), max(KS)
    found: dict[int, list[Tensor]] = {k: [] for k in KS}
    for part_QD in F.normalize(query_QD, dim=1).split(256):
        similarity, index = (part_QD @ train_DN).topk(most)
        weight = (similarity / TEMPERATURE).softmax(1)
        votes = F.one_hot(label_N[index], CLASSES) * weight[:, :, None]
        for k in KS:
            found[k].append(votes[:, :k].sum(1).argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def ours(train_ND: Tensor, label_N: Tensor, query_QD: Tensor) -> dict[int, Tensor]:
    """What a run does."""
    return classify(query_QD, train_ND, label_N, classes=CLASSES, neighbours=KS, temperature=TEMPERATURE)


def products(train: int, queries: int) -> float:
    """Seconds that the matrix products alone take, from a block of them."""
    rows, columns = min(QUERIES, queries), min(TRAINS, train)
    a, b = torch.randn(rows, WIDTH), torch.randn(columns, WIDTH)
    room = torch.empty(rows, columns)
    return least(lambda: torch.mm(a, b.T, out=room), 5) * (queries / rows) * (train / columns)


def b19(train: int, queries: int, repeats: int) -> list[Measured]:
    """Against both forms, all ks."""
    data = clouds(train, queries)
    expected, found, theirs = dinov2(*data), ours(*data), {k: dino(*data, k) for k in KS}
    for k in KS:
        assert torch.equal(found[k], expected[k]), f"k={k}: predictions differ from DINOv2's"
        assert torch.equal(found[k], theirs[k]), f"k={k}: predictions differ from DINO's"
    note = f"{train} x {queries} x {WIDTH}, ks {KS}, equal predictions; products alone {products(train, queries):.2f} s"
    forms = {"B19 DINO": lambda: [dino(*data, k) for k in KS], "B19 DINOv2": lambda: dinov2(*data)}
    return [
        Measured(name, "s", *take_turns(lambda: ours(*data), peer, repeats), TARGETS[name], note)
        for name, peer in forms.items()
    ]


def stored(directory: Path, images: int) -> Tensor:
    """Random fp16 features, mapped into memory."""
    features = np.memmap(directory / "features", np.float16, "w+", shape=(images, WIDTH))
    generator = np.random.default_rng(0)
    for start in track(range(0, images, 65_536), "making up features", -(-images // 65_536)):
        part = generator.standard_normal((min(65_536, images - start), WIDTH), dtype=np.float32)
        features[start : start + len(part)] = part
    features.flush()
    return torch.from_numpy(np.memmap(directory / "features", np.float16, "c", shape=(images, WIDTH)))


def at_imagenet(queries: int, images: int, directory: Path) -> Measured:
    """A fraction of ImageNet's queries against all its training features."""
    train_ND, label_N = stored(directory, images), torch.arange(images) % CLASSES
    query_QD = torch.randn(queries, WIDTH, generator=torch.Generator().manual_seed(1))
    alone = products(images, queries)
    begun = time.perf_counter()
    ours(train_ND, label_N, query_QD)
    taken = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    alone = min(alone, products(images, queries))
    note = (
        f"{images} x {queries}: {queries / taken:.0f} images/s, {50_000 * taken / queries / 60:.1f} min for 50,000; "
        f"peak {peak:.1f} GiB, {images * WIDTH * 2 / 2**30:.1f} of it the mapped features; "
        f"all similarities would be {4e-9 * images * 50_000:.0f} GB"
    )
    return Measured("B19i", "s", taken, alone, PRODUCTS, note)


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--imagenet", type=int, default=2048, help="queries against ImageNet's features; 0 for none")
    parser.add_argument("--images", type=int, default=IMAGENET, help="training features of that")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args()
    results = []
    if options.imagenet:  # first, for its memory is counted
        with tempfile.TemporaryDirectory() as directory:
            results.append(at_imagenet(options.imagenet, options.images, Path(directory)))
    results += b19(options.train, options.queries, options.repeats)
    if options.json:
        print(json.dumps([result.row() for result in results], indent=2))
    else:
        print(f"{device_name(torch.device('cpu'))}, {torch.backends.cpu.get_cpu_capability()}")
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

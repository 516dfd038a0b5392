"""Memory and time of COCO's and LVIS's evaluation in the processes of one node, with made-up results of full size.

    python benchmarks/evaluation_memory.py                                  # COCO val2017: 5,000 images, 100 each
    python benchmarks/evaluation_memory.py --images 19809 --each 300 --classes 1203 --objects 12.3 --lvis

Two processes hold half of the results each, as after detecting on their share. They send them to the first, which
measures boxes and masks and writes predictions.json. Printed are seconds, and each process's peak memory beyond what it
had before its results were made: the first holds at most 4 GiB for COCO (12 for LVIS), the others .3 (an eighth of the
results is one process's share of 8; --images 4952 --lvis gives the second process the eighth of LVIS). Ends with status
1 above these floors. `--fast` measures with the evaluator used during training, `--send` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pycocotools.mask as coco_masks
import torch
import torch.distributed as dist
from coco_eval import boxes, outline

from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.det.evaluation.results import Arrays, Results, pieces_of
from mimbench.engine.run.ranks import computed_by_first, joined_at_first, patient_group

GIB = 2**30
HEIGHT, WIDTH = 480, 640
FLOORS = {False: (4.0, 0.3), True: (12.0, 0.3)}  # GiB of the first process and of the others, by LVIS
SHAPES = 4096  # different masks: making millions would take longer than measuring them


def truth(options: argparse.Namespace) -> dict[str, Any]:
    """Annotations in COCO's proportions, octagons; for LVIS with what its rules look at."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for image in range(1, options.images + 1):
        kinds = rng.integers(1, options.classes + 1, rng.poisson(options.objects)).tolist()
        for kind, box in zip(kinds, boxes(rng, len(kinds)).tolist(), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": box,
                "area": 0.7 * box[2] * box[3], "iscrowd": 0, "segmentation": [outline(box)],
            })  # fmt: skip
        others = rng.integers(1, options.classes + 1, 20).tolist()
        images.append({
            "id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH,
            "neg_category_ids": sorted(set(others) - set(kinds)), "not_exhaustive_category_ids": kinds[:1],
        })  # fmt: skip
    categories = [{"id": k, "name": str(k), "frequency": "rcf"[k % 3]} for k in range(1, options.classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def found(options: argparse.Namespace, rank: int) -> Iterator[Arrays]:
    """One process's results, image by image: boxes anywhere, masks of `SHAPES` boxes, scores as of a detector."""
    rng = np.random.default_rng(1 + rank)
    drawn = boxes(rng, SHAPES)
    regions = coco_masks.frPyObjects([outline(box) for box in drawn.tolist()], HEIGHT, WIDTH)
    texts = [np.frombuffer(region["counts"], dtype=np.uint8) for region in regions]
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    for image in range(rank, options.images, options.world):
        shape = rng.integers(0, SHAPES, options.each)
        yield Arrays(
            images=np.full(options.each, image, dtype=np.int32),
            categories=rng.integers(0, options.classes, options.each, dtype=np.int32),
            boxes=drawn[shape].astype(np.float32),
            scores=rng.beta(1, 6, options.each).astype(np.float32),
            sizes=np.full((options.each, 2), (HEIGHT, WIDTH), dtype=np.int32),
            lengths=lengths[shape],
            counts=np.concatenate([texts[place] for place in shape.tolist()]),
        )


class Peak:
    """The peak of this process's memory between `start` and `stop`, sampled each 20 ms, in GiB beyond that at start."""

    def __init__(self) -> None:
        self.process, self.before, self.most = psutil.Process(), 0, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.before = self.most = self.process.memory_info().rss
        self.thread.start()

    def stop(self) -> float:
        """Return the growth in GiB."""
        self.ended.set()
        self.thread.join()
        return (self.most - self.before) / GIB

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.process.memory_info().rss)


def work(rank: int, port: int, options: argparse.Namespace, directory: Path) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=options.world)
    group = patient_group()
    peak = Peak()
    peak.start()
    mine = pieces_of(found(options, rank), masks=True)
    own = sum(piece.nbytes for pieces in mine.values() for piece in pieces)
    begun = time.perf_counter()
    joined = joined_at_first(mine, group)
    del mine
    sent = time.perf_counter()
    lines: list[str] = []

    def measure() -> dict[str, float]:
        assert joined is not None
        image_ids, category_ids = (range(1, n + 1) for n in (options.images, options.classes))
        results = Results.made_of(Arrays(**joined), image_ids, category_ids).sorted()
        if options.send:
            lines.append(f"{len(results)} results sent in {sent - begun:.1f} s")
            return {"box_ap": math.nan}
        loaded = time.perf_counter()
        score = CocoMetrics(directory / "truth.json", benchmark="lvis" if options.lvis else "coco")
        read = time.perf_counter()
        metrics = score(results, fast=options.fast)
        measured = time.perf_counter()
        results.write(directory / "predictions.json")
        size = (directory / "predictions.json").stat().st_size
        lines.append(
            f"{len(results)} results of {own / len(results) * options.world:.0f} bytes; sent in {sent - begun:.1f} s, "
            f"ground truth read in {read - loaded:.1f} s, measured in {measured - read:.1f} s, "
            f"{size / GIB:.2f} GiB written in {time.perf_counter() - measured:.1f} s"
        )
        return metrics

    metrics = computed_by_first(measure, group)
    grown = peak.stop()
    floor = FLOORS[options.lvis][min(rank, 1)]
    share = grown if rank == 0 else grown * options.world / 8
    verdict = "ok" if share <= floor else "ABOVE THE FLOOR"
    (directory / f"{rank}.json").write_text(json.dumps(share <= floor))
    said = f"{grown:.2f} GiB" + ("" if rank == 0 else f" (one of {options.world}; one of 8: {share:.2f})")
    print(*lines, f"process {rank}: {said} (floor {floor}: {verdict}); peak in all "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.2f}; box_ap {metrics['box_ap']!r}",
          sep="\n", flush=True)  # fmt: skip


def main() -> int:
    """Start the processes and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--each", type=int, default=100, help="results per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=float, default=7.2, help="objects per image, on average")
    parser.add_argument("--world", type=int, default=2, help="processes")
    parser.add_argument("--lvis", action="store_true", help="LVIS's rules")
    parser.add_argument("--send", action="store_true", help="only make and send the results")
    parser.add_argument("--fast", action="store_true", help="the evaluator used during training")
    options = parser.parse_args()
    with socket.socket() as free, tempfile.TemporaryDirectory() as name:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        directory = Path(name)
        (directory / "truth.json").write_text(json.dumps(truth(options)))
        free.close()
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=work, args=(rank, port, options, directory)) for rank in range(options.world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        verdicts = [directory / f"{rank}.json" for rank in range(options.world)]
        return int(not all(file.exists() and json.loads(file.read_text()) for file in verdicts))


if __name__ == "__main__":
    sys.exit(main())

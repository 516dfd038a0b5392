"""Detect on the validation split with all processes, and measure the detections in the first.

    evaluation = Evaluation(config, split, device)
    metrics = evaluation(model)               # the fast evaluator's, in every process
    metrics = evaluation.of_record()          # pycocotools', of the same detections
    evaluation.results                        # in the first process; the others keep none

Each process detects on its share of the images and sends arrays (50 bytes and its mask for each detection) to the
first. Masks become run lengths in a thread, beside the next forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.batches import ValidationImages, validation_batch
from mimbench.det.data.coco import CocoSplit
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.det.evaluation.results import Arrays, Results, joined, pieces_of, region_arrays
from mimbench.det.evaluation.rle import encode_masks
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.model.roi_heads import Detections
from mimbench.det.model.test_time_augmentation import detections_leaving
from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.run.bar import track
from mimbench.engine.run.behind import Behind
from mimbench.engine.run.precision import evaluating_in
from mimbench.engine.run.process import rank_and_world
from mimbench.engine.run.ranks import computed_by_first, joined_at_first, patient_group

Size = tuple[int, int]  # height, width


class Evaluation:
    """Runs a model on the validation split and keeps the results of the last call, in the first process."""

    def __init__(self, config: MaskRCNNConfig, split: CocoSplit, device: torch.device) -> None:
        """Under torchrun all processes must build one; the first alone reads the ground truth."""
        rank, world = rank_and_world()
        images = ValidationImages(split, config.image, range(rank, len(split), world))
        self.loader = evaluation_loader(images, config.eval_batch, config.compute.workers, validation_batch)
        self.config, self.split, self.device, self.group = config, split, device, patient_group()
        self.results = self._results(joined([], masks=config.heads.masks))
        self._metrics: CocoMetrics | None = None
        if rank == 0:
            masks, benchmark = config.heads.masks, config.benchmark
            self._metrics = CocoMetrics(split.files.annotations, config.single_class, masks=masks, benchmark=benchmark)

    @property
    def metrics(self) -> CocoMetrics:
        """The evaluator, in the first process."""
        assert self._metrics is not None
        return self._metrics

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of the fast evaluator, for the training curves, in every process."""
        assert isinstance(model, MaskRCNN)
        found = joined_at_first(pieces_of(self._detected(model), masks=self.config.heads.masks), self.group)
        if found is not None:
            self.results = self._results(Arrays(**found)).sorted()
        return self._measured(fast=True)

    def of_record(self) -> dict[str, float]:
        """Return the metrics of pycocotools for the same results, in every process."""
        return self._measured(fast=False)

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return `metrics` by the names of the config's protocol: `frozen_12ep_box_ap`."""
        return {self.config.protocol + name: value for name, value in metrics.items()}

    def _measured(self, *, fast: bool) -> dict[str, float]:
        return self.named(computed_by_first(lambda: self.metrics(self.results, fast=fast), self.group))

    def _results(self, arrays: Arrays) -> Results:
        return Results.made_of(arrays, self.split.image_ids.tolist(), self.split.category_ids)

    @torch.no_grad()
    def _detected(self, model: MaskRCNN) -> list[Arrays]:
        """Return this process's detections, image by image."""
        config, masks = self.config, self.config.heads.masks
        with Behind[list[Arrays]]() as behind, evaluating_in(config.evaluate_precision, self.device):
            for images, seen, indices in track(self.loader, "detecting", len(self.loader)):
                sizes = [self.split.size(index) for index in indices]
                wait = detections_leaving(model, move(images, self.device), seen, sizes, config.test_time_augmentation)
                behind.add(partial(_encoded, wait, indices, sizes, masks=masks))
            return [part for parts in behind.results() for part in parts]


def _encoded(
    wait: Callable[[], list[Detections]], indices: Sequence[int], sizes: Sequence[Size], *, masks: bool
) -> list[Arrays]:
    return [arrays_of(one, index, size, masks=masks) for one, index, size in zip(wait(), indices, sizes, strict=True)]


def arrays_of(found: Detections, image: int, size: Size, *, masks: bool) -> Arrays:
    """Return detections in main memory on image number `image` of `size` (height, width) as arrays."""
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1)
    regions = region_arrays(encode_masks(found.masks, found.boxes, size) if masks else [], len(boxes))
    if masks and not len(boxes):
        regions["sizes"] = np.zeros((0, 2), dtype=np.int32)
    return Arrays(
        images=np.full(len(boxes), image, dtype=np.int32),
        categories=found.labels.numpy().astype(np.int32),
        boxes=boxes.numpy(),
        scores=found.scores.numpy().copy(),  # no view that keeps the masks
        **regions,
    )

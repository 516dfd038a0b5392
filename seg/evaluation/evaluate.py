"""Segment a validation split with a model, and keep the results for reports and pictures.

    evaluation = Evaluation(split, config.inference, side, device, workers=2, prefix="")
    metrics = evaluation(model)            # {"miou": ..., "macc": ..., "aacc": ...}, percent
    evaluation.confusion, evaluation.shown, evaluation.worst

Under torchrun each process segments a part of the images, and all processes get the metrics of all images. No image is
counted twice.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.bar import track
from mimbench.engine.run.cores import Workers
from mimbench.engine.run.process import rank_and_world
from mimbench.seg.config import Inference
from mimbench.seg.data.batches import Looked, ValidationViews
from mimbench.seg.data.split import LabelledSplit
from mimbench.seg.evaluation.inference import predict
from mimbench.seg.evaluation.metric import Confusion
from mimbench.seg.model.segmenter import Segmenter

Prediction = NDArray[np.uint8]  # (H, W), classes


class Evaluation:
    """Measures a model on a split when called, and keeps the results of the last call.

    Args:
        split: the split of a data set.
        config: the inference settings.
        side: side of a window, in pixels.
        device: device of the model.
        workers: number of processes that load images.
        prefix: prefix of the metrics' names.
        shown: number of predictions kept for pictures: this many evenly spaced images, and this many of the worst.
        precision: half-precision type of the model; None for single precision.
        predictions: a directory for all predictions, as PNG files with the data set's ids.

    Attributes:
        confusion: the confusion of all images.
        kept: predictions by index in the split, in the first process.
        worst: indices in the split, lowest fraction of correct pixels first.
    """

    def __init__(
        self,
        split: LabelledSplit,
        config: Inference,
        side: int,
        device: torch.device,
        *,
        workers: Workers,
        prefix: str = "",
        shown: int = 0,
        precision: torch.dtype | None = None,
        predictions: Path | None = None,
    ) -> None:
        rank, world = rank_and_world()
        images = ValidationViews(split, config, side, range(rank, len(split), world))
        self.loader = evaluation_loader(images, 1, workers, _only)
        self.split, self.config, self.side, self.device, self.prefix = split, config, side, device, prefix
        self.shown, self.precision, self.predictions, self.world = shown, precision, predictions, world
        self.chosen = evenly(len(split), shown)
        self.confusion = Confusion(len(split.classes))
        self.kept: dict[int, Prediction] = {}
        self.worst: list[int] = []

    def __call__(self, model: Any) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in percent."""
        self.confusion = Confusion(len(self.split.classes), self.device)
        kept: dict[int, Prediction] = {}
        right: dict[int, float] = {}
        for looked in track(self.loader, "segmenting", len(self.loader)):
            predicted, share = self._segment(model, looked)
            if not math.isnan(share):
                right[looked.place] = share
            worst = sorted(right, key=lambda index: right[index])[: self.shown]
            kept[looked.place] = predicted
            kept = {index: one for index, one in kept.items() if index in self.chosen or index in worst}
            if self.predictions is not None:
                self._write(looked.place, predicted)
        self.confusion = self.confusion.gathered()
        self.kept, right = _merged(kept, self.world), _merged(right, self.world)
        self.worst = sorted(right, key=lambda index: (right[index], index))[: self.shown]
        return self.confusion.metrics(self.prefix)

    def _segment(self, model: Segmenter, looked: Looked) -> tuple[Prediction, float]:
        views = [view._replace(image=move(view.image, self.device)) for view in looked.views]
        labels = move(looked.labels, self.device)
        height, width = labels.shape
        with self._autocast():
            predicted = predict(model, views, (height, width), self.config, self.side)
        share = self.confusion.add(predicted, labels)
        return predicted.to(torch.uint8).cpu().numpy(), share

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision)

    def _write(self, index: int, predicted: Prediction) -> None:
        from PIL import Image

        assert self.predictions is not None
        own = predicted + np.uint8(self.split.layout.zero_is_ignored)
        file = self.predictions / self.split.prediction_name(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_with(file, lambda temporary: Image.fromarray(own).save(temporary, "PNG"))


def evenly(images: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices of `images`, including the first and the last."""
    chosen: list[int] = np.linspace(0, images - 1, min(count, images)).round().astype(int).tolist()
    return chosen


def _only(samples: list[Looked]) -> Looked:
    [sample] = samples
    return sample


def _merged(mine: dict[int, Any], world: int) -> dict[int, Any]:
    """Merge the dictionaries of all processes."""
    if world == 1:
        return mine
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}

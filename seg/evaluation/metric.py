"""IoU and accuracy of label maps, as mmsegmentation 1.2.2 defines them: one confusion over the whole set.

Pixels that are ignored in the ground truth count nowhere. IoU of a class is the intersection over the union, its
accuracy the share of its pixels that were found; the means leave out classes of which there are no such pixels (NaN
there). aAcc is the share of all pixels. Counts are exact integers here; mmsegmentation adds them up in single
precision, so that its numbers differ from the eighth digit on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.engine.run.process import summed

IGNORED = 255


class Confusion:
    """How many pixels of each class were predicted to be of each class.

    Attributes:
        counts: int64 (K, K); rows are the ground truth, columns the prediction.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> float:
        """Count the pixels of an image, integers (H, W) each; the share of them that is right, NaN if all are ignored.

        Raises:
            ValueError: if the two differ in size.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"a prediction of {tuple(predicted.shape)} for labels of {tuple(labels.shape)}")
        known = labels != IGNORED
        pairs = labels[known].long() * self.classes + predicted[known].long()
        found = torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)
        self.counts += found
        total = int(found.sum())
        return int(found.diagonal().sum()) / total if total else float("nan")

    def gathered(self) -> Confusion:
        """The sum over all processes."""
        whole = Confusion(self.classes, self.counts.device)
        whole.counts = summed(self.counts)
        return whole

    def iou(self) -> NDArray[np.float64]:
        """IoU of each class, 0..1; NaN of one that is neither there nor predicted."""
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return _ratio(self.counts.diagonal(), union)

    def accuracy(self) -> NDArray[np.float64]:
        """The share of each class's pixels that was found; NaN of one that is not there."""
        return _ratio(self.counts.diagonal(), self.counts.sum(1))

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """mIoU, mAcc and aAcc in percent, named `miou`, `macc` and `aacc` after `prefix`.

        Raises:
            ValueError: if every pixel was ignored.
        """
        if not int(self.counts.sum()):
            raise ValueError("every pixel of the validation label maps is ignored, so that there is nothing to measure")
        total = float(self.counts.diagonal().sum()) / float(self.counts.sum())
        means = {"miou": float(np.nanmean(self.iou())), "macc": float(np.nanmean(self.accuracy())), "aacc": total}
        return {prefix + name: 100 * value for name, value in means.items()}

    def of_each(self, names: Sequence[str]) -> list[dict[str, object]]:
        """Name, IoU and accuracy (percent, None for NaN) and the number of pixels of each class."""
        rows = zip(names, self.iou(), self.accuracy(), self.counts.sum(1).tolist(), strict=True)
        return [{"name": n, "iou": _percent(i), "accuracy": _percent(a), "pixels": pixels} for n, i, a, pixels in rows]


def _ratio(part: Tensor, whole: Tensor) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: NDArray[np.float64] = part.cpu().numpy().astype(np.float64) / whole.cpu().numpy()
    return ratio


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * float(value)

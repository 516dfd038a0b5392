"""IoU and accuracy of label maps as in mmsegmentation 1.2.2: one confusion matrix over the whole set.

Pixels ignored in the ground truth are not counted. The IoU of a class is intersection over union; its accuracy is the
fraction of its pixels that are predicted correctly. A class without such pixels has NaN, and the means exclude it. aAcc
is the fraction of all pixels that are correct. Counts are exact integers here; mmsegmentation sums in single precision,
so its numbers differ from the eighth digit on.
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
    """The confusion matrix: the number of pixels of each class predicted as each class.

    Attributes:
        counts: int64 (K, K); rows are the ground truth, columns the prediction.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> float:
        """Count the pixels of an image, both (H, W); return the fraction that is correct, NaN if all are ignored.

        Raises:
            ValueError: if the two differ in size.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"the prediction has shape {tuple(predicted.shape)}, the labels {tuple(labels.shape)}")
        known = labels != IGNORED
        pairs = labels[known].long() * self.classes + predicted[known].long()
        found = torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)
        self.counts += found
        total = int(found.sum())
        return int(found.diagonal().sum()) / total if total else float("nan")

    def gathered(self) -> Confusion:
        """Return the sum over all processes."""
        whole = Confusion(self.classes, self.counts.device)
        whole.counts = summed(self.counts)
        return whole

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU of each class, 0..1; NaN if a class is neither present nor predicted."""
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return _ratio(self.counts.diagonal(), union)

    def accuracy(self) -> NDArray[np.float64]:
        """Return the fraction of each class's pixels predicted correctly; NaN if a class is not present."""
        return _ratio(self.counts.diagonal(), self.counts.sum(1))

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in percent, named `prefix` plus `miou`, `macc` and `aacc`.

        Raises:
            ValueError: if every pixel was ignored.
        """
        if not int(self.counts.sum()):
            raise ValueError("all pixels of the validation label maps are ignored (255); nothing can be measured")
        total = float(self.counts.diagonal().sum()) / float(self.counts.sum())
        means = {"miou": float(np.nanmean(self.iou())), "macc": float(np.nanmean(self.accuracy())), "aacc": total}
        return {prefix + name: 100 * value for name, value in means.items()}

    def of_each(self, names: Sequence[str]) -> list[dict[str, object]]:
        """Return name, IoU and accuracy (percent, None for NaN) and the number of pixels of each class."""
        rows = zip(names, self.iou(), self.accuracy(), self.counts.sum(1).tolist(), strict=True)
        return [{"name": n, "iou": _percent(i), "accuracy": _percent(a), "pixels": pixels} for n, i, a, pixels in rows]


def _ratio(part: Tensor, whole: Tensor) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: NDArray[np.float64] = part.cpu().numpy().astype(np.float64) / whole.cpu().numpy()
    return ratio


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * float(value)

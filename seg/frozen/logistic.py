"""Logistic regression of frozen patch features: `mimbench run seg/logistic_capi checkpoint=PATH data=ade20k`.

CAPI's protocol. Images and label maps are resized to a square. A patch's class is the most frequent label of its
pixels; training patches whose class is ignored are left out. The penalty is chosen on a tenth of the training images;
then all training images are fitted. A patch's prediction stands for all its pixels. The metric is
`seg_logistic_miou`, CAPI's own mean IoU at the square's size (`seg.frozen.neighbours.capi_miou`). Do not compare it
with ADE20K's usual mIoU.

CAPI fits with cuML; this is the same objective by torch's L-BFGS, in single precision. Use one process; several would
repeat the same work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimbench.engine.run.bar import track
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.logistic import logistic_regression
from mimbench.seg.config import PatchLogisticConfig
from mimbench.seg.frozen.neighbours import capi_miou, learnable
from mimbench.seg.frozen.patch_outcome import Chosen, outcome
from mimbench.seg.frozen.patches import Patches, divided

# N training patch, M other patch, P pixel of a patch, D feature


def run(config: PatchLogisticConfig, run: RunDir) -> Outcome:
    """Measure `seg_logistic_miou`, in percent, with the penalty that is best on held-out training images.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if one of them is invalid, or there are too few training images.
    """

    def choose(train: Patches, val: Patches, images: int, ignore: tuple[int, ...]) -> Chosen:
        best, tried, miou = best_strength(config, train, val, images, ignore)
        return Chosen({"C": best}, {f"C={strength:.3g}": value for strength, value in tried.items()}, miou)

    return outcome(config, "seg_logistic_miou", "logistic regression of patches", choose)


def best_strength(
    config: PatchLogisticConfig, train: Patches, val: Patches, images: int, ignore: tuple[int, ...]
) -> tuple[float, dict[float, float], float]:
    """Return the C chosen on held-out images, the mIoU of each C there, and the chosen one's on `val`.

    Raises:
        ValueError: if there are fewer than two training images, or no training patch with a class.
    """
    rest, apart, train, val = divided(config, train, val, images)
    tried = {
        strength: capi_miou(_predicted(config, rest, apart, strength, ignore), apart.labels, ignore)
        for strength in track(config.strengths, "fitting", len(config.strengths))
    }
    chosen = max(tried, key=lambda strength: tried[strength])
    return chosen, tried, capi_miou(_predicted(config, train, val, chosen, ignore), val.labels, ignore)


def _predicted(
    config: PatchLogisticConfig, train: Patches, query: Patches, strength: float, ignore: tuple[int, ...]
) -> Tensor:
    """Return labels (M, P) of the query's patches, each the same at all its pixels."""
    kept = learnable(train.labels, ignore)
    if not kept.any():
        raise ValueError("every training patch is mostly ignored, so there is nothing to fit")
    ids, label_N = train.labels[kept].mode(dim=1).values.unique(return_inverse=True)
    weight, bias = logistic_regression(
        train.features[kept], label_N, len(ids), strength, iterations=config.iterations, tolerance=config.tolerance
    )
    places_M = torch.cat([(rows @ weight + bias).argmax(1) for rows in query.features.split(65_536)])
    return ids[places_M][:, None].expand_as(query.labels)

"""k-NN over frozen patch features: `mimbench run seg/knn_capi checkpoint=PATH data=ade20k`. Nothing is trained.

CAPI's protocol. Images and label maps are resized to a square. The neighbours are the patches of the training images,
without those whose pixels are mostly ignored. The number of neighbours and the distance are chosen on a tenth of the
training images; then all training images are searched. The metric is `seg_knn_miou`, CAPI's own mean IoU at the
square's size (`seg.frozen.neighbours.capi_miou`). Do not compare it with ADE20K's usual mIoU.

Use one process; several would repeat the same work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.seg.config import PatchKnnConfig
from mimbench.seg.frozen.neighbours import Distance, capi_miou, learnable, nearest_patches, vote
from mimbench.seg.frozen.patch_outcome import Chosen, outcome
from mimbench.seg.frozen.patches import Patches, divided


class Setting(NamedTuple):
    """A number of neighbours and a distance."""

    k: int
    distance: Distance


def run(config: PatchKnnConfig, run: RunDir) -> Outcome:
    """Measure `seg_knn_miou`, in percent, with the setting that is best on held-out training images.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if one of them is invalid, or there are too few training images.
    """

    def choose(train: Patches, val: Patches, images: int, ignore: tuple[int, ...]) -> Chosen:
        best, tried, miou = best_of(config, train, val, images, ignore)
        names = {f"k={setting.k} {setting.distance}": value for setting, value in tried.items()}
        return Chosen({"k": best.k, "distance": best.distance}, names, miou)

    return outcome(config, "seg_knn_miou", "k-NN over patches", choose)


def best_of(
    config: PatchKnnConfig, train: Patches, val: Patches, images: int, ignore: tuple[int, ...]
) -> tuple[Setting, dict[Setting, float], float]:
    """Return the setting chosen on held-out images, the mIoU of each setting there, and the chosen one's on `val`.

    Features are standardised with the statistics of the images that are not held out.

    Raises:
        ValueError: if there are fewer than two training images.
    """
    rest, apart, train, val = divided(config, train, val, images)
    tried: dict[Setting, float] = {}
    for setting, made in _voted(apart, rest, config.neighbours, config.distances, ignore):
        tried[setting] = capi_miou(made, apart.labels, ignore)
    chosen = max(tried, key=lambda setting: tried[setting])
    [(_, made)] = _voted(val, train, (chosen.k,), (chosen.distance,), ignore)
    return chosen, tried, capi_miou(made, val.labels, ignore)


def _voted(
    query: Patches,
    train: Patches,
    neighbours: tuple[int, ...],
    distances: tuple[Distance, ...],
    ignore: tuple[int, ...],
) -> Iterator[tuple[Setting, Tensor]]:
    """Yield each setting and its labels (M, P), from one search."""
    kept = learnable(train.labels, ignore)
    features, labels = train.features[kept], train.labels[kept]
    if len(features) < max(neighbours):
        raise ValueError(
            f"neighbours={max(neighbours)} exceeds the {len(features)} training patches; lower neighbours="
        )
    found = nearest_patches(query.features, features, max(neighbours), distances)
    for distance in distances:
        for k in neighbours:
            yield Setting(k, distance), torch.cat([vote(labels, part[:, :k]) for part in found[distance].split(4096)])

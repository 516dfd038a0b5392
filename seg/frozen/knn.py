"""k-NN over frozen patch features: `mimbench run seg/knn_capi checkpoint=PATH data=ade20k`. Nothing is trained.

CAPI's protocol. Images and label maps are resized to a square. The neighbours are the patches of the training images,
without those whose pixels are mostly ignored. The number of neighbours and the distance are chosen on a tenth of the
training images; then all training images are searched. The metric is `seg_knn_miou`, CAPI's own mean IoU at the
square's size (`seg.frozen.neighbours.capi_miou`). Do not compare it with ADE20K's usual mIoU.

Use one process; several would repeat the same work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimbench.engine.data.datasets import locate
from mimbench.engine.run.process import device_name, peak_memory, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.seg.config import PatchKnnConfig
from mimbench.seg.data.split import open_split
from mimbench.seg.frozen.encoder import Blocks, frozen_encoder
from mimbench.seg.frozen.neighbours import Distance, capi_miou, learnable, nearest_patches, vote
from mimbench.seg.frozen.patches import Patches, divided, ignored_ids, patches_of
from mimbench.seg.upernet import data_facts


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
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    splits = {split: open_split(directory, split) for split in ("train", "val")}
    frozen = frozen_encoder(config, Blocks(1), "checkpoint", device)
    train, val = (patches_of(config, splits[split], frozen) for split in ("train", "val"))
    ignore = ignored_ids(config, splits["val"])
    chosen, tried, miou = best_of(config, train, val, len(splits["train"]), ignore)
    facts = {
        "protocol": "k-NN over patches, CAPI's, with its own mIoU at the square's size",
        **frozen.facts,
        "k": chosen.k,
        "distance": chosen.distance,
        "held_out_miou": {f"k={setting.k} {setting.distance}": 100 * value for setting, value in tried.items()},
        "ignore": list(ignore),
        "image": config.image,
        "seed": config.seed,
        "train_images": len(splits["train"]),
        **data_facts(splits["val"]),
    }
    return Outcome(
        metrics={"seg_knn_miou": 100 * miou},
        facts=facts,
        peak_memory=peak_memory(device),
        device=device_name(device),
        family=frozen.family,
    )


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
    for distance in config.distances:
        voted = _voted(apart, rest, config.neighbours, distance, ignore)
        tried |= {Setting(k, distance): capi_miou(made, apart.labels, ignore) for k, made in voted.items()}
    chosen = max(tried, key=lambda setting: tried[setting])
    [made] = _voted(val, train, (chosen.k,), chosen.distance, ignore).values()
    return chosen, tried, capi_miou(made, val.labels, ignore)


def _voted(
    query: Patches, train: Patches, neighbours: tuple[int, ...], distance: Distance, ignore: tuple[int, ...]
) -> dict[int, Tensor]:
    """Return labels (M, P) for each k, from one search."""
    kept = learnable(train.labels, ignore)
    features, labels = train.features[kept], train.labels[kept]
    if len(features) < max(neighbours):
        raise ValueError(
            f"neighbours={max(neighbours)} exceeds the {len(features)} training patches; lower neighbours="
        )
    found = nearest_patches(query.features, features, max(neighbours), distance)
    return {k: torch.cat([vote(labels, part[:, :k]) for part in found.split(4096)]) for k in neighbours}

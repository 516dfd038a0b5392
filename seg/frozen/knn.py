"""k-NN over frozen patch features: `mimbench run seg/knn_capi checkpoint=PATH data=ade20k`. Nothing is trained.

CAPI's protocol. Images and label maps are resized to a square. The neighbours are the patches of the training images,
without those whose pixels are mostly ignored. The number of neighbours and the distance are chosen on a tenth of the
training images; then all training images are searched. The metric is `seg_knn_miou`, CAPI's own mean IoU at the
square's size (`seg.frozen.neighbours.capi_miou`). Do not compare it with ADE20K's usual mIoU.

Use one process; several would repeat the same work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import normalise
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import device_name, peak_memory, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.seg.config import PatchKnnConfig
from mimbench.seg.data.split import LabelledSplit, open_split
from mimbench.seg.frozen.encoder import Blocks, frozen_encoder
from mimbench.seg.frozen.neighbours import Distance, capi_miou, learnable, nearest_patches, vote
from mimbench.seg.model.linear import FrozenEncoder
from mimbench.seg.model.segmenter import RGB
from mimbench.seg.upernet import data_facts


class Squashed(Dataset[tuple[Tensor, Tensor]]):
    """Images and raw label maps as squares: (uint8 (3, S, S), uint8 (S, S)), by Pillow, bicubic and nearest."""

    def __init__(self, split: LabelledSplit, side: int) -> None:
        self.split, self.side = split, side

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        square = (self.side, self.side)
        image = Image.fromarray(np.ascontiguousarray(self.split.image(index)[..., ::-1]))
        pixels = np.array(image.resize(square, Image.Resampling.BICUBIC))
        labels = Image.fromarray(self.split.raw_labels(index)).resize(square, Image.Resampling.NEAREST)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(np.array(labels))


class Patches(NamedTuple):
    """The patches of some images, one after another."""

    features: Tensor  # (N, D)
    labels: Tensor  # uint8 (N, P), raw ids
    each: int  # patches of one image

    def of(self, images: Tensor) -> Patches:
        """Return the patches of the images at indices (I,)."""
        rows = (images[:, None] * self.each + torch.arange(self.each)).flatten().to(self.features.device)
        return Patches(self.features[rows], self.labels[rows], self.each)


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
    encoder = frozen.encoder
    if config.image % encoder.patch:
        raise ValueError(f"image={config.image} must be a multiple of the encoder's patch={encoder.patch}")
    train, val = (_patches(config, splits[split], encoder, frozen.mean, frozen.std) for split in ("train", "val"))
    ignore = config.ignore or ((0, 255) if splits["val"].layout.zero_is_ignored else (255,))
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
    if images < 2:
        raise ValueError("k-NN over patches needs at least two training images: some are held out")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(config.seed))
    held = max(round(images * config.held_out), 1)
    rest = train.of(order[held:].sort().values)
    mean_D, deviation_D = _statistics(rest.features)
    train, val = (part._replace(features=(part.features - mean_D) / deviation_D) for part in (train, val))
    apart, rest = train.of(order[:held].sort().values), train.of(order[held:].sort().values)
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


def _statistics(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation of each feature; the deviation of a constant feature is set to one."""
    mean_D, deviation_D = features_ND.mean(0), features_ND.std(0, unbiased=False)
    return mean_D, deviation_D.where(deviation_D > 0, torch.ones_like(deviation_D))


@torch.no_grad()
def _patches(config: PatchKnnConfig, split: LabelledSplit, encoder: FrozenEncoder, mean: RGB, std: RGB) -> Patches:
    """Compute features and labels of all patches of a split, on the encoder's device."""
    features, labels, grid, patch = [], [], config.image // encoder.patch, encoder.patch
    loader = evaluation_loader(Squashed(split, config.image), config.eval_batch, config.compute.workers)
    for images, maps in track(loader, f"encoding {split.split} images", len(loader)):
        encoded = encoder(normalise(move(images, encoder.device), mean, std))
        features.append(encoded.flatten(2).mT.flatten(0, 1))
        cells = maps.view(-1, grid, patch, grid, patch).transpose(2, 3).reshape(-1, patch * patch)
        labels.append(move(cells, encoder.device))
    return Patches(torch.cat(features), torch.cat(labels), grid * grid)

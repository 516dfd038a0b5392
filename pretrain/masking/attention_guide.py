"""Renew AMT's weight maps during a training, and add weights to every batch.

    guide = AttentionGuide(config, run, step, folder)
    batches = Batches(..., prepare=guide.weigh)
    guide.before_step(index, batches)        # renews the maps at the start of the epochs that the config names
    extra_state={"weight_maps": guide.maps}  # checkpoints store which maps are current

The current encoder, in eval mode, computes a map from the whole image, resized to the pretraining size without keeping
its aspect. Each process computes the maps of its share of the images, in order. Weights are looked up when the training
uses a batch, not when it is loaded: batches loaded before a renewal get the new weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.engine.data.batches import Batches, evaluation_loader, move
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.images import Box, ImageFolder, Sample, cut
from mimbench.engine.run.process import autocast_dtype
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.sharding import whole
from mimbench.engine.training.state import steps_saved
from mimbench.pretrain.config import AttentionMasking, Pretrain
from mimbench.pretrain.masking.attention import as_published, class_attention, follow_crops, weight_map
from mimbench.pretrain.masking.frequency import with_frequencies
from mimbench.pretrain.masking.weight_maps import Subject, WeightMaps
from mimbench.pretrain.step import Step, Weighed

log = logging.getLogger(__name__)

# B image, N patch, h x w the grid of patches


class AttentionGuide:
    """The maps of one training, their renewal, and the weights of its batches.

    Args:
        config: of the run; its masking is an `AttentionMasking`.
        run: stores the maps in `weight_maps/`.
        step: holds the method whose attention defines the maps.
        folder: the training images.
    """

    def __init__(self, config: Pretrain, run: RunDir, step: Step, folder: ImageFolder) -> None:
        assert isinstance(config.masking, AttentionMasking)
        self.config, self.masking, self.run = config, config.masking, run
        self.step, self.folder = step, folder
        self.schedule = config.masking.schedule(config.epochs)
        label = config.masking.label
        self.maps = WeightMaps(run.path / "weight_maps", Subject.of(folder, step.grid), label)
        if config.masking.freq_mode != "none":
            log.warning(
                "masking.freq_mode=%s is our unverified reconstruction of FAMT's frequency branch: call the results "
                "%s, not FAMT",
                config.masking.freq_mode,
                label,
            )

    def before_step(self, index: int, batches: Batches) -> None:
        """Renew the maps if optimiser step `index` (0-based) starts an epoch of `batches` that needs new ones."""
        epoch, within = divmod(index * batches.accumulate, len(batches))
        wanted = self.schedule.in_force(epoch)
        if wanted is None:
            return
        if (within == 0 and wanted == epoch) or self.maps.epoch is None:
            self._renew(wanted, batches)

    def _renew(self, epoch: int, batches: Batches) -> None:
        started = time.perf_counter()
        log.info("computing weight maps of %d images for epoch %d (%s)", len(self.folder), epoch, self.masking.label)
        with whole(self.step):
            self.maps.write(epoch, self._made(batches.batch))
        self.maps.prune(self._oldest_needed(batches))
        log.info("computed weight maps in %.1f s", time.perf_counter() - started)

    def _oldest_needed(self, batches: Batches) -> int | None:
        """Return the epoch of the maps that a restart from the oldest remaining checkpoint needs.

        None if there is no checkpoint: the first may still be being written, and needs earlier maps.
        """
        steps = steps_saved(self.run.checkpoints)
        if not steps:
            return None
        last = (min(steps) - 1) * batches.accumulate  # micro-batch before that checkpoint
        return self.schedule.in_force(last // len(batches))

    @torch.no_grad()
    def _made(self, batch: int) -> Iterator[Tensor]:
        """Yield the maps (B, h, w) of this process's share of the images, in order."""
        training, device = self.step.method.training, self.step.mean.device
        whole = WholeImages(self.folder, self.maps.share(), self.config.encoder.image)
        self.step.method.eval()
        try:
            for images in evaluation_loader(whole, batch, self.config.compute.workers):
                yield self.weights(move(images, device)).unflatten(1, self.step.grid)
        finally:
            self.step.method.train(training)

    def weights(self, images: Tensor) -> Tensor:
        """Return weights (B, N) of the patches of uint8 images (B, 3, H, W) of the pretraining size, by the encoder."""
        dtype = autocast_dtype(self.config.compute, images.device)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            return with_frequencies(
                self.step.normalised(images), self._attend, self.config.encoder.patch, self.masking
            ).float()

    def _attend(self, images: Tensor) -> Tensor:
        return weight_map(class_attention(self.step.method, images))

    def weigh(self, sample: Sample) -> Weighed | Sample:
        """Return a batch on the CPU with the weights (B, N) of its patches; unchanged while there are no maps."""
        if self.maps.epoch is None:
            return sample
        follow = as_published if self.masking.crop_mode == "original" else follow_crops
        weights_BN = follow(self.maps[torch.as_tensor(sample.place)], sample.crop)
        return Weighed(sample, weights_BN.pin_memory() if torch.cuda.is_available() else weights_BN)


class WholeImages(Dataset[Tensor]):
    """Some images of a folder, each resized to a square of `side` pixels (bilinear): uint8 (3, side, side).

    With the folder's `decoder="pil"` Pillow resizes, as in the authors' code. An image that cannot be decoded becomes
    black; no training uses its map.
    """

    def __init__(self, folder: ImageFolder, places: range, side: int) -> None:
        self.folder, self.places, self.side = folder, places, side

    def __len__(self) -> int:
        return len(self.places)

    def image_name(self, index: int) -> str:
        """Return the file of item `index`."""
        return self.folder.image_name(self.places[index])

    def __getitem__(self, index: int) -> Tensor:
        try:
            image, _ = self.folder[self.places[index]]
        except UnfitError:
            return torch.zeros(3, self.side, self.side, dtype=torch.uint8)
        whole = Box(0, 0, image.shape[1], image.shape[2], flip=False)
        return cut(image, whole, self.side, self.folder.decoder, "bilinear")

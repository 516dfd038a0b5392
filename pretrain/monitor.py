"""Measure the encoder during a pretraining: does it learn, and do its features keep their rank?

    monitor = Monitor(config, step, train, val)
    monitor.measure()     -> {"probe_knn": 41.2, "feature_rank": 213.5}

    probe_knn       top-1 (%) of 20-nearest-neighbour votes, for some validation images among some training images
    feature_rank    RankMe (arXiv 2210.02885): the effective rank of the features of those training images

Features are the mean of the patch tokens, as in an evaluation of an `encoder.safetensors` written at this moment. The
numbers show whether a run learns, and compare runs of the same settings. They differ from the evaluations' k-NN, which
uses all training images. Measuring does not change the training. Each process encodes its share of the images, in the
batches of a single process; all of them measure.
"""

from __future__ import annotations

import copy
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.data.batches import evaluation_loader
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.images import ImageFolder, centre_crop
from mimbench.engine.run.process import autocast_dtype, part_of_rank, summed
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.step import Step

log = logging.getLogger(__name__)

# M training images, Q validation images, D width, S side of an image

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's values
SMALLEST = 1e-7  # RankMe's epsilon
AT_ONCE = 64  # images encoded at a time


class Monitor:
    """Measures the encoder of a training on images spread over the classes.

    Args:
        config: of the run; `monitor.images` training images are used, and a quarter as many validation images.
        step: holds the method in training.
        train, val: the sources of the images.
    """

    def __init__(self, config: Pretrain, step: Step, train: ImageFolder, val: ImageFolder) -> None:
        self.config, self.step = config, step
        self.train = Squares(train, config.monitor.images, config.encoder.image)
        self.val = Squares(val, -(-config.monitor.images // 4), config.encoder.image)
        self.classes = len(train.classes)

    def measure(self) -> dict[str, float]:
        """Return `feature_rank`, and `probe_knn` if there are several classes.

        Empty if `monitor.images` is 0, or if a feature is not finite: a measurement never ends a training.
        """
        if not len(self.train):
            return {}
        encoder = encoder_of(self.step)
        parts = (self.train, self.val) if self.classes > 1 else (self.train,)
        measured = [self._features(encoder, part) for part in parts]
        if not all(features.isfinite().all() for features, _ in measured):
            log.warning(
                "the encoder's features overflow with compute.precision=%s: feature_rank and probe_knn are left out",
                self.config.compute.precision,
            )
            return {}
        (train_MD, label_M), *val = measured
        found = {"feature_rank": feature_rank(train_MD)}
        for val_QD, label_Q in val:
            found["probe_knn"] = neighbours_top1(val_QD, label_Q, train_MD, label_M, self.classes)
        return found

    @torch.no_grad()
    def _features(self, encoder: VisionTransformer, images: Squares) -> tuple[Tensor, Tensor]:
        """Return features (M, D), float32, and labels (M,), on the device, in every process."""
        device, compute = self.step.mean.device, self.config.compute
        dtype = autocast_dtype(compute, device)
        features_MD = torch.zeros(len(images), encoder.width, device=device)
        label_M = torch.zeros(len(images), dtype=torch.int64, device=device)
        batches = part_of_rank(-(-len(images) // AT_ONCE))
        share = images.part(slice(batches.start * AT_ONCE, batches.stop * AT_ONCE))
        start = batches.start * AT_ONCE
        for batch, label in evaluation_loader(share, AT_ONCE, compute.workers) if batches else ():
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                features = encoder(self.step.normalised(batch.to(device))).pooled
            here, start = slice(start, start + len(batch)), start + len(batch)
            features_MD[here], label_M[here] = features, label.to(device)
        return summed(features_MD), summed(label_M)


class Squares(Dataset[tuple[Tensor, int]]):
    """Up to `number` images evenly spread over a folder's classes: (uint8 central square (3, side, side), label).

    An image that cannot be decoded is replaced by the next readable one.
    """

    def __init__(self, folder: ImageFolder, number: int, side: int) -> None:
        number = min(number, len(folder))
        self.folder, self.side = folder, side
        self.places = [(2 * place + 1) * len(folder) // (2 * number) for place in range(number)]

    def part(self, places: slice) -> Squares:
        """Return some of the images."""
        part = copy.copy(self)
        part.places = self.places[places]
        return part

    def __len__(self) -> int:
        return len(self.places)

    def image_name(self, number: int) -> str:
        """Return the file of item `number`, before any replacement."""
        return self.folder.image_name(self.places[number])

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        for ahead in range(len(self.folder)):
            try:
                image, label = self.folder[(self.places[number] + ahead) % len(self.folder)]
            except UnfitError:
                continue
            return centre_crop(image, self.side, self.side), label
        raise ValueError(f"{self.folder.root}: none of the {self.folder.split} images can be decoded")


def encoder_of(step: Step) -> VisionTransformer:
    """Return the encoder that would be written now, in eval mode. It shares the method's weights."""
    method = step.method
    encoder = VisionTransformer(method.shape, method.final_norm, traits=method.traits)
    state = method.encoder_state()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()}, assign=True)
    return encoder.to(step.mean.device).requires_grad_(False).eval()


def feature_rank(features_MD: Tensor) -> float:
    """Return RankMe: exp of the entropy of the singular values, from 1 to min(M, D)."""
    values = torch.linalg.svdvals(features_MD.double())
    share = values / values.sum().clamp_min(SMALLEST) + SMALLEST
    return float((-(share * share.log()).sum()).exp())


def neighbours_top1(query_QD: Tensor, answer_Q: Tensor, train_MD: Tensor, label_M: Tensor, classes: int) -> float:
    """Return the percentage of queries whose nearest training features (cosine) vote for the right class."""
    similarity_QM = F.normalize(query_QD, dim=1) @ F.normalize(train_MD, dim=1).T
    similarity_QK, index_QK = similarity_QM.topk(min(NEIGHBOURS, len(train_MD)))
    votes_QC = similarity_QK.new_zeros(len(query_QD), classes)
    votes_QC.scatter_add_(1, label_M[index_QK], ((similarity_QK - 1) / TEMPERATURE).exp())
    return float(100 * (votes_QC.argmax(1) == answer_Q).double().mean())

"""How a pretraining is doing while it goes on: is the encoder learning something, and is it still using all of itself?

    monitor = Monitor(config, step, train, val)
    monitor.measure()     -> {"probe_knn": 41.2, "feature_rank": 213.5}

    probe_knn       top-1 (%) of a vote of 20 nearest neighbours: some validation images among some training images
    feature_rank    RankMe (arXiv 2210.02885): how many directions the features of those training images really use

Features are what an evaluation of this moment's `encoder.safetensors` would see: the mean of the patch tokens. The
numbers tell a run that learns from one that does not, and two runs with the same settings from each other; they are not
the k-NN of the evaluations, which compares with all training images. They change nothing of the training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.data.batches import evaluation_loader
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.images import ImageFolder, centre_crop
from mimbench.engine.run.process import autocast_dtype
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.step import Step

# M training images, Q validation images, D width, S side of an image

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as DINO has them
SMALLEST = 1e-7  # RankMe's epsilon
AT_ONCE = 64  # images encoded at a time


class Monitor:
    """Measures the encoder of a training, on images spread over the classes.

    Args:
        config: of the run: `monitor.images` training images are looked at, and a quarter as many validation images.
        step: has the method that is being trained.
        train, val: where the images are taken from.
    """

    def __init__(self, config: Pretrain, step: Step, train: ImageFolder, val: ImageFolder) -> None:
        self.config, self.step = config, step
        self.train = Squares(train, config.monitor.images, config.encoder.image)
        self.val = Squares(val, -(-config.monitor.images // 4), config.encoder.image)
        self.classes = len(train.classes)

    def measure(self) -> dict[str, float]:
        """`feature_rank`, and `probe_knn` where there are classes to tell apart; nothing if no images are wanted."""
        if not len(self.train):
            return {}
        encoder = encoder_of(self.step)
        train_MD, label_M = self._features(encoder, self.train)
        found = {"feature_rank": feature_rank(train_MD)}
        if self.classes > 1:
            val_QD, label_Q = self._features(encoder, self.val)
            found["probe_knn"] = neighbours_top1(val_QD, label_Q, train_MD, label_M, self.classes)
        return found

    @torch.no_grad()
    def _features(self, encoder: VisionTransformer, images: Squares) -> tuple[Tensor, Tensor]:
        """Features (M, D), float32, and labels (M,), on the device."""
        device, compute = self.step.mean.device, self.config.compute
        dtype = autocast_dtype(compute, device)
        features, labels = [], []
        for batch, label in evaluation_loader(images, AT_ONCE, compute.workers):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                features.append(encoder(self.step.normalised(batch.to(device))).pooled.float())
            labels.append(label)
        return torch.cat(features), torch.cat(labels).to(device)


class Squares(Dataset[tuple[Tensor, int]]):
    """Up to `number` images evenly spread over a folder's classes: (uint8 central square (3, side, side), label).

    In place of one that cannot be decoded comes the next that can.
    """

    def __init__(self, folder: ImageFolder, number: int, side: int) -> None:
        number = min(number, len(folder))
        self.folder, self.side = folder, side
        self.places = [(2 * place + 1) * len(folder) // (2 * number) for place in range(number)]

    def __len__(self) -> int:
        return len(self.places)

    def image_name(self, number: int) -> str:
        """The file of item `number`, or the one before those that come in its place."""
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
    """The encoder that a file written now would hold, in eval mode. Its weights are the method's own, not copies."""
    method = step.method
    encoder = VisionTransformer(method.shape, method.final_norm, traits=method.traits)
    state = method.encoder_state()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()}, assign=True)
    return encoder.to(step.mean.device).requires_grad_(False).eval()


def feature_rank(features_MD: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values, from 1 to min(M, D)."""
    values = torch.linalg.svdvals(features_MD.double())
    share = values / values.sum().clamp_min(SMALLEST) + SMALLEST
    return float((-(share * share.log()).sum()).exp())


def neighbours_top1(query_QD: Tensor, answer_Q: Tensor, train_MD: Tensor, label_M: Tensor, classes: int) -> float:
    """Percent of the queries whose nearest training features (cosine) vote for the right class."""
    similarity_QM = F.normalize(query_QD, dim=1) @ F.normalize(train_MD, dim=1).T
    similarity_QK, index_QK = similarity_QM.topk(min(NEIGHBOURS, len(train_MD)))
    votes_QC = similarity_QK.new_zeros(len(query_QD), classes)
    votes_QC.scatter_add_(1, label_M[index_QK], ((similarity_QK - 1) / TEMPERATURE).exp())
    return float(100 * (votes_QC.argmax(1) == answer_Q).double().mean())

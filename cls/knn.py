"""k-NN: how well do neighbours in feature space share a class, with nothing trained.

    mimbench run cls/knn checkpoint=encoder.safetensors data=imagenet

Features of both splits are computed once, without augmentation, and scaled to unit length. Each validation image takes
the k training images of greatest cosine similarity s, and they vote for their class with weight exp(s / temperature),
as DINO does it. One pass serves every k. Similarities are computed a block at a time and only the best are kept, so
memory does not grow with the product of the two splits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cls.config import Knn
from cls.data import Splits, open_splits, resized_side
from cls.features import FrozenEncoder, describe, encoder_facts, features_of, frozen_encoder
from engine.process import device_name, peak_memory, setup_process
from engine.result import Outcome
from engine.rundir import RunDir

# Q query (validation) images, N training images, K neighbours, C classes, D features

QUERIES = 1024  # queries compared at a time
TRAINS = 16_384  # with this many training images: 64 MiB of similarities


def nearest(query_QD: Tensor, train_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` rows of `train_ND` of greatest inner product with each query: values and indices (Q, K), best first.

    There must be `k` rows.
    """
    assert k <= len(train_ND)
    found = [_nearest_of_block(block_QD, train_ND, k) for block_QD in query_QD.split(QUERIES)]
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def _nearest_of_block(query_QD: Tensor, train_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` for queries few enough to be held against one block of training images."""
    best_QK = query_QD.new_empty(len(query_QD), 0)
    index_QK = torch.empty(len(query_QD), 0, dtype=torch.long, device=query_QD.device)
    for start in range(0, len(train_ND), TRAINS):
        similarity = query_QD @ train_ND[start : start + TRAINS].T
        value, index = similarity.topk(min(k, similarity.shape[1]))
        value, index = torch.cat([best_QK, value], 1), torch.cat([index_QK, index + start], 1)
        best_QK, order = value.topk(min(k, value.shape[1]))
        index_QK = index.gather(1, order)
    return best_QK, index_QK


def vote(
    similarity_QK: Tensor, label_QK: Tensor, classes: int, neighbours: Sequence[int], temperature: float
) -> dict[int, Tensor]:
    """The predicted class (Q,) for each k of `neighbours`; neighbours come best first.

    Votes are cumulative, so that every neighbour is counted once whatever the number of ks.
    """
    weight_QK = ((similarity_QK - 1) / temperature).exp()  # -1: the same votes, and no overflow
    votes_QC = weight_QK.new_zeros(len(weight_QK), classes)
    predictions, counted = {}, 0
    for k in sorted(neighbours):
        votes_QC.scatter_add_(1, label_QK[:, counted:k], weight_QK[:, counted:k])
        predictions[k], counted = votes_QC.argmax(1), k
    return predictions


def classify(
    query_QD: Tensor,
    train_ND: Tensor,
    label_N: Tensor,
    *,
    classes: int,
    neighbours: Sequence[int],
    temperature: float,
) -> dict[int, Tensor]:
    """Predicted classes (Q,) by k-NN for each k of `neighbours`. Features need not be of unit length."""
    similarity_QK, index_QK = nearest(F.normalize(query_QD, dim=1), F.normalize(train_ND, dim=1), max(neighbours))
    return vote(similarity_QK, label_N[index_QK], classes, neighbours, temperature)


def run(config: Knn, run: RunDir) -> Outcome:
    """Measure: `knn_top1` at `config.k`, and `knn_top1_k10` and so on for each of `config.neighbours`, in percent.

    Nothing is written to `run`: what is asked for again is computed again.

    Raises:
        FileNotFoundError: if the data set or the checkpoint is not there.
        ValueError: if either is not what it should be, or there are too few training images.
    """
    device = setup_process(config.compute, config.seed)
    encoder = frozen_encoder(config, device)
    splits = open_splits(config.data)
    require_enough(config, len(splits.train))
    started = time.perf_counter()
    train, val = (
        features_of(encoder, split, config.image, config.eval_crop, config.compute.workers)
        for split in (splits.train, splits.val)
    )
    seconds = time.perf_counter() - started
    return Outcome(
        metrics=metrics(config, train, val, splits.classes),
        facts=facts(config, encoder, splits),
        images_per_second=(len(splits.train) + len(splits.val)) / seconds,
        peak_memory=peak_memory(device),
        device=device_name(device),
        family=encoder.family,
    )


def require_enough(config: Knn, images: int) -> None:
    """There are as many training images as neighbours are asked for.

    Raises:
        ValueError: if there are not; naming the ks that can be had.
    """
    if max(config.neighbours) > images:
        fitting = [k for k in config.neighbours if k <= images] or [images]
        raise ValueError(
            f"{max(config.neighbours)} neighbours of {images} training images cannot be had; "
            f"take neighbours={fitting} k={config.k if config.k in fitting else fitting[-1]}"
        )


def metrics(config: Knn, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int) -> dict[str, float]:
    """Accuracies in percent, from features and labels of both splits."""
    predictions = classify(
        val[0], *train, classes=classes, neighbours=config.neighbours, temperature=config.temperature
    )
    top1 = {k: 100 * (predicted == val[1]).sum().item() / len(val[1]) for k, predicted in predictions.items()}
    return {"knn_top1": top1[config.k], **{f"knn_top1_k{k}": value for k, value in top1.items()}}


def facts(config: Knn, encoder: FrozenEncoder, splits: Splits) -> dict[str, Any]:
    """What of the protocol changes the numbers."""
    return {
        "protocol": f"k-NN, cosine similarity; knn_top1 is k={config.k}",
        "k": config.k,
        "neighbours": list(config.neighbours),
        "temperature": config.temperature,
        "feature": describe(config, encoder.info),
        "pool": config.pool,
        "norm": config.norm,
        "image": config.image,
        "eval_resize": resized_side(config.image, config.eval_crop),
        "interpolation": "bicubic, antialiased",
        "seed": config.seed,
        **encoder_facts(config, encoder.model, encoder.info),
        **splits.facts(),
    }

"""k-NN: classify validation images by their nearest training images in feature space, without training.

    mimbench run cls/knn checkpoint=encoder.safetensors data=imagenet
    mimbench run cls/knn checkpoint=encoder.safetensors more_pools=cls layers=4

Features of both splits are computed once, without augmentation (cls/frozen/feature_store.py), and scaled to unit
length. For each validation image, the k training images of greatest cosine similarity s vote for their class with
weight exp(s / temperature), as in DINO. Of equal similarities the first training image is the nearer one; of equal
votes the first class wins. All k are computed in one pass.

Memory does not grow with the product of the two splits (cls/frozen/nearest.py). The queries are divided among the
processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mimbench.cls.config import Knn
from mimbench.cls.frozen.encoders import sources
from mimbench.cls.frozen.features import Source
from mimbench.cls.frozen.nearest import QUERIES, nearest
from mimbench.cls.frozen.stored import Frozen, open_frozen
from mimbench.engine.run.process import part_of_rank, summed
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir

# Q query (validation) images, N training images, K neighbours, C classes, D features


def vote(
    similarity_QK: Tensor, label_QK: Tensor, classes: int, neighbours: Sequence[int], temperature: float
) -> dict[int, Tensor]:
    """Return the predicted class (Q,) for each k of `neighbours`; the neighbours must be sorted, best first.

    Votes are cumulative, so every neighbour is counted once for any number of ks.
    """
    best_Q1 = similarity_QK[:, :1]
    weight_QK = (
        (similarity_QK - best_Q1) / temperature
    ).exp()  # the same votes, without overflow or underflow to all zeros
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
    """Return the classes (Q,) predicted by k-NN for each k of `neighbours`. Features need not have unit length."""
    similarity_QK, index_QK = nearest(query_QD, train_ND, max(neighbours))
    label_QK = label_N.to(index_QK.device)[index_QK]
    parts = zip(similarity_QK.split(QUERIES), label_QK.split(QUERIES), strict=True)  # votes take Q x C
    voted = [vote(similarity, labels, classes, neighbours, temperature) for similarity, labels in parts]
    return {k: torch.cat([predictions[k] for predictions in voted]) for k in neighbours}


def run(config: Knn, run: RunDir) -> Outcome:
    """Return `knn_top1` at `config.k`, and `knn_top1_k10` and so on for each of `config.neighbours`, in percent.

    Further pools and blocks are `knn_top1_cls_block11` and so on, at `config.k`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit, or there are too few training images.
    """
    frozen = open_frozen(config, run)
    require_enough(config, len(frozen.splits.train))
    wanted = sources(config, frozen.encoder)
    frozen.store.make(wanted)
    metrics = {name: value for source in wanted for name, value in measured(config, frozen, source).items()}
    return frozen.outcome(metrics, facts(config, frozen, wanted))


def require_enough(config: Knn, images: int) -> None:
    """Check that there are at least as many training images as neighbours.

    Raises:
        ValueError: if not; names the possible ks.
    """
    if max(config.neighbours) > images:
        fitting = [k for k in config.neighbours if k <= images] or [images]
        raise ValueError(
            f"k={max(config.neighbours)} exceeds the {images} training images; "
            f"use neighbours={','.join(map(str, fitting))} k={config.k if config.k in fitting else fitting[-1]}"
        )


def measured(config: Knn, frozen: Frozen, source: Source) -> dict[str, float]:
    """Return accuracies in percent with one feature; the queries are divided among the processes."""
    train_ND, val_QD = (frozen.store.read(split, source) for split in ("train", "val"))
    label_Q = frozen.store.labels("val")
    mine = part_of_rank(len(label_Q))
    device = frozen.encoder.device
    neighbours = config.neighbours if reported(config, frozen, source) else (config.k,)
    right = torch.zeros(len(neighbours), dtype=torch.int64, device=device)
    if mine:
        predictions = classify(
            val_QD[mine.start : mine.stop].to(device),
            train_ND,
            frozen.store.labels("train"),
            classes=frozen.splits.classes,
            neighbours=neighbours,
            temperature=config.temperature,
        )
        answers = label_Q[mine.start : mine.stop].to(device)
        right += torch.stack([(predictions[k] == answers).sum() for k in neighbours])
    top1 = {k: 100 * count / len(label_Q) for k, count in zip(neighbours, summed(right).tolist(), strict=True)}
    return names(config, source, top1, reported(config, frozen, source))


def reported(config: Knn, frozen: Frozen, source: Source) -> bool:
    """Whether `knn_top1` reports this feature."""
    return (source.pool, source.block) == (config.pool, frozen.encoder.depth)


def names(config: Knn, source: Source, top1: Mapping[int, float], reported: bool) -> dict[str, float]:
    """Return the accuracies by their names in the result."""
    if not reported:
        return {f"knn_top1_{source.pool}_block{source.block}": top1[config.k]}
    return {"knn_top1": top1[config.k], **{f"knn_top1_k{k}": value for k, value in top1.items()}}


def facts(config: Knn, frozen: Frozen, wanted: Sequence[Source]) -> dict[str, object]:
    """Return the facts of the protocol that change the numbers."""
    return {
        "protocol": f"k-NN, cosine similarity; knn_top1 is k={config.k}",
        "k": config.k,
        "neighbours": list(config.neighbours),
        "temperature": config.temperature,
        "feature": frozen.encoder.describe(config.pool, config.norm),
        "pool": config.pool,
        "norm": config.norm,
        **frozen.facts(wanted[0]),
    }

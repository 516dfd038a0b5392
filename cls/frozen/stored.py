"""What evaluations on stored features share: opening them, sharing out work, and what is said beside the result.

    frozen = open_frozen(config, run)
    frozen.store.make(sources)           # cls/frozen/feature_store.py
    return frozen.outcome(metrics, {**facts, **frozen.facts(source)})

A validation split that is the training split is found by its features.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.cls.config import FastLinear, FewShot, Knn
from mimbench.cls.data.crops import Splits, open_splits, resized_side
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.cls.frozen.feature_store import FeatureStore, View
from mimbench.cls.frozen.features import FrozenEncoder, Source
from mimbench.cls.frozen.fingerprint import spread
from mimbench.cls.frozen.nearest import nearest
from mimbench.engine.run.process import device_name, peak_memory, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir

log = logging.getLogger(__name__)

LOOKED_AT = 512  # validation images that are looked for among the training images
SAME = 1e-3  # distance, by the spread of the features, at which two images are one; fp16 rounds to less

# N training images, Q validation images, D width


@dataclass
class Frozen:
    """A frozen encoder, a data set and the features of one by the other."""

    config: Knn | FastLinear | FewShot
    encoder: FrozenEncoder
    splits: Splits
    store: FeatureStore
    started: float = field(default_factory=time.perf_counter)

    def facts(self, source: Source) -> dict[str, Any]:
        """What of encoder and data changes the numbers."""
        config = self.config
        return {
            "image": config.image,
            "eval_resize": resized_side(config.image, config.eval_crop),
            "interpolation": "bicubic, antialiased",
            "features": f"stored in {config.stored}, without augmentation",
            "seed": config.seed,
            **self.encoder.facts(config),
            **self.splits.facts(),
            **seen_before(self.store, source),
        }

    def outcome(self, metrics: dict[str, float], facts: dict[str, Any]) -> Outcome:
        """The result; images per second only where images were encoded, and with all else that was done."""
        images, seconds = self.store.encoded, time.perf_counter() - self.started
        return Outcome(
            metrics=metrics,
            facts=facts,
            images_per_second=images * rank_and_world()[1] / seconds if images else None,
            peak_memory=peak_memory(self.encoder.device),
            device=device_name(self.encoder.device),
            family=self.encoder.family,
        )


def open_frozen(config: Knn | FastLinear | FewShot, run: RunDir) -> Frozen:
    """Everything that an evaluation of `config` needs; no image has been encoded yet.

    Raises:
        FileNotFoundError: if the data set or the checkpoint is not there.
        ValueError: if either is not what it should be.
    """
    device = setup_process(config.compute, config.seed)
    encoder = frozen_encoder(config, device)
    splits = open_splits(config.data, config.jpeg_decoder, config.subset)
    view = View(config.image, config.eval_crop, config.compute.workers, config.stored)
    fixed = Path(config.features).expanduser() if config.features is not None else None
    return Frozen(config, encoder, splits, FeatureStore(shared_root(run), encoder, splits, view, fixed=fixed))


def shared_root(run: RunDir) -> Path:
    """Where features lie that other runs use as well: the runs root, or the run itself if it is under none."""
    stage = run.path.absolute().parent
    return stage.parent if stage.name == run.read_about()["stage"] else run.path


def seen_before(store: FeatureStore, source: Source) -> dict[str, Any]:
    """Says so if the validation images are the training images, or many of them are: accuracy then means little.

    Some validation images, evenly spread, are looked for among the training images by their features.
    """
    train_ND, val_ND = store.read("train", source), store.read("val", source)
    found = repeated(train_ND, val_ND[spread(len(val_ND), LOOKED_AT)].to(store.encoder.device))
    looked = min(len(val_ND), LOOKED_AT)
    if not found:
        return {"val_in_train": f"none of {looked} looked for"}
    all_of_them, some = "the validation images are the training images", "validation images are training images too"
    what = all_of_them if found == looked else f"{found} of {looked} {some}"
    log.warning("%s: accuracy says little about images that were not seen", what)
    facts = {"val_in_train": f"{found} of {looked} looked for"}
    return {**facts, "validation": what} if found == looked else facts


def repeated(train_ND: Tensor, val_QD: Tensor) -> int:
    """How many of the features `val_QD` are among `train_ND`, but for rounding; none where all features are alike."""
    some = train_ND[spread(len(train_ND), LOOKED_AT)].float()
    usual = torch.linalg.vector_norm(some - some.mean(0), dim=1).mean().item()
    _, index_Q1 = nearest(val_QD, train_ND, 1)
    nearest_QD = train_ND[index_Q1[:, 0].cpu()].float()
    distance_Q = torch.linalg.vector_norm(val_QD.cpu().float() - nearest_QD, dim=1)
    return int((distance_Q < SAME * usual).sum())

"""The shared steps of evaluations on stored features: opening them, and the facts of the result.

    frozen = open_frozen(config, run)
    frozen.store.make(sources)           # cls/frozen/feature_store.py
    return frozen.outcome(metrics, {**facts, **frozen.facts(source)})

Validation images that are also training images are detected by their features.
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

LOOKED_AT = 512  # validation images searched for among the training images
SAME = 1e-3  # relative distance below which two features are of the same image; fp16 rounding is smaller

# N training images, Q validation images, D width


@dataclass
class Frozen:
    """A frozen encoder, a data set, and the data set's features from this encoder."""

    config: Knn | FastLinear | FewShot
    encoder: FrozenEncoder
    splits: Splits
    store: FeatureStore
    started: float = field(default_factory=time.perf_counter)

    def facts(self, source: Source) -> dict[str, Any]:
        """Return the facts of encoder and data that change the numbers."""
        config = self.config
        return {
            "image": config.image,
            "eval_resize": resized_side(config.image, config.eval_crop),
            "image_resize": "bicubic, antialiased",
            "features": f"stored in {config.stored}, without augmentation",
            "seed": config.seed,
            **self.encoder.facts(config),
            **self.splits.facts(),
            **seen_before(self.store, source),
        }

    def outcome(self, metrics: dict[str, float], facts: dict[str, Any]) -> Outcome:
        """Return the outcome; images per second and waits only if images were encoded. All processes call it."""
        images, seconds = self.store.encoded, time.perf_counter() - self.started
        return Outcome(
            metrics=metrics,
            facts=facts,
            images_per_second=images * rank_and_world()[1] / seconds if images else None,
            loading=self.store.encoding.loading(self.encoder.device),
            peak_memory=peak_memory(self.encoder.device),
            device=device_name(self.encoder.device),
            family=self.encoder.family,
        )


def open_frozen(config: Knn | FastLinear | FewShot, run: RunDir) -> Frozen:
    """Open everything that an evaluation of `config` needs; no image is encoded yet.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit.
    """
    device = setup_process(config.compute, config.seed)
    encoder = frozen_encoder(config, device)
    splits = open_splits(config.data, config.jpeg_decoder, config.subset)
    view = View(config.image, config.eval_crop, config.compute.workers, config.stored)
    fixed = Path(config.features).expanduser() if config.features is not None else None
    return Frozen(config, encoder, splits, FeatureStore(shared_root(run), encoder, splits, view, fixed=fixed))


def shared_root(run: RunDir) -> Path:
    """Return the directory of features shared by runs: the runs root, or the run itself if it is under no root."""
    stage = run.path.absolute().parent
    return stage.parent if stage.name == run.read_about()["stage"] else run.path


def seen_before(store: FeatureStore, source: Source) -> dict[str, Any]:
    """Return the facts on how many validation images are also training images, and warn if accuracy means little.

    A sample of evenly spread validation images is searched for among the training images by their features.
    """
    train_ND, val_ND = store.read("train", source), store.read("val", source)
    found = repeated(train_ND, val_ND[spread(len(val_ND), LOOKED_AT)].to(store.encoder.device))
    looked = min(len(val_ND), LOOKED_AT)
    if not found:
        return {"val_in_train": f"none of {looked} looked for"}
    all_of_them, some = "the validation images are the training images", "validation images are training images too"
    what = all_of_them if found == looked else f"{found} of {looked} {some}"
    log.warning("%s: accuracy means little; use a val split without training images", what)
    facts = {"val_in_train": f"{found} of {looked} looked for"}
    return {**facts, "validation": what} if found == looked else facts


def repeated(train_ND: Tensor, val_QD: Tensor) -> int:
    """Return how many features of `val_QD` are in `train_ND`, up to rounding; 0 if all features are equal."""
    some = train_ND[spread(len(train_ND), LOOKED_AT)].float()
    usual = torch.linalg.vector_norm(some - some.mean(0), dim=1).mean().item()
    _, index_Q1 = nearest(val_QD, train_ND, 1)
    nearest_QD = train_ND[index_Q1[:, 0].cpu()].float()
    distance_Q = torch.linalg.vector_norm(val_QD.cpu().float() - nearest_QD, dim=1)
    return int((distance_Q < SAME * usual).sum())

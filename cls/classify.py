"""Evaluate a fine-tuned classifier on a validation split, on ImageNet-A, -R, -Sketch, -V2, -C or with ReaL's labels.

    mimbench run cls/classify checkpoint=mae_finetuned_vit_base.pth data=imagenet
    mimbench run cls/robustness checkpoint=cls/finetune_vitb-1a2b3c4d5e test=imagenet-r data=/data/imagenet-r

`checkpoint` is a fine-tuning's run directory (its last weights), the classifier-best.safetensors in it (the best
epoch), or a fine-tuned file of MAE, CrossMAE or MaskAlign. Nothing is trained. Every image counts once, for any
number of processes. The rules of the robustness sets are in cls/data/robustness.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimbench.backbones.classifier import Classifier
from mimbench.backbones.classifier_file import ClassifierInfo, load_classifier
from mimbench.cls.accuracy import accuracy, require_finite, shared
from mimbench.cls.config import Classify
from mimbench.cls.data.crops import CentreCrops, resized_side
from mimbench.cls.data.robustness import Part, robustness
from mimbench.cls.frozen.encoders import require_fit
from mimbench.cls.frozen.features import autocast
from mimbench.cls.predictions import Predictions
from mimbench.engine.data.batches import evaluation_loader, move
from mimbench.engine.data.datasets import locate
from mimbench.engine.data.images import ImageFolder, normalise
from mimbench.engine.run.bar import track
from mimbench.engine.run.process import autocast_dtype, device_name, peak_memory, rank_and_world, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir

# B image of a batch, N image of a part, C class

SHOWN = 3  # differences between two lists of classes that an error names


class Ready(nn.Module):
    """A classifier that takes uint8 images."""

    def __init__(self, model: Classifier, info: ClassifierInfo) -> None:
        super().__init__()
        self.model, self.info = model, info

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of uint8 images (B, 3, S, S)."""
        logits_BC: Tensor = self.model(normalise(images, self.info.mean, self.info.std))
        return logits_BC


def run(config: Classify, run: RunDir) -> Outcome:
    """Return `val_top1`, `val_top5` (percent) and `val_loss`, or the metrics of a robustness set.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if no checkpoint is set, it is not a classifier, or its classes differ from those of the data.
    """
    if config.checkpoint is None:
        raise ValueError("checkpoint=none: set it to a fine-tuned classifier, a run directory or a file")
    device = setup_process(config.compute, seed=0)
    classifier = Ready(*load_classifier(config.checkpoint, config.image))
    image = config.image or classifier.info.vit.image
    require_fit(classifier.info.vit, image)
    classifier.eval().to(device)
    with autocast(device, autocast_dtype(config.compute, device)):
        measure = _validate if config.test == "val" else _withstand
        metrics = measure(config, classifier, image, device, run)
    require_finite(metrics, config.compute)
    return Outcome(
        metrics=metrics,
        facts=facts(config, classifier.info, image),
        peak_memory=peak_memory(device),
        device=device_name(device),
        family=classifier.info.family,
    )


def _validate(config: Classify, classifier: Ready, image: int, device: torch.device, run: RunDir) -> dict[str, float]:
    folder = ImageFolder(locate(config.data), "val", decoder=config.jpeg_decoder)
    require_same_classes(classifier.info, folder.classes, config.data)
    crops = CentreCrops(folder, image, crop_share(config, classifier.info))
    loader = evaluation_loader(shared(crops), config.eval_batch, config.compute.workers)
    watch = Predictions(config.save_logits) if config.save_predictions else None
    batches = track(loader, "classifying batches of val images", len(loader))
    metrics = accuracy("val", classifier, batches, device, gather=True, watch=watch)
    if watch is not None:
        watch.write(run.predictions, folder, config.data)
    return metrics


def _withstand(config: Classify, classifier: Ready, image: int, device: torch.device, run: RunDir) -> dict[str, float]:
    assert config.test != "val"
    info = classifier.info
    if not info.classes and info.outputs != 1000:
        raise ValueError(
            f"{config.checkpoint} has {info.outputs} classes without names, but test={config.test} needs a classifier "
            f"with ImageNet's classes"
        )
    test = robustness(config.test, config.data, info.classes or None)
    percent = {}
    for part in test.parts:
        if config.jpeg_decoder != part.folder.decoder:
            part.folder.decoder, part.folder.pixels = config.jpeg_decoder, None  # packed pixels fit one decoder
        crops = CentreCrops(part.folder, image, crop_share(config, info))
        percent[part.name] = part.percent(_right(part, classifier, crops, config, device))
    return test.metrics(percent)


def _right(part: Part, classifier: Ready, crops: CentreCrops, config: Classify, device: torch.device) -> Tensor:
    """Return `Part.right` of every image of `part`, gathered from all processes: (N,)."""
    right_N = torch.zeros(len(crops), dtype=torch.int32)
    loader = evaluation_loader(shared(crops), config.eval_batch, config.compute.workers)
    places = _places(len(crops), config.eval_batch)
    name = part.name or config.test
    for batch, places_B in zip(track(loader, f"classifying batches of {name}", len(loader)), places, strict=True):
        logits_BC = classifier(move(batch[0], device))
        right_N[places_B] = part.right(logits_BC, places_B).int()
    if rank_and_world()[1] > 1:
        whole = right_N.to(device)
        dist.all_reduce(whole)
        right_N = whole.cpu()
    return right_N


def _places(images: int, batch: int) -> Iterator[Tensor]:
    """Yield the image indices of each batch of this process's part."""
    rank, world = rank_and_world()
    return iter(torch.arange(rank, images, world).split(batch)) if rank < images else iter(())


def crop_share(config: Classify, info: ClassifierInfo) -> float | None:
    """Return the centre crop's share of the resized image: the config's, else the one fine-tuning evaluated with."""
    if config.eval_crop is not None or config.image not in (None, info.vit.image):
        return config.eval_crop
    return info.eval_crop


def require_same_classes(info: ClassifierInfo, found: Sequence[str], data: str) -> None:
    """Check that the classifier's outputs are the data's classes, in the same order.

    Raises:
        ValueError: if they are not; the message names the first differences.
    """
    if info.outputs != len(found):
        raise ValueError(
            f"the classifier has {info.outputs} classes, but {data} has {len(found)}: use the data set it was trained "
            f"on, or fine-tune on this one"
        )
    wrong = [place for place, (one, other) in enumerate(zip(info.classes, found, strict=False)) if one != other]
    if wrong:
        pairs = ", ".join(
            f"{place}: {info.classes[place]} in the classifier, {found[place]} in the data" for place in wrong[:SHOWN]
        )
        raise ValueError(
            f"the classifier's classes differ from those of {data} at {len(wrong)} places ({pairs}): its outputs "
            f"would be compared with the wrong labels; use the data set it was trained on"
        )


def facts(config: Classify, info: ClassifierInfo, image: int) -> dict[str, Any]:
    """Return the facts of the protocol that change the numbers."""
    share = crop_share(config, info)
    about: dict[str, Any] = {
        "protocol": f"a fine-tuned classifier on {config.test}",
        "pool": info.pool,
        "image": image,
        "eval_resize": resized_side(image, share),
        "image_resize": "bicubic, antialiased",
        "decoder": config.jpeg_decoder,
        "classes": info.outputs,
        "encoder": asdict(info.vit),
        "weights": f"{info.family} encoder, fine-tuned",
    }
    with suppress(KeyError):
        about["finetune_top1"] = info.metrics["finetune_top1"]
    return about

"""Read and write whole classifiers: an encoder with its head, as fine-tuning saves it.

    save_classifier(run.classifier, model, ClassifierInfo(...))       ours: safetensors, names as in timm
    model, info = load_classifier("mae_finetuned_vit_base.pth")       ours, MAE's, CrossMAE's, MaskAlign's, timm's ...

Any file that `load_encoder` reads and that also holds `head.weight` is a classifier. It pools the mean of the patches
if it has an `fc_norm`, and the class token if it has a final norm. Evaluations of encoders accept these files too, and
ignore the head.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mimbench.backbones.checkpoints.finite import require_finite
from mimbench.backbones.checkpoints.info import CLASSIFIER
from mimbench.backbones.checkpoints.keys import unwrap
from mimbench.backbones.checkpoints.match import Matched, match
from mimbench.backbones.checkpoints.opening import Opened, open_checkpoint
from mimbench.backbones.classifier import FC_NORM, HEAD, NORM, Classifier, Pool, build_classifier, load_encoder_into
from mimbench.backbones.config import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Traits, ViT
from mimbench.backbones.vit import PLAIN
from mimbench.engine.run.atomic import write_with

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierInfo:
    """The description of a classifier: how to build it, how to normalise its images, what its outputs mean."""

    family: str  # of the fine-tuned encoder, a name in `families.FAMILIES`; "random" if trained from scratch
    vit: ViT  # `vit.image` is the side of the training images
    pool: Pool
    outputs: int
    classes: tuple[str, ...] = ()  # names in the order of the outputs; empty if the file does not name them
    mean: tuple[float, ...] = IMAGENET_MEAN  # of its images, for values in 0..1
    std: tuple[float, ...] = IMAGENET_STD
    traits: Traits = PLAIN
    interpolation: Interpolation = "bicubic"  # how its positions are resized to another grid
    eval_crop: float | None = None  # the crop of fine-tuning's evaluation; None: 224/256 up to 224 px, 1 above
    recipe: str | None = None
    identity: str | None = None  # of the run that trained it
    step: int | None = None  # optimiser steps of that run
    metrics: Mapping[str, float] = field(default_factory=dict)  # measured at that step


def save_classifier(path: Path, model: Classifier, info: ClassifierInfo) -> None:
    """Write `model` to `path`, atomically; the same weights and `info` give the same bytes.

    Raises:
        OSError: if the file cannot be written; an existing file at `path` is then unchanged.
    """
    tensors = {name: value.detach().float().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    data = save(dict(sorted(tensors.items())), {CLASSIFIER: json.dumps(asdict(info), sort_keys=True)})
    write_with(path, lambda temporary: temporary.write_bytes(data))


def read_info(path: Path) -> ClassifierInfo:
    """Read the description of the classifier in `path`, a file of mimbench, without reading any weight.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier`.
    """
    return _recorded(open_checkpoint(path))


def load_classifier(path: str | Path, image: int | None = None) -> tuple[Classifier, ClassifierInfo]:
    """Load the classifier in the file at `path`, in eval mode, for images of side `image` (default: its own).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if the file is not a checkpoint, holds no classifier, has keys that are not accounted
            for or weights that are not finite, or cannot be resized to `image`.
    """
    return classifier_in(open_checkpoint(path), image)


def classifier_in(opened: Opened, image: int | None = None) -> tuple[Classifier, ClassifierInfo]:
    """Return the classifier in an open file; otherwise as `load_classifier`.

    Raises:
        ValueError: as `load_classifier`.
    """
    if CLASSIFIER in opened.metadata:
        info, state = _with_settings(_recorded(opened), opened), dict(opened.weights)
    else:
        info, state = _foreign(opened)
    state = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
    require_finite(state, opened.file)
    side = info.vit.image if image is None else image
    model = build_classifier(info.vit, info.outputs, 0.0, info.pool, side, info.traits)
    parts = {name: value for name, value in state.items() if name in HEAD | FC_NORM}
    load_encoder_into(model, {name: state[name] for name in state.keys() - parts.keys()}, info.interpolation)
    model.load_state_dict(parts, strict=False)
    return model.eval(), info


def _recorded(opened: Opened) -> ClassifierInfo:
    try:
        values: dict[str, Any] = json.loads(opened.metadata[CLASSIFIER])
        values["vit"], values["traits"] = ViT(**values["vit"]), Traits(**values["traits"])
        for name in ("classes", "mean", "std"):
            values[name] = tuple(values[name])
        return ClassifierInfo(**values)
    except KeyError:
        raise ValueError(f"{opened.file} is not a classifier that mimbench wrote") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{opened.file} has metadata of a different version of mimbench: {error}") from None


def _with_settings(info: ClassifierInfo, opened: Opened) -> ClassifierInfo:
    """Return `info` with the statistics that the user gave.

    Raises:
        ValueError: if the user's settings contradict the file.
    """
    if not opened.options:
        return info
    matched = match(opened)
    for line in matched.replaced:
        _log.warning("%s: %s", opened.file, line)
    return replace(info, mean=matched.mean, std=matched.std)


def _foreign(opened: Opened) -> tuple[ClassifierInfo, dict[str, Tensor]]:
    """The description and the tensors of another project's classifier."""
    matched = match(opened)
    for line in matched.replaced:
        _log.warning("%s: %s", opened.file, line)
    names, _ = unwrap(opened.weights)
    named = {name: opened.weights[key] for key, name in names.items()}
    _require_head(opened, matched, named)
    matched.require()
    pool: Pool = "avg" if "fc_norm.weight" in named else "cls"
    own = HEAD | FC_NORM if pool == "avg" else HEAD
    state = {**matched.tensors, **{name: named[name] for name in own}}
    if pool == "avg":
        state = {name: value for name, value in state.items() if name not in NORM}
    info = ClassifierInfo(
        family=matched.family.name,
        vit=matched.vit,
        pool=pool,
        outputs=len(named["head.weight"]),
        mean=matched.mean,
        std=matched.std,
        traits=matched.traits,
        interpolation=matched.family.interpolation,
    )
    return info, state


def _require_head(opened: Opened, matched: Matched, named: Mapping[str, Tensor]) -> None:
    """Check that the file has a head that fits the encoder, and a norm before the head.

    Raises:
        ValueError: if not, naming what is missing.
    """
    advice = "fine-tune it (`mimbench run cls/finetune_...`), or give a fine-tuned checkpoint"
    lacking = [name for name in sorted(HEAD) if name not in named]
    if lacking:
        raise ValueError(f"{opened.file}: {matched.family.title} without {lacking[0]} is not a classifier; {advice}")
    if not named.keys() & {"fc_norm.weight", "norm.weight"}:
        raise ValueError(f"{opened.file} has a head but neither fc_norm nor norm before it; {advice}")
    head = named["head.weight"]
    if head.ndim != 2 or head.shape[1] != matched.vit.width or len(named["head.bias"]) != len(head):
        raise ValueError(
            f"{opened.file}: head.weight {tuple(head.shape)} does not fit the encoder's width {matched.vit.width}"
        )


def scored(info: ClassifierInfo, step: int, metrics: Mapping[str, float]) -> ClassifierInfo:
    """Return `info` with the metrics measured after `step` optimiser steps."""
    return replace(info, step=step, metrics=dict(metrics))

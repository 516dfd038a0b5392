"""What a run would cost, in hours of one A100, before it is run.

Three sources, the first that there is; an answer says which:

1. what the recipe's docstring says ("About 45 h on 4 A100");
2. detectron2's measured seconds per image, for ViTDet Mask R-CNN at 1024 pixels (B .314, L .603, H 1.098), by area;
3. arithmetic: the multiply-adds of every image seen, three times a forward pass where weights are trained, at
   65 TFLOP/s, the middle of what the epochs of CrossMAE's Tables 4 and 18 come to on A100 (60 to 73).

An estimate for planning: another GPU, slow input or a small batch changes it by a factor. Starts without torch.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.fields import recorded_name

RATE = 65e12  # operations a second on one A100, two to a multiply-add
IMAGENET, IMAGENET_VAL = 1_281_167, 50_000  # images
VITDET = {768: 0.314, 1024: 0.603, 1280: 1.098}  # width -> seconds per image and A100 (detectron2, projects/ViTDet)
SAID = re.compile(r"[Aa]bout (\d+(?:\.\d+)?) (h|days) on (\d+) A100")


@dataclass(frozen=True)
class Cost:
    """Hours of one A100."""

    hours: float
    source: str

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.hours + other.hours, " and ".join(dict.fromkeys((self.source, other.source))))

    @property
    def text(self) -> str:
        """Two digits: more would pretend."""
        rounded = float(f"{self.hours:.2g}")
        return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def cost_of(config: Any, function: Any = None) -> Cost | None:
    """What a run of `config`, from the recipe `function`, costs; None where nothing is known to go by."""
    said = SAID.search(inspect.getdoc(function) or "") if function else None
    if said:
        number, unit, gpus = float(said[1]), said[2], int(said[3])
        return Cost(number * (24 if unit == "days" else 1) * gpus, "the recipe's docstring")
    operations = _OPERATIONS.get(type(config).__name__)
    if recorded_name(type(config)) == "MaskRCNN":
        return _detection(config)
    return Cost(operations(config) / RATE / 3600, "arithmetic at 65 TFLOP/s") if operations else None


def _detection(config: Any) -> Cost | None:
    seconds = VITDET.get(config.encoder.width)
    if seconds is None:
        return None
    area = (config.image / 1024) ** 2  # most blocks attend within windows: the tokens' number decides
    scaled = "" if area == 1 else ", by area"
    return Cost(config.steps * config.batch * seconds * area / 3600, f"detectron2's seconds per image{scaled}")


def encoder_operations(vit: ViT, tokens: int | None = None) -> float:
    """Of a forward pass of one image; `tokens` with the class token, by default all patches and it."""
    patches = vit.grid**2
    tokens = patches + 1 if tokens is None else tokens
    return 2 * patches * vit.width * 3 * vit.patch**2 + blocks(vit.width, vit.depth, tokens)


def blocks(width: int, depth: int, tokens: int) -> float:
    """Of pre-norm blocks with an MLP of four times the width: projections and MLP, then attention."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def pretraining_operations(config: Any) -> float:
    """Of a forward pass of one image, encoder and decoder; a frozen teacher's counts a third, for it is not trained."""
    vit, method = config.encoder, config.method
    patches = vit.grid**2
    visible = patches - int(patches * config.masking.hidden_share)
    predicted = int(patches * config.masking.predicted_share)
    if method.kind == "simmim":
        return encoder_operations(vit)
    encoder = encoder_operations(vit, visible + 1)
    if method.kind == "crossmae":
        width, memory = method.width, visible + 1
        queries = 20.0 * predicted * width**2 + 4.0 * memory * vit.width * width
        return encoder + method.depth * (queries + 4.0 * predicted * memory * width)
    if method.kind == "mae":
        tokens = visible + predicted + 1
        return encoder + 2.0 * visible * vit.width * method.width + blocks(method.width, method.depth, tokens)
    return encoder + encoder_operations(SIZES["B"]) / 3


def _pretraining(config: Any) -> float:
    return 3 * pretraining_operations(config) * config.epochs * IMAGENET


def _finetuning(config: Any) -> float:
    forward = encoder_operations(replace(config.encoder, image=config.image))
    return forward * config.epochs * (3 * IMAGENET + IMAGENET_VAL)


def _frozen(config: Any) -> float:
    """Each image seen once, or once an epoch where it is cropped anew."""
    passes = config.epochs if getattr(config, "views", "") == "augmented" else 1
    return encoder_operations(replace(config.encoder, image=config.image)) * (passes * IMAGENET + IMAGENET_VAL)


_OPERATIONS = {
    "Pretrain": _pretraining,
    "Finetune": _finetuning,
    "Linear": _frozen,
    "FastLinear": _frozen,
    "Knn": _frozen,
    "FewShot": _frozen,
}

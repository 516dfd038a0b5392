"""What models compute and keep, counted in live models that hold no numbers (torch's `meta` device).

Operations are two to a multiply-add, of a forward pass on one image, attention included: torch's counter knows
`scaled_dot_product_attention`, which fvcore's passes over (ViT-B/16 at 1024 pixels: 350.8 instead of 659.8
multiply-adds, in billions). `fvcore_operations` is fvcore with that mended, for its table by module.

Kept for the backward pass is what autograd saves, each storage once and weights not, in float32; under autocast it is
less by about a third. Imports torch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from backbones.config import SIZES, ViT
from pretrain.config import MAE, CrossMAE, RandomMasking
from pretrain.flops import SMALL, flops
from pretrain.masking import Masked, Random
from pretrain.method import Method
from pretrain.methods import build_method

METHODS: tuple[
    tuple[str, str, Any, float, float], ...
] = (  # what to call it, kind, config, shares hidden and predicted
    ("MAE", "mae", MAE(), 0.75, 0.75),
    ("CrossMAE .75", "crossmae", CrossMAE(), 0.75, 0.75),
    ("CrossMAE .25", "crossmae", CrossMAE(), 0.75, 0.25),
)


@dataclass(frozen=True)
class Counted:
    """One method at one size, or one detector."""

    size: str  # "B"
    name: str
    kind: str
    predict: float | None
    parameters: int
    encoder: float  # operations
    decoder: float  # of a detector: pyramid, proposals and heads
    total: float
    kept: int | None  # bytes an image, for the backward pass


def pretraining(sizes: str = "SBLH") -> Iterator[Counted]:
    """Every method of `METHODS` at every size."""
    for size in sizes:
        for name, kind, config, mask, predict in METHODS:
            shaped = replace(config, **SMALL) if size == "S" else config
            found = flops(size, name, shaped, SIZES[size], predict, mask)
            parameters, kept = _kept(shaped, SIZES[size], mask, predict)
            decoder = found.decoder + found.mixing
            yield Counted(size, name, kind, predict, parameters, found.encoder, decoder, found.total, kept)


def _kept(config: Any, shape: ViT, mask: float, predict: float) -> tuple[int, int]:
    """Parameters, and bytes kept for one image."""
    with torch.device("meta"):
        method: Method = build_method(config, shape)
        masking = Random(RandomMasking(mask=mask, predict=predict))
        masked: Masked = masking(torch.zeros(1, shape.grid**2), None, (shape.grid, shape.grid), 0.0)
        images = torch.zeros(1, 3, shape.image, shape.image)
    return count(method), kept_for_backward(method, images, masked)


def count(model: nn.Module) -> int:
    """All parameters, fixed position tables with them."""
    return sum(parameter.numel() for parameter in model.parameters())


def kept_for_backward(model: nn.Module, *inputs: Any) -> int:
    """Bytes that autograd saves in a forward pass of `model`, in float32 and without weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # by storage; the tensors are held, so that no storage's place is taken again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)  # held, or its graph would go
        found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return found


def detectors() -> Iterator[Counted]:
    """ViTDet Mask R-CNN at each published size, at 1024 pixels with 1000 proposals and 100 detections."""
    from det.build import build_detector
    from jobs.recipes import find

    for size, recipe in (("B", "b_100ep"), ("L", "l_100ep"), ("H", "h_75ep")):
        config = find(f"det/mask_rcnn_vitdet_{recipe}").build()
        with torch.device("meta"):
            model, _ = build_detector(replace(config, encoder=_patch16(config.encoder)), classes=80)
        backbone, rest = _detector_operations(model, config.image)
        yield Counted(size, "Mask R-CNN", "mask_rcnn", None, count(model), backbone, rest, backbone + rest, None)


def _patch16(encoder: ViT) -> ViT:
    """Detection resamples 14-pixel patches; a model without numbers starts with what it would come to."""
    return replace(encoder, patch=16)


def _detector_operations(model: Any, image: int) -> tuple[float, float]:
    """Of the plain ViT, and of all that detection adds."""
    heads, side = model.roi_heads, 2 * 7
    with torch.device("meta"), torch.no_grad():
        images = torch.zeros(1, 3, image, image)
        plain = operations(model.backbone.net, images)
        whole = operations(model.backbone, images)
        maps = model.backbone(images)
        boxes = torch.zeros(1000, maps[0].shape[1], 7, 7)
        masks, labels = torch.zeros(100, maps[0].shape[1], side, side), torch.zeros(100, dtype=torch.long)
        rest = operations(model.proposal_generator.rpn_head, maps)
        rest += operations(nn.Sequential(heads.box_head), boxes) + operations(heads.mask_head, masks, labels)
        rest += operations(heads.box_predictor, heads.box_head(boxes))
    return plain, whole - plain + rest


def operations(model: nn.Module, *inputs: Any) -> float:
    """Of a forward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return float(counter.get_total_flops())


def fvcore_operations(model: nn.Module, inputs: Tensor, attention: bool = True) -> dict[str, float]:
    """Of each module, two to a multiply-add, by fvcore; without `attention` as fvcore has it by itself.

    Needs a model with numbers: fvcore traces it.
    """
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and fvcore all it has
        analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        if attention:
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        return {name: 2.0 * count for name, count in analysis.by_module().items()}


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of softmax(q kᵀ) v, for q (..., N, D), k (..., M, D) and v (..., M, E)."""
    query, key, value = (one.type().sizes() for one in inputs[:3])
    return float(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))

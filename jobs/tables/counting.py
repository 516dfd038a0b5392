"""Count operations and memory of models built without values (torch's `meta` device).

Operations: of a forward pass on one image, two for each multiply-add, attention included. fvcore counts methods
(engine/training/flops.py). torch's counter counts detectors: fvcore cannot trace a convolution on `meta`, and a ViT-H
detector with values is too large to run for a table. On models that both can count they agree exactly (tests).

Memory kept for the backward pass: tensors that autograd saves in float32, each storage once, without weights; under
autocast about a third less. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from mimbench.backbones.config import ViT
from mimbench.det.memory import Saved
from mimbench.engine.run.config import leaves
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.flops import context_of, method_operations, without_numbers

ROWS: tuple[tuple[str, str, str], ...] = (  # sizes, label, recipe
    ("SBLH", "MAE", "mae_vit{}_800ep"),
    ("SBLH", "CrossMAE .75", "crossmae_vit{}_800ep_predict75"),
    ("SBLH", "CrossMAE .25", "crossmae_vit{}_800ep"),
    ("B", "AMT on MAE", "mae_amt_vit{}_400ep"),
    ("B", "SimMIM", "simmim_vit{}_800ep"),
    ("B", "AMT on SimMIM", "simmim_amt_vit{}_200ep"),
    ("BL", "MaskAlign", "maskalign_vit{}"),
)
ENCODER = ("patch_embed", "blocks", "encoder")  # names of encoder modules in a method
DECODER = ("decoder_blocks", "decoder_embed", "wfm", "decoder", "distill_heads")
SHARES = (
    "masking.kind",
    "masking.mask_ratio",
    "masking.predict",
    "masking.throw",
    "masking.unit",
)  # settings that distinguish methods


@dataclass(frozen=True)
class Counted:
    """One method at one size, or one detector."""

    size: str  # "B"
    name: str
    told_by: tuple[Any, ...]  # kind of method and its shares of patches, as from `told_by`
    parameters: int
    encoder: float  # operations
    decoder: float  # MaskAlign: its heads; a detector: pyramid, proposals and heads
    total: float  # including MaskAlign's teacher
    kept: int | None  # bytes per image, for the backward pass


def told_by(science: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the kind of method and its hidden, predicted and dropped shares; runs with equal ones compute the same."""
    return science.get("method.kind", "mask_rcnn"), *(science.get(key) for key in SHARES)


def wanted(sizes: str = "SBLH") -> list[tuple[str, str, str]]:
    """Return size, name and recipe of everything that `pretraining` counts."""
    every = [(size, name, f"pretrain/{recipe.format(size.lower())}") for of, name, recipe in ROWS for size in of]
    return sorted((one for one in every if one[0] in sizes), key=lambda one: "SBLH".index(one[0]))


def pretraining(sizes: str = "SBLH") -> Iterator[Counted]:
    """Yield the counts of every method in `ROWS` at each of its sizes, with its recipe's shares of patches."""
    from mimbench.jobs.runs.recipes import find

    for size, name, recipe in wanted(sizes):
        yield _pretraining(size, name, find(recipe).build())


def _pretraining(size: str, name: str, config: Pretrain) -> Counted:
    method, images, masked = without_numbers(config)
    by_module, teacher = method_operations(method, images, masked)
    encoder = sum(by_module.get(part, 0.0) for part in ENCODER)
    # SimMIM's single decoder layer is not called as a module
    decoder = sum(by_module.get(part, 0.0) for part in DECODER) or by_module[""] - encoder
    science = {leaf.key: leaf.value for leaf in leaves(config)}
    kept = kept_for_backward(method, images, masked, context_of(method, images))
    return Counted(size, name, told_by(science), count(method), encoder, decoder, by_module[""] + teacher, kept)


def count(model: nn.Module) -> int:
    """Return the number of all parameters, including fixed position tables."""
    return sum(parameter.numel() for parameter in model.parameters())


def kept_for_backward(model: nn.Module, *inputs: Any) -> int:
    """Return the bytes that autograd saves in a forward pass of `model`, in float32 and without weights.

    Tensors on `meta` pretend to be on a CPU, because torch selects other operations on `meta`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu") if _is_meta(model) else model
        saved = Saved(model)
        with saved.counting():
            output = model(*tree_map_only(Tensor, _as_on_cpu, inputs))  # kept, so that its graph is not freed
            found = saved.bytes
    del output
    return found


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _as_on_cpu(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor


def detectors() -> Iterator[Counted]:
    """Yield the counts of ViTDet Mask R-CNN at each published size: 1024 pixels, 1000 proposals, 100 detections."""
    from mimbench.det.model.build import build_detector
    from mimbench.jobs.runs.recipes import find

    for size, recipe in (("B", "b_100ep"), ("L", "l_100ep"), ("H", "h_75ep")):
        config = find(f"det/mask_rcnn_vitdet_{recipe}").build()
        with torch.device("meta"):
            model, _ = build_detector(replace(config, encoder=_patch16(config.encoder)), classes=80)
        backbone, rest = _detector_operations(model, config.image)
        yield Counted(size, "Mask R-CNN", told_by({}), count(model), backbone, rest, backbone + rest, None)


def _patch16(encoder: ViT) -> ViT:
    """Return the encoder with 16-pixel patches: detection resamples 14-pixel ones, which needs values."""
    return replace(encoder, patch=16)


def _detector_operations(model: Any, image: int) -> tuple[float, float]:
    """Return the operations of the plain ViT and of everything detection adds."""
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
    """Return the operations of a forward pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return float(counter.get_total_flops())

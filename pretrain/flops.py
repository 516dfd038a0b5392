"""The operations of pretraining, counted by fvcore in models without weights (engine/training/flops.py).

    mimbench flops pretrain                                          # the decoders of MAE and CrossMAE
    mimbench flops pretrain --modules pretrain/crossmae_vitb_800ep   # fvcore's table of one recipe's modules

The counts are for a forward pass of one image of the pretraining size, with two operations per multiply-add. The
decoder's count includes its blocks and, for MAE, the layer that projects tokens to the decoder's width, but not norms,
positions and the last layer, as in CrossMAE's figure. CrossMAE's mixing of feature maps is counted separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.task import Operations
from mimbench.engine.training.flops import module_table, operations
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, MaskAlignConfig, MethodConfig, Pretrain, RandomMasking
from mimbench.pretrain.masking.strategies import Masked, Random
from mimbench.pretrain.methods.maskalign import MaskAlign
from mimbench.pretrain.methods.method import Context, Method
from mimbench.pretrain.methods.table import build_masking, build_method
from mimbench.pretrain.methods.teachers import Teacher

SMALL: dict[str, Any] = {"width": 256, "heads": 8}  # the decoder for ViT-S; for other sizes 512 and 16
ROWS: tuple[tuple[str, CrossMAEConfig | MAEConfig, float], ...] = (  # title, method, share predicted
    ("MAE, 8 blocks", MAEConfig(), 0.75),
    ("CrossMAE .25, 12 blocks", CrossMAEConfig(), 0.25),
    ("CrossMAE .75, 12 blocks", CrossMAEConfig(), 0.75),
    ("CrossMAE .25, 8 blocks", CrossMAEConfig(depth=8), 0.25),
)


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass on one image."""

    size: str
    name: str
    decoder: float  # its blocks, and MAE's decoder_embed
    mixing: float  # of feature maps
    encoder: float
    total: float


def decoder_table() -> Iterator[Flops]:
    """Yield the operations of every encoder size with every decoder of `ROWS`."""
    for size, shape in SIZES.items():
        for name, config, predict in ROWS:
            yield flops(size, name, replace(config, **SMALL) if size == "S" else config, shape, predict)


def shown_table() -> Operations:
    """Return `decoder_table` in GFLOP, with each decoder's saving against MAE's of its size."""
    found, rows = list(decoder_table()), []
    of_mae = {row.size: row.decoder for row in reversed(found)}  # the first row of each size
    for row in found:
        less = "" if row.name == ROWS[0][0] else f"{of_mae[row.size] / row.decoder:.1f}x"
        numbers = (f"{count / 1e9:.2f}" if count else "" for count in (row.decoder, row.mixing, row.encoder, row.total))
        decoder, *others = numbers
        rows.append((f"ViT-{row.size}", row.name, decoder, less, *others))
    title = "forward pass, one image, GFLOP (a multiply-add is two operations)"
    heads = ("size", "method", "decoder", "MAE's", "mixing", "encoder", "all")
    return Operations(title, heads, tuple(rows), names=2, numbers=[asdict(row) for row in found])


def flops(size: str, name: str, config: MethodConfig, shape: ViT, predict: float, mask: float = 0.75) -> Flops:
    """Return the operations of one method for one image."""
    masking = Random(RandomMasking(mask_ratio=mask, predict=predict))
    with torch.device("meta"):
        method = build_method(config, shape)
        masked = masking(torch.zeros(1, shape.grid**2), None, (shape.grid, shape.grid), 0.0)
        images = torch.zeros(1, 3, shape.image, shape.image)
    by_module, _ = method_operations(method, images, masked)
    embed, mixing = by_module.get("decoder_embed", 0.0), by_module.get("wfm", 0.0)
    encoder = by_module["patch_embed"] + by_module["blocks"]
    return Flops(size, name, by_module["decoder_blocks"] + embed, mixing, encoder, by_module[""])


# -------------------------------------------------------------------------------------------------- of any pretraining


def without_numbers(config: Pretrain) -> tuple[Method, Tensor, Masked]:
    """Return a method on torch's `meta` device, an image, and its patches, with the counts used in training."""
    shape = config.encoder
    shown, dropped, predicted = build_masking(config.masking, shape, config.epochs).counts(
        shape.grid**2, float(config.epochs)
    )
    with torch.device("meta"):
        method = _method(config)
        places = (torch.zeros(1, number, dtype=torch.long) for number in (shown, predicted, dropped))
        return method, torch.zeros(1, 3, shape.image, shape.image), Masked(*places)


def _method(config: Pretrain) -> Method:
    """Build the method; a teacher is built from its name, so that its weights are not needed."""
    if not isinstance(config.method, MaskAlignConfig):
        return build_method(config.method, config.encoder)
    import timm

    if config.method.teacher is None:
        raise ValueError("method.teacher=none: operations are counted from the teacher's name; set method.teacher")
    network: Any = timm.create_model(config.method.teacher, num_classes=0)
    mean = std = (0.5, 0.5, 0.5)  # arbitrary: only operations are counted
    teacher = Teacher(network, config.encoder.grid**2, config.method.teacher_image or 224, mean, std)
    return MaskAlign(config.encoder, config.method, teacher)


def context_of(method: Method, images: Tensor) -> Context:
    """Return the context that `method` needs to be called; empty for most methods."""
    with torch.no_grad():
        return method.compute_context(images) or Context(None, ())


def method_operations(method: Method, images: Tensor, masked: Masked) -> tuple[dict[str, float], float]:
    """Return the operations of each module of a method ("" is the total), and of its teacher (0 without one)."""
    by_module = operations(method, images, masked, context_of(method, images))
    teacher = 0.0
    if isinstance(method, MaskAlign):
        # torch's counter: fvcore traces, and torch 2.15 cannot trace timm's convolution of patches on `meta`
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            method.teacher.network(images, method.layers)
        teacher = float(counter.get_total_flops())
    return by_module, teacher


def recipe_table(config: Pretrain, depth: int) -> str:
    """Return fvcore's table of a method as Markdown, with a row for each module down to `depth` levels."""
    method, images, masked = without_numbers(config)
    return module_table(method, images, masked, context_of(method, images), depth=depth)

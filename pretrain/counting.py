"""Operations, parameters and memory of every method at its published sizes, for the table of compute costs.

fvcore counts in models without weights (flops.py). Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mimbench.engine.run.config import leaves
from mimbench.engine.training.counting import Counted, count, kept_for_backward
from mimbench.pretrain.config import Pretrain
from mimbench.pretrain.flops import context_of, method_operations, without_numbers
from mimbench.pretrain.recipes import amt, crossmae, mae, maskalign

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


def told_by(science: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the kind of method and its hidden, predicted and dropped shares; runs with equal ones compute the same."""
    return science.get("method.kind"), *(science.get(key) for key in SHARES)


def label(told_by: tuple[Any, ...]) -> str:
    """Return the name of a method without a row in `ROWS`: "crossmae .25", "mae with attention-driven masking"."""
    kind, masking, _, predict, *_ = told_by
    share = f" {predict:.2g}".replace(" 0.", " .") if kind == "crossmae" and masking == "random" else ""
    return f"{kind}{share}" + (" with attention-driven masking" if masking == "attention" else "")


def wanted(sizes: str = "SBLH") -> list[tuple[str, str, str]]:
    """Return size, name and recipe of everything that `pretraining` counts."""
    every = [(size, name, recipe.format(size.lower())) for of, name, recipe in ROWS for size in of]
    return sorted((one for one in every if one[0] in sizes), key=lambda one: "SBLH".index(one[0]))


def pretraining(sizes: str = "SBLH") -> Iterator[Counted]:
    """Yield the counts of every method in `ROWS` at each of its sizes, with its recipe's shares of patches."""
    for size, name, recipe in wanted(sizes):
        yield _pretraining(size, name, config_of(recipe))


def config_of(recipe: str) -> Pretrain:
    """Return the config of a recipe of `ROWS`."""
    modules = (mae, crossmae, amt, maskalign)
    build = next(function for module in modules if (function := getattr(module, recipe, None)))
    config: Pretrain = build()
    return config


def _pretraining(size: str, name: str, config: Pretrain) -> Counted:
    method, images, masked = without_numbers(config)
    by_module, teacher = method_operations(method, images, masked)
    encoder = sum(by_module.get(part, 0.0) for part in ENCODER)
    # SimMIM's single decoder layer is not called as a module
    decoder = sum(by_module.get(part, 0.0) for part in DECODER) or by_module[""] - encoder
    science = {leaf.key: leaf.value for leaf in leaves(config)}
    kept = kept_for_backward(method, images, masked, context_of(method, images))
    architecture = f"ViT-{size}/{config.encoder.patch}"
    return Counted(
        size, name, architecture, told_by(science), count(method), encoder, decoder, by_module[""] + teacher, kept
    )

"""Count the operations of transformers by formula (a multiply-add is two), to estimate the cost of a run.

    encoder_operations(SIZES["B"])            # a forward pass of one image
    encoder_operations(SIZES["B"], tokens=50) # a forward pass of a quarter of its patches and the class token

jobs/tables/counting.py counts the operations of real models; a test compares the two. Does not import torch.
"""

from __future__ import annotations

from mimbench.backbones.config import ViT


def encoder_operations(vit: ViT, tokens: int | None = None) -> float:
    """Return the operations of a forward pass of one image; `tokens` includes the class token (default: all)."""
    patches = vit.grid**2
    tokens = patches + 1 if tokens is None else tokens
    return 2 * patches * vit.width * 3 * vit.patch**2 + block_operations(vit.width, vit.depth, tokens)


def block_operations(width: int, depth: int, tokens: int) -> float:
    """Return the operations of pre-norm blocks with an MLP of four times the width: projections, MLP, attention."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)

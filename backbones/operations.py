"""Operations of transformers by arithmetic (two to a multiply-add), for estimates of cost before a run.

    encoder_operations(SIZES["B"])            # a forward pass of one image
    encoder_operations(SIZES["B"], tokens=50) # of a quarter of its patches and the class token

The counts of live models are in jobs/tables/counting.py; a test holds these against them. Starts without torch.
"""

from __future__ import annotations

from mimbench.backbones.config import ViT


def encoder_operations(vit: ViT, tokens: int | None = None) -> float:
    """Return those of a forward pass of one image; `tokens` with the class token, by default all patches and it."""
    patches = vit.grid**2
    tokens = patches + 1 if tokens is None else tokens
    return 2 * patches * vit.width * 3 * vit.patch**2 + block_operations(vit.width, vit.depth, tokens)


def block_operations(width: int, depth: int, tokens: int) -> float:
    """Return those of pre-norm blocks with an MLP of four times the width: projections and MLP, then attention."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)

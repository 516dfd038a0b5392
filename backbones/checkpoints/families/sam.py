"""SAM's image encoder, by its authors and by timm: blocks that attend in windows, and trained relative positions.

The encoder ends before the neck, two convolutions that bring its map to 256 channels. The released sizes have images of
1024 pixels, windows of 14 patches, and global blocks 2, 5, 8, 11 (B), 5, 11, 17, 23 (L) or 7, 15, 23, 31 (H); all of
that is read from the shapes: a block's tables of relative positions have 2 n - 1 rows for a side of n patches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from mimbench.backbones.checkpoints.families.plain import shown
from mimbench.backbones.checkpoints.family import WIDE, Converted, Family, Signature
from mimbench.backbones.config import Traits, Windows

TABLE = re.compile(r"blocks\.(\d+)\.attn\.rel_pos_h")
NECK = (r"neck\..*", "neck")


def flat_table(weights: dict[str, Tensor]) -> Converted:
    """Give the position table (1, n, n, D) the axes (1, n * n, D) that other encoders' have."""
    table = weights.get("pos_embed")
    if table is None or table.ndim != 4:
        return weights, {}
    return {**weights, "pos_embed": table.flatten(1, 2)}, {"pos_embed": "rows and columns joined"}


def sides_of(weights: Mapping[str, Tensor]) -> dict[int, int]:
    """Return by block the side, in patches, of what it attends to."""
    found = ((TABLE.fullmatch(key), value) for key, value in weights.items())
    return {int(match[1]): (len(value) + 1) // 2 for match, value in found if match}


def windows_of(sides: Mapping[int, int], grid: int) -> Windows:
    """Return the windows of blocks with these sides, in a grid of `grid` patches a side.

    Raises:
        ValueError: if there are windows of two sides.
    """
    windowed = {side for side in sides.values() if side != grid}
    if len(windowed) > 1:
        raise ValueError(
            f"its relative positions are for sides of {', '.join(map(str, sorted(windowed)))} patches, and the image "
            f"has {grid}; mimbench supports windows of one side"
        )
    return Windows(min(windowed, default=grid), tuple(block for block, side in sorted(sides.items()) if side == grid))


def sam_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the encoder's traits; windows and global blocks by the shapes of their tables.

    Raises:
        ValueError: as `windows_of`.
    """
    found = replace(shown(weights), class_token=False)
    return replace(found, windows=windows_of(sides_of(weights), sam_grid(weights)))


def timm_traits(weights: Mapping[str, Tensor]) -> Traits:
    """Return the same for timm's model, whose norms have eps 1e-5: its blocks are not given the encoder's norm.

    Raises:
        ValueError: as `windows_of`.
    """
    return replace(sam_traits(weights), norm_eps=1e-5)


def sam_grid(weights: Mapping[str, Tensor]) -> int:
    """Return the patches along one side of a pretraining image: the position table's.

    Raises:
        ValueError: if the table is missing or not square.
    """
    rows = weights["pos_embed"].shape[1] if "pos_embed" in weights and weights["pos_embed"].ndim == 3 else 0
    side = round(rows**0.5)
    if not rows or side * side != rows:
        raise ValueError(f"its position table has {rows} rows, which is not a square grid")
    return side


def sam_heads(width: int) -> int:
    """Return the number of heads: 64 channels each, 80 in ViT-H."""
    return WIDE.get(width, max(width // 64, 1))


def heads_of_tables(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of heads: a table of relative positions is as wide as one of them."""
    table, kernel = weights.get("blocks.0.attn.rel_pos_h"), weights.get("patch_embed.proj.weight")
    if table is None or kernel is None or table.ndim != 2 or len(kernel) % table.shape[1]:
        return None
    return len(kernel) // table.shape[1]


def square_grid(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the position table has rows and columns."""
    return any(key.endswith("pos_embed") and value.ndim == 4 for key, value in weights.items())


_sam = partial(
    Family,
    name="sam",
    convert=flat_table,
    positions="learned",
    interpolation="bicubic",
    models=r"samvit_\w+",
    heads=sam_heads,
    shown_heads=heads_of_tables,
    grid=sam_grid,
    traits=sam_traits,
    fits=square_grid,
)
SAM = _sam(
    title="SAM's image encoder (Kirillov et al., 2023)",
    signature=Signature(
        has=(
            r"(image_encoder\.)?patch_embed\.proj\.weight",
            r"(image_encoder\.)?blocks\.\d+\.mlp\.lin1\.weight",
            r"(image_encoder\.)?blocks\.\d+\.attn\.rel_pos_h",
        ),
        never=(r"(image_encoder\.)?cls_token",),
    ),
    source="facebookresearch/segment-anything",
    renames=((r"^image_encoder\.", ""), (r"\.mlp\.lin([12])\.", r".mlp.fc\1.")),
    dropped=(
        (r"(image_encoder\.)?neck\..*", "neck"),
        (r"prompt_encoder\..*", "encoder of prompts"),
        (r"mask_decoder\..*", "decoder of masks"),
        (r"pixel_(mean|std)", "mean and deviation of the images"),
    ),
)
SAM_TIMM = _sam(
    title="SAM's image encoder (Kirillov et al., 2023), by timm",
    signature=Signature(
        has=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.mlp\.fc1\.weight", r"blocks\.\d+\.attn\.rel_pos_h"),
        never=(r"cls_token", r"(fc_)?norm\.weight", r"blocks\.\d+\.(ls1\.gamma|gamma_1|attn\.q_norm\..*)"),
    ),
    source="timm's samvit_*",
    traits=timm_traits,
    dropped=(NECK, (r"head\..*", "classification head")),
)

"""SAM's image encoder, by its authors and by timm: recognised, and refused with the reason.

Most of its blocks attend in windows, and all add decomposed relative positions that were trained. Without them it is
another encoder, and the plain encoder that evaluations use has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import Tensor

from mimbench.backbones.checkpoints.family import Family, Signature


def windowed(_weights: Mapping[str, Tensor]) -> NoReturn:
    """Refuse an encoder that attends in windows.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "its blocks attend in windows and add trained relative positions, which mimbench's plain encoder does not "
        "support; the MAE checkpoint that SAM was trained from is supported"
    )


SAM = Family(
    name="sam",
    title="SAM's image encoder (Kirillov et al., 2023)",
    signature=Signature(
        has=(
            r"(image_encoder\.)?patch_embed\.proj\.weight",
            r"(image_encoder\.)?neck\..*",
            r"(image_encoder\.)?blocks\.\d+\.attn\.rel_pos_h",
        ),
    ),
    source="facebookresearch/segment-anything, timm's samvit_*",
    renames=((r"^image_encoder\.", ""),),
    traits=windowed,
)

"""data2vec 2.0 for images: recognised, and refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import Tensor

from mimbench.backbones.checkpoints.family import Family, Signature

LOCAL = r"modality_encoders\.IMAGE\.local_encoder\.proj\.weight"


def post_norm(_weights: Mapping[str, Tensor]) -> NoReturn:
    """Refuse an encoder whose norms follow attention and MLP.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "its blocks norm the sum after attention and after the MLP (layer_norm_first=false in its config), and the "
        "blocks here norm what goes into both, so no encoder of mimbench is this one; return its authors' model from "
        "my_encoder.py:build (docs/evaluate.md), or give data2vec's first release for images"
    )


DATA2VEC2 = Family(
    name="data2vec2",
    title="data2vec 2.0 for images (Baevski et al., 2022)",
    signature=Signature(has=(LOCAL, r"blocks\.\d+\.norm1\.weight")),
    source="facebookresearch/fairseq, examples/data2vec",
    renames=((r"^modality_encoders\.IMAGE\.local_encoder\.", "patch_embed."),),
    traits=post_norm,
)

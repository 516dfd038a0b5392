"""AIM (El-Nouby et al., 2024), before AIMv2: no class token, norms of embedded patches, no biases in its blocks.

Its blocks saw a prefix of the image in pretraining and see the whole image afterwards. The authors' attentive probe
averages the outputs of the last six blocks without a norm; the encoder here is the trunk with its own final norm.
Positions are MAE's fixed ones, computed for the grid of each image, which is `positions=regenerate` here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimbench.backbones.checkpoints.families.aimv2 import aimv2_heads, channels_first, native_grid
from mimbench.backbones.checkpoints.family import Family, Signature
from mimbench.backbones.config import Traits


def aim_traits(_weights: Mapping[str, Tensor]) -> Traits:
    """Return the encoder's traits, which all sizes share."""
    return Traits(class_token=False, qkv_bias=False, proj_bias=False, mlp_bias=False, patch_norm=True)


AIM = Family(
    name="aim",
    title="AIM (El-Nouby et al., 2024)",
    signature=Signature(
        has=(
            r"preprocessor\.patchifier\.norm\.bias",
            r"(trunk\.)?blocks\.\d+\.mlp\.fc1\.weight",
            r"(trunk\.)?post_trunk_norm\.weight",
        ),
        never=(r"(trunk\.)?blocks\.\d+\.mlp\.fc3\.weight", r"preprocessor\.(pos_embed|cls_token)"),
    ),
    source="apple/ml-aim, aim-v1",
    renames=(
        (r"^trunk\.", ""),
        (r"^preprocessor\.patchifier\.", "patch_embed."),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"^post_trunk_norm\.", "norm."),
    ),
    convert=channels_first,
    dropped=((r"head\..*", "attention pool and classification head"),),
    missing=("pos_embed",),
    positions="sincos",
    interpolation="regenerate",
    notes=("positions are computed for the grid of each image, as the authors do",),
    models=r"aim_\w+",
    sizes=frozenset({(1536, 24), (2048, 24), (3072, 24), (4096, 32)}),
    heads=aimv2_heads,
    grid=native_grid,
    traits=aim_traits,
)

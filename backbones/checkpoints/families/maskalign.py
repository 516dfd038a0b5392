"""MaskAlign: MAE's encoder with heads that predict the features of a teacher, which the file holds as a whole.

The final norm is computed in pretraining but nothing comes of it, so it keeps scale 1 and shift 0. It is loaded as it
is found: the authors' linear probe goes through it.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.family import Family, Signature

MASKALIGN = Family(
    name="maskalign",
    title="MaskAlign (Xue et al., 2023)",
    signature=Signature(
        has=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.qkv\.weight", r"distill_heads\.\d+\..*"),
        never=(r"decoder_.*",),
    ),
    source="OpenDriveLab/maskalign",
    dropped=(
        (r"distill_heads\..*", "head that predicts the teacher"),
        (r"distill_weights", "mixture of layers for the teacher"),
        (r"(clip_model|dino_model)\..*", "teacher"),
    ),
)

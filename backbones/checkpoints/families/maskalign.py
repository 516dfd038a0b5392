"""MaskAlign: MAE's encoder with heads that predict the features of a teacher; the file also holds the whole teacher.

Pretraining computes the final norm but does not use its output, so it keeps scale 1 and shift 0. It is loaded
unchanged, because the authors' linear probe uses it.
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

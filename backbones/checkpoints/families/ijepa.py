"""I-JEPA: a plain ViT without a class token, whose table of positions is fixed; the target encoder is evaluated.

The authors' files hold `target_encoder`, `encoder` and `predictor`; timm's are its `vit_*_gap_*` by their weights.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.families.plain import EMBEDDING, NOT_PLAIN, shown
from mimbench.backbones.checkpoints.family import Family, Signature
from mimbench.backbones.positions import rows_first

IJEPA = Family(
    name="ijepa",
    title="I-JEPA (Assran et al., 2023)",
    signature=Signature(
        has=(*EMBEDDING, r"norm\.weight", r"pos_embed", r"blocks\.\d+\.attn\.qkv\.bias"),
        never=(
            *NOT_PLAIN,
            *(r"cls_token", r"reg_token", r"dist_token", r"mask_token", r"fc_norm\..*", r"attn_pool\..*"),
            r"blocks\.\d+\.(ls1\.gamma|gamma_1)",
        ),
    ),
    source="facebookresearch/ijepa, timm's vit_*_gap_*.in*_ijepa",
    dropped=((r"head\.(weight|bias)", "classification head"),),
    interpolation="bicubic-antialias",
    traits=shown,
    fits=lambda weights: rows_first(weights["pos_embed"]) is False,
)

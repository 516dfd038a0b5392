"""MAE: whole pretraining files (encoder and decoder), and the encoder alone, as its authors publish it."""

from __future__ import annotations

from mimbench.backbones.checkpoints.family import Family, Signature, papers_heads
from mimbench.backbones.positions import rows_first

DECODER = (
    (r"decoder_(embed|norm|pred)\.(weight|bias)", "decoder"),
    (r"decoder_blocks\.\d+\..*", "decoder"),
    (r"decoder_pos_embed", "decoder"),
    (r"mask_token", "mask token"),
)


def mae_heads(width: int) -> int:
    """Return the number of heads: as in the papers, and 12 in MAE-Lite's ViT-Tiny (width 192), where DeiT has 3."""
    return 12 if width == 192 else papers_heads(width)


MAE = Family(
    name="mae",
    title="MAE (He et al., 2022), with its decoder",
    signature=Signature(
        has=(r"decoder_embed\.weight", r"patch_embed\.proj\.weight"),
        never=(r"decoder_blocks\.\d+\.cross_attn\..*", r"wfm\..*"),
    ),
    source="facebookresearch/mae; the AMT code writes the same",
    dropped=DECODER,
    heads=mae_heads,
)

MAE_ENCODER = Family(
    name="mae",
    title="MAE (He et al., 2022), the encoder alone",
    signature=Signature(
        has=(r"cls_token", r"pos_embed", r"patch_embed\.proj\.weight", r"norm\.weight", r"blocks\.\d+\.norm1\.weight"),
        never=(r"(fc_norm|head|decoder_\w+|base_encoder|norm_pre)\..*", r"blocks\.\d+\.(ls1|gamma_1).*", r"dist_token"),
    ),
    source="facebookresearch/mae; its released files, and timm's vit_*_patch1?_224.mae",
    dropped=DECODER[-1:],
    heads=mae_heads,
    fits=lambda weights: rows_first(weights["pos_embed"]) is False,
)

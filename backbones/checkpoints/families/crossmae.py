"""CrossMAE: no final norm, and a decoder that attends to the encoder's maps, mixed by `wfm` (or to the last alone).

The encoder alone, without the decoder, cannot be told from another ViT without a final norm: it is `plain`.
"""

from __future__ import annotations

from backbones.checkpoints.families.mae import DECODER
from backbones.checkpoints.family import Family, Signature

CROSSMAE = Family(
    name="crossmae",
    title="CrossMAE (Fu et al., 2025)",
    signature=Signature(
        has=(r"patch_embed\.proj\.weight",),
        any=(r"decoder_blocks\.\d+\.cross_attn\.q\.weight", r"wfm\.linear\.weight"),
        never=(r"decoder_embed\..*",),
    ),
    source="TonyLianLong/CrossMAE",
    dropped=(*DECODER, (r"dec_norms\.\d+\.(weight|bias)", "decoder"), (r"wfm\.linear\.weight", "decoder")),
    final_norm="none",
)

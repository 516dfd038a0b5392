"""CrossMAE: no final norm, and a decoder that attends to a mixture (`wfm`) of the encoder's maps.

Without `wfm` the decoder attends only to the last map, after a final norm. The authors' code lacks that norm, so it
cannot run without `wfm`; mimbench has the norm (`method.mixing=none`), and so have repaired copies of their code.

An encoder without its decoder looks like any other ViT without a final norm: its family is `plain`.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.families.mae import DECODER
from mimbench.backbones.checkpoints.family import Family, Signature

CROSSMAE_LAST = Family(
    name="crossmae",
    title="CrossMAE (Fu et al., 2025) without mixed maps",
    signature=Signature(
        has=(r"patch_embed\.proj\.weight", r"decoder_blocks\.\d+\.cross_attn\.q\.weight", r"norm\.weight"),
        never=(r"decoder_embed\..*", r"wfm\.linear\.weight"),
    ),
    source="TonyLianLong/CrossMAE, without --weight_fm",
    dropped=DECODER,
)
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

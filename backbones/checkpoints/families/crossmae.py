"""CrossMAE: no final norm, and a decoder that attends to the encoder's maps, mixed by `wfm`.

Without `wfm` the decoder attends to the last map alone, behind a final norm. The authors' code forgets that norm, and
so cannot be run in this way; ours has it (`method.mixing=none`), and so has who mended theirs.

The encoder alone, without the decoder, cannot be told from another ViT without a final norm: it is `plain`.
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

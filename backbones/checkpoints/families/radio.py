"""C-RADIO by timm: several class tokens and registers before the patches, no final norm, CLIP's statistics.

timm folds the conditioner of the authors' model into the statistics of images; its tokens beside the first count as
registers here. The authors' own files, whose conditioner and heads for each teacher are separate, are refused.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.families.clip import MEAN, STD
from mimbench.backbones.checkpoints.families.plain import EMBEDDING, NOT_PLAIN, shown
from mimbench.backbones.checkpoints.family import WIDE, Family, Signature


def radio_heads(width: int) -> int:
    """72 channels a head in so400m (1152 wide), 80 in H, 88 in g; else 64."""
    return 16 if width == 1152 else WIDE.get(width, max(width // 64, 1))


RADIO_TIMM = Family(
    name="radio",
    title="C-RADIO (Heinrich et al., 2025), by timm",
    signature=Signature(
        has=(*EMBEDDING, r"cls_token", r"reg_token", r"pos_embed", r"patch_embed\.proj\.bias"),
        never=(*NOT_PLAIN, r"(fc_)?norm\..*", r"mask_token", r"dist_token", r"blocks\.\d+\.gamma_1", r"attn_pool\..*"),
    ),
    source="timm's vit_*_radio_*",
    dropped=((r"head\.(weight|bias)", "classification head"),),
    positions="learned",
    interpolation="bicubic-antialias",
    mean=MEAN,
    std=STD,
    models=r"vit_\w+_radio_\w+",
    sizes=frozenset({(768, 12), (1024, 24), (1280, 32), (1152, 27), (1408, 40), (1536, 40)}),
    heads=radio_heads,
    traits=shown,
)

"""C-RADIO, by its authors and by timm: several class tokens and registers before the patches, no final norm.

The conditioner of the authors' model normalises images by CLIP's statistics; a file with others is not taken. The
tokens beside the first count as registers here, and the heads for each teacher are left out. Positions are resized
bilinearly to the square of the longer side, and cut; the hub's code of C-RADIOv3-B and -H aligned corners instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.clip import MEAN, STD
from mimbench.backbones.checkpoints.families.plain import EMBEDDING, NOT_PLAIN, shown
from mimbench.backbones.checkpoints.family import WIDE, Converted, Family, Signature

KERNEL, PATCH, TOKENS = "patch_embed.proj.weight", "patch_generator.embedder.weight", "patch_generator.cls_token.token"
BASE = r"(base_model\.|radio_model\.(model\.)?)?"  # of training files, and of the hub's


def radio_heads(width: int) -> int:
    """72 channels a head in so400m (1152 wide), 80 in H, 88 in g; else 64."""
    return 16 if width == 1152 else WIDE.get(width, max(width // 64, 1))


def timms_names(weights: dict[str, Tensor]) -> Converted:
    """Make the linear map of flat patches a kernel, and split the tokens into the class token and registers."""
    made, how = dict(weights), dict[str, str]()
    flat = made.get(PATCH)
    side = 0 if flat is None or flat.ndim != 2 else round((flat.shape[1] / 3) ** 0.5)
    if flat is not None and side and 3 * side * side == flat.shape[1]:
        made[KERNEL] = made.pop(PATCH).unflatten(1, (3, side, side))
        how[KERNEL] = "a linear map of flat patches, as a kernel"
    if TOKENS in made:
        tokens = made.pop(TOKENS)[None]
        made["cls_token"], how["cls_token"] = tokens[:, :1], "the first of the tokens"
        if tokens.shape[1] > 1:
            made["reg_token"], how["reg_token"] = tokens[:, 1:], "the tokens after the first"
    return made, how


def clips_statistics(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the conditioner, if the file has it, has CLIP's mean and deviation."""
    found = {key.rpartition(".")[2]: value for key, value in weights.items() if ".norm_" in key}
    wanted = {"norm_mean": MEAN, "norm_std": STD}
    pairs = ((found[name].flatten().float(), values) for name, values in wanted.items() if name in found)
    return all(len(values) == 3 and torch.allclose(own, torch.tensor(values), atol=1e-3) for own, values in pairs)


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
RADIO = replace(
    RADIO_TIMM,
    title="C-RADIO (Heinrich et al., 2025)",
    signature=Signature(
        has=(BASE + r"patch_generator\.(embedder\.weight|pos_embed)", BASE + r"blocks\.\d+\.norm1\.weight"),
        never=(r".*patch_generator\.patch_normalizer\..*", r".*parametrizations\..*", r".*\.video_embedder\..*"),
    ),
    source="NVlabs/RADIO, nvidia/C-RADIO* on the hub",
    renames=(
        ("^" + BASE, ""),
        (r"^patch_generator\.pos_embed$", "pos_embed"),
        (r"\.grandma$", ".gamma"),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),  # of transformers, which has it always
    ),
    convert=timms_names,
    dropped=(
        (r".*input_conditioner\.norm_(mean|std)", "mean and deviation of the images, which are CLIP's"),
        (r"(.*\.)?summary_idxs", "which tokens are read out"),
        (r"(radio_model\.)?(_heads|_feature_projections|adaptors)\..*", "heads for the teachers"),
        (
            r"(radio_model\.)?(_feature_normalizer|_intermediate_feature_normalizer|feature_normalizer)\..*",
            "statistics of features",
        ),
    ),
    interpolation="bilinear-square",
    models="",
    fits=clips_statistics,
)

"""Which recipe `mimbench evaluate --on coco` and its relatives run for an encoder, and why; imports no torch.

    coco(vit, about)          # Choice("det/vitdet_dinov2_l_pe", (), "PE's recipe for dinov2 ...")
    coco_plan(vit, about)     # ("det/vitdet_dinov2_l_pe", "windows of 32, blocks ...", ...): what that recipe does

`about` is the `EncoderInfo` of the checkpoint; None for a whole detector, which counts as MAE's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimbench.backbones.config import SIZES, Traits, ViT, vitdet_window
from mimbench.backbones.vitdet_traits import vitdet_plan
from mimbench.det.recipes import mask_rcnn, perception_encoder, scaled
from mimbench.engine.run.config import with_overrides
from mimbench.engine.run.task import Choice

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.info import EncoderInfo
    from mimbench.det.config import MaskRCNNConfig

BY_SIZE = {
    "B": "det/mask_rcnn_vitdet_b_100ep",
    "L": "det/mask_rcnn_vitdet_l_100ep",
    "H": "det/mask_rcnn_vitdet_h_75ep",
}
PE = "Perception Encoder's Table 14"
PUBLISHED = {  # family, width, depth, patch -> recipe of `PE`; MAE's relatives have ViTDet's own
    ("clip", 1024, 24, 14): "vitdet_clip_l_pe",
    ("clip", 1664, 48, 14): "vitdet_metaclip_g_pe",
    ("siglip", 1152, 27, 14): "vitdet_siglip_so_pe",
    ("siglip", 1152, 27, 16): "vitdet_siglip2_so_pe",
    ("siglip", 1536, 40, 16): "vitdet_siglip2_g_pe",
    ("eva02", 1024, 24, 14): "vitdet_eva02_l_pe",
    ("dinov2", 1024, 24, 14): "vitdet_dinov2_l_pe",
    ("dinov2", 1536, 40, 14): "vitdet_dinov2_g_pe",
    ("pe", 1536, 50, 14): "vitdet_pe_core_g_pe",
    ("pe_spatial", 1536, 50, 14): "vitdet_pe_spatial_g_pe",
}
SCALED = (  # up to so many blocks
    (16, scaled.vitdet_scaled_12_blocks_100ep),
    (28, scaled.vitdet_scaled_24_blocks_100ep),
    (36, scaled.vitdet_scaled_32_blocks_75ep),
)


def coco(vit: ViT, about: EncoderInfo | None) -> Choice:
    """Return the published recipe for an encoder; else that of its size with fitting windows, or a scaled one."""
    family, traits = (about.family, about.traits) if about else ("mae", Traits())
    published = PUBLISHED.get((family, vit.width, vit.depth, vit.patch))
    if published is not None:
        return Choice(f"det/{published}", (), f"{PE} has this recipe for {family} of this size")
    size = next((letter for letter, known in SIZES.items() if _shape(known) == _shape(vit)), None)
    if size not in BY_SIZE:
        recipe = next((made for most, made in SCALED if vit.depth <= most), scaled.vitdet_scaled_40_blocks_75ep)
        what = f"width {vit.width}, depth {vit.depth} and {vit.heads} heads"
        why = f"no ViTDet recipe is published for {what}, so the settings are scaled by depth: not a published protocol"
        return Choice(f"det/{recipe.__name__}", (), why)
    if traits.mae_like:
        return Choice(BY_SIZE[size], (), f"ViTDet's published recipe for ViT-{size}, made for MAE's encoders")
    base = mask_rcnn.mask_rcnn_vitdet_b_100ep()
    window = vitdet_window(base.shape_for(vit), traits, base.image)
    how = f"ViTDet's for ViT-{size} with windows of {window} (vitdet.window=none)"
    return Choice(BY_SIZE[size], ("vitdet.window=none",), f"no ViTDet recipe is published for {family}, so {how}")


def coco_plan(vit: ViT, about: EncoderInfo) -> tuple[str, ...]:
    """Return what the recipe that `coco` chooses does with an encoder: its name, and a phrase for each part."""
    choice = coco(vit, about)
    name = choice.recipe.partition("/")[2]
    made = next(getattr(module, name) for module in (mask_rcnn, scaled, perception_encoder) if hasattr(module, name))
    config: MaskRCNNConfig = with_overrides(made(), choice.overrides)
    shape, vitdet = config.shape_for(vit), config.vitdet
    patches = () if shape.patch == vit.patch else (f"patches are resampled from {vit.patch} to {shape.patch} pixels",)
    said = vitdet_plan(
        shape,
        about.traits,
        config.image,
        window=vitdet.window or vitdet_window(shape, about.traits, config.image),
        blocks=vitdet.attend_globally(vit.depth, about.traits),
        tiled=vitdet.positions == "tile",
        rel_pos=vitdet.rel_pos,
        computed=about.interpolation == "regenerate",
    )
    return (" ".join((choice.recipe, *choice.overrides)), *patches, *said)


def coco_frozen(vit: ViT, about: EncoderInfo | None) -> Choice:
    """Return the frozen recipe, without what the encoder lacks: its final norm, or table rows for its registers."""
    changed = []
    if about is not None and not about.final_norm:
        changed.append(("vitdet.norm=off", "the encoder has no final norm"))
    if about is not None and about.traits.positions == "relative" and about.traits.registers:
        changed.append(("vitdet.prefix=drop", "its table of relative positions has no rows for its registers"))
    why = "; ".join(f"{override}, because {reason}" for override, reason in changed)
    return Choice("det/mask_rcnn_frozen_12ep", tuple(override for override, _ in changed), why)


def _shape(vit: ViT) -> tuple[int, int, int]:
    return vit.width, vit.depth, vit.heads

"""Mask R-CNN of the Perception Encoder's paper (arXiv 2504.13181): eleven encoders under one ViTDet recipe, on COCO.

Tables 14 and 24: 1024 pixels, large-scale jitter, batch 64, AdamW, weight decay .1 on everything, pixel mean and
deviation of 127, patches of 16, the position table tiled over windows ("abswin"), no relative positions in attention,
class tokens and registers dropped, no final norm. Sources: the two tables, and facebookresearch/perception_models
3e352cc, apps/detection/projects/ViTDet/configs, where the two of PE's own encoders are.

The printed sizes of pretraining images are those of the recipes' `encoder`; a checkpoint has its own. MAE-L is printed
with patches of 14; MAE's has 16. Costs are those of detectron2's ViTDet-L, scaled by operations, not measured.
LVIS: det/recipes/perception_encoder_lvis.py.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import SIZES, ViT
from mimbench.det.config import MaskRCNNConfig, ViTDetConfig
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep
from mimbench.engine.run.cost import costs

WHOLE = 100  # epochs of the schedule that is scaled
HALF = (127 / 255, 127 / 255, 127 / 255)  # mean and deviation of the pixels
LARGE = ViT(1024, 24, 16, patch=14, image=224)  # CLIP's and EVA-02's
LAST_OF_QUARTERS = (5, 11, 17, 23)


@costs(days=10, gpus=8)
def vitdet_clip_l_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, CLIP-L, 100 epochs of COCO: 54.0 box AP, 47.5 mask AP."""
    return _large(LARGE, LAST_OF_QUARTERS)


@costs(days=38, gpus=8)
def vitdet_metaclip_g_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, MetaCLIP-G, 75 epochs of COCO: 53.2 box AP, 46.7 mask AP."""
    return _giant(ViT(1664, 48, 16, patch=14, image=224), (11, 23, 35, 47), window=14)


@costs(days=13, gpus=8)
def vitdet_siglip_so_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, SigLIP-so, 100 epochs of COCO: 54.4 box AP, 47.6 mask AP."""
    return _large(ViT(1152, 27, 16, patch=14, image=224), (2, 10, 18, 26))


@costs(days=10, gpus=8)
def vitdet_mae_l_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, MAE-L, 100 epochs of COCO: 55.6 box AP, 49.3 mask AP."""
    return _large(SIZES["L"], LAST_OF_QUARTERS)


@costs(days=10, gpus=8)
def vitdet_eva02_l_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, EVA-02-L, 100 epochs of COCO: 54.9 box AP, 48.2 mask AP."""
    return _large(LARGE, LAST_OF_QUARTERS)


@costs(days=13, gpus=8)
def vitdet_siglip2_so_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, SigLIP 2-so, 100 epochs of COCO: 56.0 box AP, 49.4 mask AP."""
    return _large(ViT(1152, 27, 16, patch=16, image=512), (2, 10, 18, 26))


@costs(days=24, gpus=8)
def vitdet_siglip2_g_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, SigLIP 2-g-opt, 75 epochs of COCO: 57.1 box AP, 50.2 mask AP."""
    return _giant(ViT(1536, 40, 16, patch=16, image=384), (9, 19, 29, 39), window=14)


@costs(days=10, gpus=8)
def vitdet_dinov2_l_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, DINOv2-L, 100 epochs of COCO: 55.7 box AP, 49.0 mask AP.

    mimbench run det/vitdet_dinov2_l_pe data=coco checkpoint=dinov2_vitl14_pretrain.pth
    """
    return _large(ViT(1024, 24, 16, patch=14, image=518), LAST_OF_QUARTERS, window=32)


@costs(days=12, gpus=8)
def vitdet_dinov2_g_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, DINOv2-g, 36 epochs of COCO: 57.2 box AP, 50.0 mask AP."""
    return _giant(ViT(1536, 40, 24, patch=14, image=518), (9, 19, 29, 39), epochs=36)


@costs(days=39, gpus=8)
def vitdet_pe_core_g_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, PE core G, 75 epochs of COCO: 57.0 box AP, 49.8 mask AP."""
    return _giant(ViT(1536, 50, 16, patch=14, image=448), (12, 24, 36, 49))


@costs(days=19, gpus=8)
def vitdet_pe_spatial_g_pe() -> MaskRCNNConfig:
    """Mask R-CNN of PE's Table 14, PE spatial G, 36 epochs of COCO: 57.8 box AP, 50.3 mask AP."""
    return _giant(ViT(1536, 50, 16, patch=14, image=448), (12, 24, 36, 49), epochs=36)


def _large(encoder: ViT, global_blocks: tuple[int, ...], window: int = 14) -> MaskRCNNConfig:
    """Return the recipe of Table 24 for encoders of up to 400 M parameters: 100 epochs."""
    base = mask_rcnn_vitdet_b_100ep()
    return replace(
        base,
        encoder=encoder,
        vitdet=ViTDetConfig(
            patch=16, window=window, global_blocks=global_blocks, rel_pos=False, drop_path=0.4, positions="tile"
        ),
        pixel_mean=HALF,
        pixel_std=HALF,
        layer_decay=0.8,
        decay_norms=True,
    )


def _giant(encoder: ViT, global_blocks: tuple[int, ...], window: int = 32, epochs: int = 75) -> MaskRCNNConfig:
    """Return the recipe of Table 24 for encoders of more than a billion parameters: half the rate, 75 or 36 epochs."""
    base = _large(encoder, global_blocks, window).scaled(epochs, WHOLE)
    return replace(base, vitdet=replace(base.vitdet, drop_path=0.5), lr=5e-5, layer_decay=0.9)

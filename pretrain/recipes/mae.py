"""MAE as published, the baseline of CrossMAE, and its small twin on `handwritten`.

    mimbench run pretrain/mae_vitb_800ep data=imagenet

The numbers after "fine-tuned" are ImageNet top-1: for 1600 epochs from MAE's repository, for 800 and 400 epochs from
CrossMAE's paper, for its own MAE runs.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import SIZES
from mimbench.pretrain.config import MAEConfig, Pretrain, RandomMasking
from mimbench.pretrain.recipes.crossmae import crossmae_handwritten


def mae_vitb_800ep() -> Pretrain:
    """MAE ViT-B/16, 800 epochs. Fine-tuned 83.3.

    mimbench run pretrain/mae_vitb_800ep data=imagenet
    """
    return Pretrain(method=MAEConfig(), masking=RandomMasking(mask_ratio=0.75, predict=0.75), lr_factor="none")


def mae_vits_800ep() -> Pretrain:
    """MAE ViT-S/16, 800 epochs. Fine-tuned 78.9."""
    return replace(mae_vitb_800ep(), encoder=SIZES["S"], method=MAEConfig(width=256, heads=8))


def mae_vitl_800ep() -> Pretrain:
    """MAE ViT-L/16, 800 epochs. Fine-tuned 85.4."""
    return replace(mae_vitb_800ep(), encoder=SIZES["L"])


def mae_vith_800ep() -> Pretrain:
    """MAE ViT-H/14, 800 epochs. Fine-tuned 85.8."""
    return replace(mae_vitb_800ep(), encoder=SIZES["H"])


def mae_vitb_1600ep() -> Pretrain:
    """MAE ViT-B/16, 1600 epochs: the released weights. Fine-tuned 83.664."""
    return replace(mae_vitb_800ep(), epochs=1600)


def mae_vitl_1600ep() -> Pretrain:
    """MAE ViT-L/16, 1600 epochs: the released weights. Fine-tuned 85.952."""
    return replace(mae_vitl_800ep(), epochs=1600)


def mae_vith_1600ep() -> Pretrain:
    """MAE ViT-H/14, 1600 epochs: the released weights. Fine-tuned 86.928."""
    return replace(mae_vith_800ep(), epochs=1600)


def mae_vitb_400ep() -> Pretrain:
    """MAE ViT-B/16, 400 epochs: the baseline of CrossMAE's ablations. Fine-tuned 83.0."""
    return replace(mae_vitb_800ep(), epochs=400, warmup_epochs=20.0)


def mae_vitb_448px_400ep() -> Pretrain:
    """MAE ViT-B/16 on images of 448 pixels, 400 epochs. CrossMAE's repository quotes 84.8 for it, fine-tuned."""
    return replace(mae_vitb_400ep(), encoder=replace(SIZES["B"], image=448))


def mae_handwritten() -> Pretrain:
    """MAE on handwritten, 96 wide and 4 deep, in minutes on two cores: what `mimbench demo --method mae` trains."""
    return replace(
        crossmae_handwritten(),
        method=MAEConfig(depth=1, width=48, heads=4),
        masking=RandomMasking(mask_ratio=0.75, predict=0.75),
    )

"""MaskAlign's recipes: as published, and the small twin on `handwritten`.

    mimbench run pretrain/maskalign_vitb data=imagenet

The teacher's weights must be in timm's cache, or in a file given with checkpoint=FILE: a run downloads nothing. The
numbers after "fine-tuned" are ImageNet top-1 from the authors' model card.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import SIZES
from mimbench.pretrain.config import KeepMasking, MaskAlignConfig, Pretrain, RandomMasking
from mimbench.pretrain.recipes.crossmae import crossmae_handwritten


def maskalign_vitb() -> Pretrain:
    """MaskAlign ViT-B/16, teacher CLIP-B/16, 200 epochs. Fine-tuned 85.4.

    mimbench run pretrain/maskalign_vitb data=imagenet
    """
    return Pretrain(
        method=MaskAlignConfig(),
        masking=KeepMasking(mask_ratio=0.7),
        epochs=200,
        warmup_epochs=20.0,
        batch=1024,
        base_lr=1.5e-4,
        lr_factor="none",
        min_lr=1e-5,
    )


def maskalign_vitb_dino() -> Pretrain:
    """MaskAlign ViT-B/16, teacher DINO-B/16, 200 epochs: the third teacher of the authors' code, no number printed."""
    return replace(maskalign_vitb(), method=MaskAlignConfig(teacher="vit_base_patch16_224.dino"))


def maskalign_vitb_random() -> Pretrain:
    """MaskAlign ViT-B/16, patches shown at random instead of by attention: an ablation, no number known."""
    return replace(maskalign_vitb(), masking=RandomMasking(mask_ratio=0.7, predict=0.7))


def maskalign_vitl() -> Pretrain:
    """MaskAlign ViT-L/16, teacher CLIP-B/16, 200 epochs. Fine-tuned 86.5.

    Student and teacher differ in depth; the authors' code then runs only with fusion=sum, this code also with linear.
    """
    return replace(maskalign_vitb(), encoder=SIZES["L"], method=MaskAlignConfig(fusion="sum", drop_path=0.2))


def maskalign_vitl_clipl() -> Pretrain:
    """MaskAlign ViT-L/16, teacher CLIP-L/14 on images of 196 pixels, 200 epochs. Fine-tuned 87.4."""
    teacher = "vit_large_patch14_clip_quickgelu_224.openai"
    method = MaskAlignConfig(teacher=teacher, teacher_image=196, drop_path=0.2)
    return replace(maskalign_vitb(), encoder=SIZES["L"], method=method)


def maskalign_handwritten() -> Pretrain:
    """MaskAlign on handwritten, 96 wide and 4 deep, from a teacher pretrained before: minutes on two cores.

    mimbench run pretrain/maskalign_handwritten checkpoint=pretrain/crossmae_handwritten-...

    The teacher is any encoder with 8 x 8 patches; the demo's is the CrossMAE encoder that it pretrains first.
    """
    return replace(
        crossmae_handwritten(),
        method=MaskAlignConfig(teacher=None, layers="top2", drop_path=0.0),
        masking=KeepMasking(mask_ratio=0.7),
    )

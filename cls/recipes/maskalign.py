"""MaskAlign's classification recipes (OpenDriveLab/maskalign, README).

    mimbench run cls/finetune_maskalign_vitb checkpoint=encoder.safetensors data=imagenet

MaskAlign uses MAE's script with the values here. The encoder's positions are absolute, like MAE's, and its final norm
has scale 1 and shift 0 because pretraining does not train it.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.cls.config import Finetune, Linear
from mimbench.cls.recipes.published import finetune_vitb, finetune_vitl, linear_vitb_cls


def finetune_maskalign_vitb() -> Finetune:
    """Fine-tune MaskAlign ViT-B/16, 100 epochs. 85.4 with CLIP-B/16 as teacher.

    Source: MaskAlign README, 200 epochs of pretraining. Costs as much as MAE's: about 230 V100-hours.

    mimbench run cls/finetune_maskalign_vitb checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitb(), base_lr=3e-4, layer_decay=0.55, drop_path=0.2)


def finetune_maskalign_vitl() -> Finetune:
    """Fine-tune MaskAlign ViT-L/16, 50 epochs. 86.5 with CLIP-B/16 as teacher, 87.4 with CLIP-L/14 at 196 pixels.

    Source: MaskAlign README. About 285 V100-hours.

    mimbench run cls/finetune_maskalign_vitl checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitl(), base_lr=3e-4, drop_path=0.4)


def linear_maskalign_vitb() -> Linear:
    """Linear probe of MaskAlign ViT-B/16 on the class token, 90 epochs; a quarter of MAE's learning rate.

    Source: MaskAlign README (no result is published). About 75 V100-hours.

    mimbench run cls/linear_maskalign_vitb checkpoint=PATH data=imagenet
    """
    return replace(linear_vitb_cls(), base_lr=0.025)

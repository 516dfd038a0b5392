"""AMT's classification recipes (guijiejie/AMT, README and simmim_finetune__vit_base.yaml).

    mimbench run cls/finetune_amt_vitb checkpoint=encoder.safetensors data=imagenet

AMT and FAMT publish accuracies only as differences from MAE's (linear probe: + 2.9 to + 5.9 over five data sets).
FAMT published no code; its encoders are evaluated like AMT's.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.cls.config import Finetune, Linear
from mimbench.cls.recipes.published import finetune_vitb, linear_vitb_cls


def finetune_amt_vitb() -> Finetune:
    """Fine-tune AMT on MAE ViT-B/16, 100 epochs: a learning rate and layer decay higher than MAE's own for ViT-B.

    Source: AMT README (no accuracy is published). About 230 V100-hours.

    mimbench run cls/finetune_amt_vitb checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitb(), base_lr=1e-3, layer_decay=0.75)


def finetune_simmim_amt_vitb() -> Finetune:
    """Fine-tune AMT on SimMIM ViT-B/16, 100 epochs, by SimMIM's script: class token, its schedule, gradients clipped.

    Source: simmim_finetune__vit_base.yaml. The batch is not published; 2048 is SimMIM's. For it, the file's rates (for
    512 images) are 5e-3 at the peak and 1e-6 at start and end. About 230 V100-hours.

    mimbench run cls/finetune_simmim_amt_vitb checkpoint=PATH data=imagenet
    """
    return replace(
        finetune_vitb(),
        pool="cls",
        warmup_epochs=20.0,
        batch=2048,
        base_lr=6.25e-4,  # 1.25e-3 per 512 images
        schedule="simmim_cosine",
        start_lr=1e-6,  # 2.5e-7 per 512 images, like min_lr
        min_lr=1e-6,
        grad_clip=5.0,
    )


def linear_amt_vitb() -> Linear:
    """Linear probe of AMT on MAE ViT-B/16 on the class token, 90 epochs, with torchvision's random crop.

    Source: AMT README and main_linprobe.py (no accuracy is published). About 75 V100-hours.

    mimbench run cls/linear_amt_vitb checkpoint=PATH data=imagenet
    """
    return replace(linear_vitb_cls(), crop="torchvision")

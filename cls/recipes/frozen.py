"""Recipes for frozen encoders that the papers do not use: the fast linear probe and few-shot, on stored features.

    mimbench run cls/linear_fast checkpoint=encoder.safetensors data=imagenet
    mimbench evaluate encoder.safetensors --on linear_fast,fewshot --data imagenet

No published number uses these protocols: compare encoders with each other, not with papers.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import HANDWRITTEN
from mimbench.cls.config import FastLinear, FewShot
from mimbench.engine.run.config import Compute


def linear_fast() -> FastLinear:
    """Fast linear probe: 40 heads on stored features (2 pools x 4 blocks x 5 learning rates), 90 epochs of LARS.

    About 1/65 of the compute of the papers' probe (`cls/linear_vitb`), 4/5 of it for encoding each image once. The
    features of ImageNet take 16 GB as fp16 (layers=1: 4 GB) and are also used by k-NN and few-shot.
    On a GPU, use compute.accumulate as for `cls/linear_vitb`, so that batch norm sees fewer images than the batch.

    mimbench run cls/linear_fast checkpoint=PATH data=imagenet
    """
    return FastLinear()


def linear_fast_single() -> FastLinear:
    """Fast linear probe with one head at the papers' setting: mean of the patch tokens of the last block, rate 0.1.

    mimbench run cls/linear_fast_single checkpoint=PATH data=imagenet
    """
    return replace(linear_fast(), pools=("avg",), layers=1, base_lrs=(0.1,), held_out=0.0)


def fewshot() -> FewShot:
    """Few-shot: 1, 2, 5 and 10 images per class, 5 draws, ridge and logistic regression.

    mimbench run cls/fewshot checkpoint=PATH data=imagenet
    """
    return FewShot()


def linear_fast_handwritten() -> FastLinear:
    """Fast linear probe of the demo's encoder on handwritten, 12 heads; under half a minute on one core."""
    return FastLinear(
        data="handwritten",
        encoder=HANDWRITTEN,
        image=64,
        eval_crop=1.0,
        layers=2,
        base_lrs=(1.0, 10.0, 100.0),  # few steps and a trust ratio of 0.001: the papers' 0.1 would not move the head
        held_out=0.1,
        batch=512,
        compute=_small(),
        eval_batch=64,
        stored="fp32",  # few images; with fp32 a single head then equals the slow probe exactly
    )


def fewshot_handwritten() -> FewShot:
    """Few-shot with the demo's encoder on handwritten; seconds on one core."""
    return FewShot(
        data="handwritten",
        encoder=HANDWRITTEN,
        image=64,
        eval_crop=1.0,
        compute=_small(),
        eval_batch=64,
        stored="fp32",  # the fast probe's stored features are reused
    )


def _small() -> Compute:
    """Return settings for small models: autocast and loader processes would cost more time than they save."""
    return Compute(precision="fp32", workers=0)

"""Classification recipes: the published settings, and their small twins on `handwritten`.

    mimbench run cls/finetune_vitb checkpoint=encoder.safetensors data=imagenet

Each function returns a complete config. A variant calls another recipe and replaces fields. Numbers are those of the
CrossMAE and MAE repositories' instructions. Where the CrossMAE paper (table 11) has other values, the repository's are
used, because they are known to reproduce the published accuracy. MaskAlign: maskalign.py; AMT: amt.py.

Papers' accuracies are top-1 on ImageNet-1k in percent. CrossMAE's and MAE's scripts evaluate every epoch, and
CrossMAE's keeps only the best epoch: compare its numbers with `finetune_best_top1`.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import HANDWRITTEN, SIZES
from mimbench.cls.config import Classify, Finetune, Knn, Linear
from mimbench.engine.run.config import Compute


def finetune_vitb() -> Finetune:
    """Fine-tune ViT-B/16, 100 epochs. CrossMAE 83.7 (predict .75) and 83.5 (.25), MAE 83.3 at 800 epochs.

    MAE at 1600 epochs: 83.66; over four seeds 83.57 +- .08. Sources: CrossMAE README and table 1, MAE FINETUNE.md.
    About 230 V100-hours (7 h 11 min on 32).

    mimbench run cls/finetune_vitb checkpoint=PATH data=imagenet
    """
    return Finetune(encoder=SIZES["B"])


def finetune_vits() -> Finetune:
    """Fine-tune ViT-S/16, 100 epochs. CrossMAE 79.3 (predict .75) and 79.2 (.25), MAE 78.9.

    Sources: CrossMAE README (79.318; 79.462 pretrained on one RTX 4090) and table 1. About a quarter of ViT-B's cost.

    mimbench run cls/finetune_vits checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitb(), encoder=SIZES["S"])


def finetune_vitl() -> Finetune:
    """Fine-tune ViT-L/16, 50 epochs. CrossMAE 85.4, MAE 85.4; MAE at 1600 epochs 85.95.

    CrossMAE publishes no command, only "same as MAE". Source: MAE FINETUNE.md (four seeds: 85.87 +- .07).
    About 285 V100-hours (8 h 52 min on 32).

    mimbench run cls/finetune_vitl checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitb(), encoder=SIZES["L"], epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.2)


def finetune_vith() -> Finetune:
    """Fine-tune ViT-H/14, 50 epochs. CrossMAE 86.4 (predict .75) and 86.3 (.25), MAE 85.8; at 1600 epochs 86.93.

    Source: MAE FINETUNE.md, CrossMAE as for ViT-L. About 840 V100-hours (13 h 9 min on 64). MAE's authors
    warn that fp16 may overflow with pool=cls.

    mimbench run cls/finetune_vith checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitl(), encoder=SIZES["H"], drop_path=0.3)


def finetune_vitb_448() -> Finetune:
    """Fine-tune ViT-B/16 at 448 pixels, 100 epochs, pretrained at 448. CrossMAE 84.6, MAE 84.8. Settings UNVERIFIED.

    The authors publish the checkpoint and its accuracy (CrossMAE README: 84.598 and 84.8) but no fine-tuning settings
    for 448 pixels; these are ViT-B's at 224. Images are resized to 448 and evaluated without cropping a margin.
    Four times the patches: about 1,100 V100-hours.

    mimbench run cls/finetune_vitb_448 checkpoint=PATH data=imagenet
    """
    return replace(finetune_vitb(), encoder=replace(SIZES["B"], image=448), image=448)


def finetune_handwritten() -> Finetune:
    """Fine-tune the demo's encoder on handwritten; under a minute on one core.

    Lighter augmentation than the published recipes, because flipping or small crops make digits unreadable.
    """
    return Finetune(
        data="handwritten",
        encoder=HANDWRITTEN,
        image=64,
        epochs=1,
        warmup_epochs=0.3,
        batch=32,
        base_lr=8e-3,
        layer_decay=0.75,
        drop_path=0.05,
        mixup=0.2,
        cutmix=0.0,
        mixup_probability=0.5,
        randaugment=None,
        erasing=0.0,
        smallest_crop=0.6,
        flip=False,
        eval_crop=1.0,
        compute=_small(),
        evaluate_every=None,
    )


def linear_vitb() -> Linear:
    """Linear probe of ViT-B/16 on mean patch tokens, 90 epochs of LARS. CrossMAE 65.4, MAE 65.1 (feature not stated).

    For an encoder without a final norm, the official script accepts only this feature: the mean of the patch tokens,
    then a LayerNorm that is not trained. Source: CrossMAE table 12. batch=16384 compute.accumulate=32 gives batch norm
    the 512 images of one of the authors' GPUs. About 75 V100-hours (MAE: 2 h 20 min on 32).

    mimbench run cls/linear_vitb checkpoint=PATH data=imagenet
    """
    return Linear(encoder=SIZES["B"])


def linear_vits() -> Linear:
    """Linear probe of ViT-S/16 on mean patch tokens, as `linear_vitb`. CrossMAE 51.5, MAE 49.7.

    mimbench run cls/linear_vits checkpoint=PATH data=imagenet
    """
    return replace(linear_vitb(), encoder=SIZES["S"])


def linear() -> Linear:
    """Linear probe of an encoder of any size, with the settings of `linear_vitb`, which no paper states for it.

    mimbench run cls/linear checkpoint=PATH data=imagenet
    """
    return linear_vitb()


def linear_vitb_cls() -> Linear:
    """Linear probe of ViT-B/16 on the class token after the final norm, as MAE does it: 67.8 at 1600 epochs.

    Source: MAE FINETUNE.md (68.0 in the paper, on TPUs).

    mimbench run cls/linear_vitb_cls checkpoint=PATH data=imagenet
    """
    return replace(linear_vitb(), pool="cls", norm="tokens")


def linear_vitl_cls() -> Linear:
    """Linear probe of ViT-L/16 on the class token, 50 epochs, as MAE does it: 76.0 at 1600 epochs.

    Source: MAE FINETUNE.md: "sufficient to train 50 epochs" for ViT-L and ViT-H.

    mimbench run cls/linear_vitl_cls checkpoint=PATH data=imagenet
    """
    return replace(linear_vitb_cls(), encoder=SIZES["L"], epochs=50)


def linear_vith_cls() -> Linear:
    """Linear probe of ViT-H/14 on the class token, 50 epochs, as MAE does it: 77.2 at 1600 epochs.

    mimbench run cls/linear_vith_cls checkpoint=PATH data=imagenet
    """
    return replace(linear_vitl_cls(), encoder=SIZES["H"])


def classify() -> Classify:
    """Evaluate a fine-tuned classifier on a validation split. MAE's classifiers: B 83.664, L 85.952, H 86.928.

    mimbench run cls/classify checkpoint=mae_finetuned_vit_base.pth data=imagenet
    """
    return Classify()


def robustness() -> Classify:
    """Evaluate a fine-tuned classifier on ImageNet-A, -R, -Sketch, -V2, -C or with ReaL's labels.

    MAE's README, fine-tuned ViT-B, -L, -H at 224 pixels: A 35.9, 57.1, 68.2; R 48.3, 59.9, 64.4; Sketch 34.5, 45.3,
    49.6; C (error, lower is better) 51.7, 41.8, 33.8.

    mimbench run cls/robustness checkpoint=PATH test=imagenet-a data=/data/imagenet-a
    """
    return replace(classify(), test="imagenet-a")


def linear_handwritten() -> Linear:
    """Linear probe of the demo's encoder on cached features of handwritten; under half a minute on one core."""
    return Linear(
        data="handwritten",
        encoder=HANDWRITTEN,
        image=64,
        eval_crop=1.0,
        views="cached",
        batch=512,
        base_lr=10.0,  # few steps and a trust ratio of 0.001: the papers' 0.1 would barely move the head
        compute=_small(),
        eval_batch=64,
        evaluate_every=None,
    )


def knn() -> Knn:
    """k-NN on mean patch tokens: cosine similarity, temperature 0.07, k = 10, 20, 100, 200.

    mimbench run cls/knn checkpoint=PATH data=imagenet
    """
    return Knn()


def knn_handwritten() -> Knn:
    """k-NN with the demo's encoder on handwritten; seconds on one core."""
    return replace(
        knn(), data="handwritten", encoder=HANDWRITTEN, image=64, eval_crop=1.0, compute=_small(), eval_batch=64
    )


def _small() -> Compute:
    """Return settings for small models: autocast and loader processes would cost more time than they save."""
    return Compute(precision="fp32", workers=0)

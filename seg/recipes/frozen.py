"""Recipes for frozen encoders: linear heads of three papers, and CAPI's k-NN over patches.

Reference numbers are mIoU on ADE20K. They depend on the resolution of label maps and on augmentation as much as on the
encoder, so compare only results of the same protocol.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.backbones.config import HANDWRITTEN
from mimbench.engine.run.config import Compute
from mimbench.seg.config import Augment, Inference, LinearSegmentationConfig, PatchKnnConfig, PatchLogisticConfig

MULTI_SCALE = (1.0, 1.32, 1.73, 2.28, 3.0)  # of DINOv2's test


def linear_dinov2() -> LinearSegmentationConfig:
    """DINOv2's linear head: batch norm and a 1x1 convolution on the last block, 40k iterations. DINOv2-B: 47.3 mIoU.

    mimbench run seg/linear_dinov2 checkpoint=PATH data=ade20k
    """
    return LinearSegmentationConfig(data="ade20k")


def linear_dinov2_ms() -> LinearSegmentationConfig:
    """DINOv2's multi-scale linear head: the last 4 blocks at 640 pixels, five scales and flip. DINOv2-B: 51.3 mIoU."""
    return replace(
        linear_dinov2(),
        layers=4,
        image=640,
        augment=Augment(long=99_999_999, smallest=1.0, largest=3.0),
        inference=Inference(long=99_999_999, scales=MULTI_SCALE, flip=True, scaling="described"),
    )


def linear_dinov3() -> LinearSegmentationConfig:
    """DINOv3's linear head: dropout of channels, its own schedule. Its resizing differs. B: 51.8 mIoU."""
    return replace(linear_dinov2(), dropout=0.1, schedule="dinov3", weight_decay=1e-3)


def linear_dinov3_transforms() -> LinearSegmentationConfig:
    """DINOv3's linear head with its own resizing and colours too: the whole protocol. DINOv3-B: 51.8 mIoU."""
    base = linear_dinov3()
    return replace(
        base,
        augment=replace(base.augment, transforms="dinov3"),
        inference=replace(base.inference, resizing="pillow"),
    )


def linear_ibot() -> LinearSegmentationConfig:
    """iBOT's linear head: no batch norm, four blocks side by side, 160k iterations. iBOT-B: 38.3 mIoU."""
    return replace(
        linear_dinov2(),
        blocks=(3, 5, 7, 11),
        norm="none",
        steps=160_000,
        lr=8e-4,
        weight_decay=0.05,
        decay_all=False,
    )


def knn_capi() -> PatchKnnConfig:
    """CAPI's k-NN over patches at 224 pixels, with its own mIoU. CAPI L/14 on ImageNet-1k: 29.2.

    mimbench run seg/knn_capi checkpoint=PATH data=ade20k
    """
    return PatchKnnConfig(data="ade20k")


def logistic_capi() -> PatchLogisticConfig:
    """CAPI's logistic regression of patches at 224 pixels, with its own mIoU. CAPI L/14 on ImageNet-1k: 34.4.

    mimbench run seg/logistic_capi checkpoint=PATH data=ade20k
    """
    return PatchLogisticConfig(data="ade20k")


def linear_handwritten() -> LinearSegmentationConfig:
    """A linear head on all four blocks of the demo's encoder, on handwritten, features computed once."""
    return LinearSegmentationConfig(
        data="handwritten",
        encoder=HANDWRITTEN,
        layers=4,
        views="cached",
        image=64,  # the encoder's own size, at which digits are as large as it knows them
        steps=300,
        batch=16,
        lr=3e-2,
        warmup=30,
        compute=_small(),
    )


def knn_handwritten() -> PatchKnnConfig:
    """k-NN over patches with the demo's encoder on handwritten, only cosine distance."""
    return PatchKnnConfig(
        data="handwritten", encoder=HANDWRITTEN, image=64, neighbours=(1, 10), distances=("cosine",), compute=_small()
    )


def logistic_handwritten() -> PatchLogisticConfig:
    """Logistic regression of patches with the demo's encoder on handwritten, three penalties."""
    return PatchLogisticConfig(
        data="handwritten", encoder=HANDWRITTEN, image=64, strengths=(1e-4, 1e-2, 1.0), iterations=50, compute=_small()
    )


def _small() -> Compute:
    return Compute(precision="fp32", workers=0, log_every=10, save_every=100)

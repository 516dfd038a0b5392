"""Pretraining configs and recipes: what is refused, what is derived, and the text they become."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, from_text, leaves, to_text, with_overrides
from mimbench.pretrain.config import (
    AttentionMasking,
    CrossMAEConfig,
    GridMasking,
    KeepMasking,
    MAEConfig,
    Pretrain,
    RandomMasking,
)
from mimbench.pretrain.recipes import crossmae as recipes
from mimbench.pretrain.recipes.amt import mae_amt_vitb_400ep
from mimbench.pretrain.recipes.maskalign import maskalign_vitb

RECIPES = [f for name, f in inspect.getmembers(recipes, inspect.isfunction) if name.startswith("crossmae_")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_every_recipe_comes_back_from_its_text(recipe: Callable[[], Pretrain]) -> None:
    assert from_text(Pretrain, to_text(recipe())) == recipe()
    assert recipe.__doc__


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RandomMasking(mask_ratio=1.0), "mask_ratio=1.0 must lie between 0 and 1"),
        (lambda: RandomMasking(mask_ratio=0.5, predict=0.75), r"predict=0.75 must lie in \(0, mask_ratio=0.5\]"),
        (lambda: RandomMasking(predict=0.0), "predict=0.0"),
        (lambda: GridMasking(cell=1), "cell=1 must be at least 2"),
        (lambda: GridMasking(predict=0.8), r"predict=0.8 must lie in \(0, 0.75\]: cell=2"),
        (lambda: KeepMasking(mask_ratio=1.0), "mask_ratio=1.0 must lie"),
        (lambda: Pretrain(masking=KeepMasking(), lr_factor="none"), "masking.kind=keep .* method.kind=crossmae"),
        (lambda: CrossMAEConfig(depth=0), "depth=0"),
        (lambda: CrossMAEConfig(width=50, heads=5), "width=50"),
        (lambda: CrossMAEConfig(feature_maps=(), use_input=False), "nothing to mix"),
        (lambda: Pretrain(epochs=10), "warmup_epochs=40.0"),
        (lambda: Pretrain(epochs=0, warmup_epochs=0.0), "epochs=0"),
        (lambda: Pretrain(compute=Compute(accumulate=3)), r"batch=4096 must be a multiple of compute.accumulate=3"),
        (lambda: Pretrain(base_lr=0.0), "base_lr"),
        (lambda: Pretrain(smallest_crop=0.0), "smallest_crop"),
        (lambda: CrossMAEConfig(heads=0), "heads=0 of the decoder"),
        (lambda: Pretrain(method=CrossMAEConfig(feature_maps=(3, 11, 12))), "0 to 11"),
        (lambda: MAEConfig(width=30), "width=30 of the decoder"),
        (lambda: Pretrain(grad_clip=0.0), "grad_clip=0.0 must be positive"),
        (lambda: Pretrain(start_lr=-1.0), "start_lr"),
        (lambda: Pretrain(batch=0), "batch=0 must be at least 1"),
        (lambda: Pretrain(base_lr=math.nan), "base_lr=nan must be positive"),
        (lambda: Pretrain(weight_decay=math.inf), "weight_decay=inf must be 0 or more"),
        (lambda: Pretrain(betas=(0.9, 1.5)), r"betas=\[0.9, 1.5\] must lie in \[0, 1\)"),
        (lambda: CrossMAEConfig(mixing="none", feature_maps=(0, 1)), r"feature_maps=\[0, 1\] .*mixing=none"),
        (
            lambda: Pretrain(method=CrossMAEConfig(feature_maps=()), masking=AttentionMasking()),
            r"feature_maps=\[\] trains no block of the encoder",
        ),
        (
            lambda: Pretrain(encoder=ViT(image=144), masking=AttentionMasking(crop_mode="original")),
            "crop_mode=original needs a grid that divides 224, not the encoder's 9 x 9: use crop_mode=correct",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    ("predict", "factor", "rate"),
    [
        (0.75, "predict/mask", 2.4e-3),
        (0.25, "predict/mask", 8.0e-4),
        (0.25, "mask/predict", 7.2e-3),
        (0.25, "none", 2.4e-3),
    ],
)
def test_the_learning_rate_is_that_of_the_original(predict: float, factor: Any, rate: float) -> None:
    config = Pretrain(masking=RandomMasking(predict=predict), lr_factor=factor)
    assert config.learning_rate == pytest.approx(rate, rel=1e-12)


def test_the_published_recipes() -> None:
    base = recipes.crossmae_vitb_800ep()
    assert (base.batch, base.epochs, base.warmup_epochs, base.betas) == (4096, 800, 40.0, (0.9, 0.95))
    assert base.method == CrossMAEConfig(width=512, heads=16, depth=12)
    assert base.masking == RandomMasking(mask_ratio=0.75, predict=0.25)
    small = recipes.crossmae_vits_800ep()
    assert (small.method, small.encoder) == (CrossMAEConfig(width=256, heads=8), SIZES["S"])
    assert recipes.crossmae_vitb_800ep_predict75().learning_rate == pytest.approx(2.4e-3)
    assert recipes.crossmae_vith_800ep().encoder.patch == 14
    assert recipes.crossmae_vitb_448px_400ep().encoder.grid == 28


def test_a_field_of_the_method_can_be_overridden() -> None:
    config = with_overrides(recipes.crossmae_vitb_800ep(), ["masking.predict=0.75", "method.feature_maps=[0, 5, 11]"])
    assert config.method == replace(CrossMAEConfig(), feature_maps=(0, 5, 11))
    assert config.masking == RandomMasking(predict=0.75)


@pytest.mark.parametrize("recipe", [recipes.crossmae_vitb_800ep, maskalign_vitb, mae_amt_vitb_400ep])
def test_the_former_name_of_the_mask_ratio(recipe: Callable[[], Pretrain]) -> None:
    former = with_overrides(recipe(), ["masking.mask=0.5"])
    assert former == with_overrides(recipe(), ["masking.mask_ratio=0.5"])
    assert former.masking.mask_ratio == 0.5  # type: ignore[union-attr]
    text = to_text(former).replace("masking.mask_ratio", "masking.mask")  # as an earlier release wrote it
    assert from_text(Pretrain, text) == former
    assert {leaf.recorded for leaf in leaves(former)} >= {"masking.mask"}  # identities keep the first name


def test_a_method_and_a_masking_can_be_named_alone() -> None:
    config = with_overrides(recipes.crossmae_vitb_800ep(), ["masking=attention", "masking.throw=0.3", "method=mae"])
    assert (config.method, config.masking) == (MAEConfig(), AttentionMasking(throw=0.3))
    with pytest.raises(ValueError, match=r"masking\.kind='rnd' must be one of 'random', 'grid', 'keep', 'attention'"):
        with_overrides(recipes.crossmae_vitb_800ep(), ["masking=rnd"])

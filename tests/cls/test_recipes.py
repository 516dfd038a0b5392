"""Recipes hold the published settings, configs refuse what cannot be run, and say why."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.config import SIZES
from mimbench.cls.config import Finetune, Knn, Linear
from mimbench.cls.finetune import prepare
from mimbench.cls.recipes import amt as recipes_attention
from mimbench.cls.recipes import maskalign as recipes_maskalign
from mimbench.cls.recipes import published as recipes
from mimbench.engine.run.config import Compute, from_text, identity, to_text, with_overrides
from mimbench.engine.training.step import Stepper
from tests.cls.conftest import TINY

ALL = [
    function
    for module in (recipes, recipes_maskalign, recipes_attention)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.__name__)
def test_every_recipe_survives_its_text_and_says_what_it_is(recipe: Any) -> None:
    config = recipe()
    assert from_text(type(config), to_text(config)) == config
    assert recipe.__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("recipe", [r for r in ALL if isinstance(r(), Finetune)], ids=lambda recipe: recipe.__name__)
def test_two_steps_of_every_fine_tunings_tiny_twin(recipe: Any, folder: Path) -> None:
    compute = Compute(precision="fp32", workers=0, threads=1, device="cpu")
    config = replace(recipe(), data=str(folder), encoder=TINY, image=16, batch=12, compute=compute)
    training = prepare(config, torch.device("cpu")).training
    stepper, batches = Stepper(training, torch.device("cpu")), training.batches.starting_at(0)
    classifier = training.model.classifier
    before = classifier.head.weight.clone(), classifier.pos_embed.clone()
    losses = [stepper.step(step, batches)[0]["loss"].item() for step in range(2)]
    assert losses[0] == pytest.approx(math.log(3), rel=0.05)  # a head near zero says nothing yet
    assert math.isfinite(losses[1])
    assert not torch.equal(classifier.head.weight, before[0])
    assert not torch.equal(classifier.pos_embed, before[1])  # positions are trained


@pytest.mark.parametrize(
    ("recipe", "expected"),  # epochs, base_lr, layer_decay, drop_path: the READMEs of CrossMAE and MAE
    [
        (recipes.finetune_vits, (100, 5e-4, 0.65, 0.1)),
        (recipes.finetune_vitb, (100, 5e-4, 0.65, 0.1)),
        (recipes.finetune_vitl, (50, 1e-3, 0.75, 0.2)),
        (recipes.finetune_vith, (50, 1e-3, 0.75, 0.3)),
        (recipes_maskalign.finetune_maskalign_vitb, (100, 3e-4, 0.55, 0.2)),
        (recipes_maskalign.finetune_maskalign_vitl, (50, 3e-4, 0.75, 0.4)),
        (recipes_attention.finetune_amt_vitb, (100, 1e-3, 0.75, 0.1)),
    ],
)
def test_finetune_recipes_are_the_published_ones(recipe: Any, expected: tuple[float, ...]) -> None:
    config = recipe()
    assert (config.epochs, config.base_lr, config.layer_decay, config.drop_path) == expected
    assert config.encoder == SIZES[recipe.__name__[-1].upper()]
    assert (config.schedule, config.start_lr, config.jpeg_decoder) == ("cosine", 0, "torchvision")
    assert config.peak_lr == config.base_lr * 4
    assert (config.batch, config.warmup_epochs, config.min_lr, config.weight_decay) == (1024, 5, 1e-6, 0.05)
    assert (config.betas, config.grad_clip, config.pool, config.image) == ((0.9, 0.999), None, "avg", 224)
    assert (config.label_smoothing, config.mixup, config.cutmix) == (0.1, 0.8, 1.0)
    assert (config.mixup_probability, config.switch_probability, config.erasing) == (1.0, 0.5, 0.25)
    assert (config.randaugment, config.smallest_crop, config.flip) == ("rand-m9-mstd0.5-inc1", 0.08, True)


def test_448_pixels_are_evaluated_whole() -> None:
    config = recipes.finetune_vitb_448()
    assert (config.image, config.encoder.image, config.eval_crop) == (448, 448, None)
    assert replace(config, image=224, encoder=SIZES["B"]) == recipes.finetune_vitb()


def test_simmims_recipe_is_the_published_one() -> None:
    config = recipes_attention.finetune_simmim_amt_vitb()
    assert (config.epochs, config.warmup_epochs, config.layer_decay, config.drop_path) == (100, 20, 0.65, 0.1)
    assert (config.pool, config.grad_clip, config.schedule) == ("cls", 5.0, "simmim_cosine")
    for512 = config.batch / 512
    assert config.peak_lr == pytest.approx(1.25e-3 * for512)
    assert config.min_lr == config.start_lr == pytest.approx(2.5e-7 * for512)


@pytest.mark.parametrize(
    ("recipe", "expected"),  # size, epochs, learning rate, crop
    [
        (recipes.linear_vitb_cls, ("B", 90, 6.4, "one-draw")),
        (recipes.linear_vitl_cls, ("L", 50, 6.4, "one-draw")),
        (recipes.linear_vith_cls, ("H", 50, 6.4, "one-draw")),
        (recipes_maskalign.linear_maskalign_vitb, ("B", 90, 1.6, "one-draw")),
        (recipes_attention.linear_amt_vitb, ("B", 90, 6.4, "torchvision")),
    ],
)
def test_linear_recipes_of_the_class_token_are_the_published_ones(recipe: Any, expected: tuple[Any, ...]) -> None:
    config = recipe()
    size = next(letter for letter, vit in SIZES.items() if vit == config.encoder)
    assert (size, config.epochs, pytest.approx(config.peak_lr), config.crop) == expected
    assert (config.pool, config.norm, config.batch, config.warmup_epochs) == ("cls", "tokens", 16384, 10)


def test_linear_recipe_is_the_published_one() -> None:
    config = recipes.linear_vitb()
    assert config.peak_lr == pytest.approx(6.4)
    assert (config.batch, config.epochs, config.warmup_epochs, config.weight_decay) == (16384, 90, 10, 0)
    assert (config.views, config.pool, config.norm) == ("augmented", "avg", "pooled")
    assert (recipes.linear_vitb_cls().pool, recipes.linear_vitb_cls().norm) == ("cls", "tokens")


def test_how_often_is_evaluated_is_not_part_of_the_identity() -> None:
    config = recipes.finetune_vitb()
    assert identity(config, "cls", None) == identity(replace(config, evaluate_every=None), "cls", None)
    assert identity(config, "cls", None) != identity(replace(config, pool="cls"), "cls", None)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Finetune(batch=30, compute=Compute(accumulate=2)), "15 images per micro-batch"),
        (lambda: Finetune(batch=10, compute=Compute(accumulate=4)), "multiple of compute.accumulate=4"),
        (lambda: Finetune(warmup_epochs=101), "between 0 and epochs=100"),
        (lambda: Finetune(drop_path=1.5), "drop_path=1.5 must lie between 0 and 1"),
        (lambda: Finetune(drop_path=1.0), "drop_path=1.0 would always drop"),
        (lambda: Finetune(epochs=0, warmup_epochs=0), "epochs=0 must be positive"),
        (lambda: Finetune(randaugment="much"), "rand-m9-mstd0.5-inc1"),
        (lambda: Finetune(randaugment="rand-m9.5"), "randaugment='rand-m9.5' is not"),
        (lambda: Finetune(mixup=-0.1), "mixup=-0.1 must not be negative"),
        (lambda: Finetune(evaluate_every=0), "evaluate_every=0 must be positive"),
        (lambda: Linear(batch=0), "batch=0 must be positive"),
        (lambda: Linear(eval_crop=0), "eval_crop=0 must be positive"),
        (lambda: Knn(neighbours=(10,)), "k=20 must be one of neighbours"),
        (lambda: Knn(neighbours=(0, 20)), "at least 1"),
        (lambda: Knn(temperature=0), "temperature=0 must be positive"),
    ],
)
def test_what_cannot_be_run_is_refused(build: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build()


def test_odd_batches_are_fine_without_mixing() -> None:
    assert Finetune(batch=31, mixup=0, cutmix=0).micro_batch == 31
    assert Finetune(batch=31, mixup_probability=0).micro_batch == 31


def test_overrides_reach_every_kind_of_field() -> None:
    config = with_overrides(recipes.finetune_vitb(), ["randaugment=none", "pool=cls", "encoder.depth=2"])
    assert (config.randaugment, config.pool, config.encoder.depth) == (None, "cls", 2)
    assert with_overrides(recipes.knn(), ["neighbours=5,20"]).neighbours == (5, 20)

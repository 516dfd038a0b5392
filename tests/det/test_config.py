"""Detection configs and recipes: what they hold, and what they say about settings that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backbones.config import ViT
from det import recipes
from det.config import MaskRCNN
from engine.config import from_text, identity, to_text, with_overrides

RECIPES = [
    recipes.mask_rcnn_vitdet_b_100ep,
    recipes.mask_rcnn_vitdet_l_100ep,
    recipes.mask_rcnn_vitdet_h_75ep,
    recipes.mask_rcnn_handwritten,
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipe_survives_being_written_out(recipe) -> None:
    config = recipe()
    assert from_text(MaskRCNN, to_text(config)) == config
    assert recipe.__doc__


@pytest.mark.parametrize(
    ("recipe", "blocks", "width", "drop_path", "decay"),
    [
        (RECIPES[0], (2, 5, 8, 11), 768, 0.1, 0.7),
        (RECIPES[1], (5, 11, 17, 23), 1024, 0.4, 0.8),
        (RECIPES[2], (7, 15, 23, 31), 1280, 0.5, 0.9),
    ],
    ids=["b", "l", "h"],
)
def test_published_recipes(recipe, blocks, width, drop_path, decay) -> None:
    config = recipe()
    assert config.vitdet.attend_globally(config.encoder.depth) == blocks
    assert (config.encoder.width, config.vitdet.drop_path, config.layer_decay) == (width, drop_path, decay)
    assert config.shape_for(config.encoder).patch == 16


def test_shorter_training_of_the_huge_one() -> None:
    config = recipes.mask_rcnn_vitdet_h_75ep()
    assert (config.steps, config.milestones, config.decay_norms) == (138_281, (122_916, 133_159), True)
    assert config.warmup == pytest.approx(187.5, abs=0.01)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("vitdet.global_blocks=[7]", "0 to 3"),
        ("vitdet.scales=[1, 2]", "halve"),
        ("vitdet.scales=[3]", "4, 2, 1, 0.5"),
        ("vitdet.scales=[1, 0.5]", "one size for each of the 3"),
        ("image=100", "multiple of 16"),
        ("milestones=[5, 3]", "rise"),
        ("augment.smallest=3", "largest"),
        ("compute.accumulate=3", "multiple of compute.accumulate"),
        ("heads.detections=0", "at least 1"),
        ("lr=0", "positive"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        with_overrides(recipes.mask_rcnn_handwritten(), [override])
    assert "\n" not in str(refusal.value)


def test_an_encoder_is_checked_when_its_checkpoint_is_known() -> None:
    config = replace(recipes.mask_rcnn_handwritten(), checkpoint="encoder.safetensors")
    with pytest.raises(ValueError, match="multiple of 28"):
        config.shape_for(ViT(96, 4, 4, patch=14, image=28))


def test_how_a_run_is_computed_is_not_its_identity() -> None:
    config = recipes.mask_rcnn_handwritten()
    again = with_overrides(config, ["compute.workers=3", "evaluate_every=5", "evaluate_batch=1", "shown=0"])
    assert identity(config, "det", None) == identity(again, "det", None)
    assert identity(config, "det", None) != identity(replace(config, lr=2e-3), "det", None)

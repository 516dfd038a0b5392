"""Detection configs and recipes: what they hold, and what they say about settings that cannot be."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from mimbench.backbones.config import Traits, ViT
from mimbench.det.config import MaskRCNNConfig, Proposals
from mimbench.det.recipes import lvis as recipes_lvis
from mimbench.det.recipes import machines as recipes_machines
from mimbench.det.recipes import mask_rcnn as recipes
from mimbench.det.recipes import shorter as recipes_shorter
from mimbench.det.recipes import variants as recipes_variants
from mimbench.engine.run.config import from_text, identity, to_text, with_overrides

RECIPES = [
    recipes.mask_rcnn_vitdet_b_100ep,
    recipes.mask_rcnn_vitdet_l_100ep,
    recipes.mask_rcnn_vitdet_h_75ep,
    recipes.mask_rcnn_handwritten,
]
ALL = [
    function
    for module in (recipes, recipes_shorter, recipes_variants, recipes_lvis, recipes_machines)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.__name__)
def test_a_recipe_survives_being_written_out(recipe) -> None:
    config = recipe()
    assert from_text(MaskRCNNConfig, to_text(config)) == config
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
    assert config.vitdet.attend_globally(config.encoder.depth, Traits()) == blocks
    assert (config.encoder.width, config.vitdet.drop_path, config.layer_decay) == (width, drop_path, decay)
    assert config.shape_for(config.encoder).patch == 16


def test_shorter_training_of_the_huge_one() -> None:
    config = recipes.mask_rcnn_vitdet_h_75ep()
    assert (config.steps, config.milestones, config.decay_norms) == (138_281, (122_916, 133_159), True)
    assert config.warmup == pytest.approx(187.5, abs=0.01)


@pytest.mark.parametrize(
    ("recipe", "steps", "milestones"),
    [
        (recipes_shorter.mask_rcnn_vitdet_b_25ep, 46_093, (40_972, 44_386)),
        (recipes_shorter.mask_rcnn_vitdet_l_36ep, 66_375, (59_000, 63_916)),
        (recipes_shorter.mask_rcnn_vitdet_h_50ep, 92_187, (81_944, 88_773)),
    ],
)
def test_a_shorter_schedule_is_a_part_of_the_whole(recipe, steps, milestones) -> None:
    config = recipe()
    assert (config.steps, config.milestones) == (steps, milestones)
    assert config.warmup == pytest.approx(250 * steps / 184_375)


def test_a_recipe_for_a_machine_is_the_published_run() -> None:
    pairs = [
        (recipes_machines.mask_rcnn_vitdet_b_100ep_8gpu, recipes.mask_rcnn_vitdet_b_100ep),
        (recipes_machines.mask_rcnn_vitdet_l_100ep_24gb, recipes.mask_rcnn_vitdet_l_100ep),
        (recipes_machines.mask_rcnn_vitdet_h_75ep_24gb, recipes.mask_rcnn_vitdet_h_75ep),
    ]
    for machine, published in pairs:
        assert identity(machine(), "det", None) == identity(published(), "det", None)
    deviation = recipes_machines.mask_rcnn_vitdet_b_25ep_24gb_640px
    assert identity(deviation(), "det", None) != identity(recipes_shorter.mask_rcnn_vitdet_b_25ep(), "det", None)
    assert deviation.__doc__.startswith("DEVIATION")


def test_lvis() -> None:
    config, huge = recipes_lvis.lvis_mask_rcnn_vitdet_b_100ep(), recipes_lvis.lvis_mask_rcnn_vitdet_h_100ep()
    assert (config.benchmark, config.repeat, config.lr, config.steps) == ("lvis", 0.001, 2e-4, 156_250)
    heads = config.heads
    assert (heads.class_loss, heads.federated, heads.score_threshold, heads.detections) == ("federated", 50, 0.02, 300)
    assert (huge.lr, huge.vitdet.drop_path, huge.decay_norms, huge.warmup) == (1e-4, 0.4, True, 250.0)


def test_as_published_differs_in_what_the_paper_says() -> None:
    config = recipes_variants.mask_rcnn_vitdet_h_as_published()
    assert (config.proposals.norm, config.warmup) == (True, 250.0)
    assert replace(config, proposals=Proposals(), warmup=187.5) == replace(
        recipes.mask_rcnn_vitdet_h_75ep(), warmup=187.5
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("vitdet.global_blocks=[7]", "0 to 3"),
        ("vitdet.scales=[1, 2]", "half"),
        ("vitdet.scales=[3]", "4, 2, 1, 0.5"),
        ("vitdet.scales=[1, 0.5]", "must have 3 sizes"),
        ("image=100", "multiple of 16"),
        ("milestones=[5, 3]", "ascending"),
        ("augment.smallest=3", "largest"),
        ("compute.accumulate=3", "multiple of compute.accumulate"),
        ("heads.detections=0", "at least 1"),
        ("lr=0", "positive"),
        ("repeat=2", "share of the images"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        with_overrides(recipes.mask_rcnn_handwritten(), [override])
    assert "\n" not in str(refusal.value)


def test_a_batch_taken_at_once_is_not_divided() -> None:
    with pytest.raises(ValueError, match=r"loss_weights=batch .* use loss_weights=image"):
        with_overrides(recipes.mask_rcnn_handwritten(), ["loss_weights=batch", "compute.accumulate=2"])


def test_an_encoder_is_checked_when_its_checkpoint_is_known() -> None:
    config = replace(recipes.mask_rcnn_handwritten(), checkpoint="encoder.safetensors")
    with pytest.raises(ValueError, match="multiple of 28"):
        config.shape_for(ViT(96, 4, 4, patch=14, image=28))


def test_how_a_run_is_computed_is_not_its_identity() -> None:
    config = recipes.mask_rcnn_handwritten()
    again = with_overrides(config, ["compute.workers=3", "evaluate_every=5", "eval_batch=1", "shown=0"])
    assert identity(config, "det", None) == identity(again, "det", None)
    assert identity(config, "det", None) != identity(replace(config, lr=2e-3), "det", None)
    assert identity(config, "det", None) != identity(replace(config, evaluate_precision="bf16"), "det", None)
    with pytest.raises(ValueError, match=r"evaluate_precision=bf16 needs engine=mimbench"):
        replace(config, engine="detectron2", evaluate_precision="bf16")

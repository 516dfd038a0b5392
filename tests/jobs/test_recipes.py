"""Recipes are found by name, and every one of them is a config that survives being written down."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mimbench.engine.run.config import Compute, from_text, identity, leaves, to_text
from mimbench.engine.run.fields import recorded_name
from mimbench.jobs.runs.recipes import Recipe, config_type, find, recipes
from mimbench.jobs.runs.tasks import tasks

ALL = list(recipes())
FORMER: dict[str, Any] = {  # settings of recipes that the demo of four minutes has changed
    "cls/finetune_handwritten": {"epochs": 2, "batch": 64, "base_lr": 4e-3, "pixels": "pil"},
    "det/mask_rcnn_handwritten": {"batch": 32, "lr": 1e-3},
    "seg/linear_handwritten": {"steps": 600},
    **{
        f"pretrain/{method}_handwritten": {"epochs": 15, "batch": 64, "base_lr": 8e-3}
        for method in ("crossmae", "mae", "maskalign")
    },
}


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_every_recipe_is_a_complete_typed_config(recipe: Recipe) -> None:
    config = recipe.build()
    assert from_text(type(config), to_text(config)) == config
    assert config == recipe.build()
    assert isinstance(config.compute, Compute)
    drawn = set() if recipe.name in ("cls/classify", "cls/robustness") else {"seed"}  # nothing is random in these
    assert {"data"} | drawn <= {leaf.key for leaf in leaves(config)}
    assert config_type(recipe.stage, recorded_name(type(config))) is type(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_identities_are_those_of_the_first_release_and_of_schema_2() -> None:
    """Under whatever names its fields and classes go today; without and with a checkpoint.

    38d412e wrote those of schema 1, which find the runs of earlier releases; those of schema 2 have fixed data. The
    rows of segmentation were added later, with the values of fb7d36c.
    """
    golden = json.loads((Path(__file__).parent / "golden_identities.json").read_text())
    built = {recipe.name: (recipe.build(), recipe.stage) for recipe in ALL if recipe.name in golden}
    assert built.keys() == golden.keys()
    for name, (now, stage) in built.items():
        config = dataclasses.replace(now, **FORMER.get(name, {}))
        assert (config != now) == (name in FORMER)
        former = [identity(config, stage, key, schema=1) for key in (None, "run:abc")]
        today = [identity(config, stage, key, "0123456789abcdef") for key in (None, "run:abc")]
        assert [*former, *today] == golden[name], name


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_every_recipe_says_what_it_is(recipe: Recipe) -> None:
    assert recipe.about.endswith((".", ";", "]"))
    assert len(recipe.about) < 120


def test_names_are_unique_and_every_stage_has_some() -> None:
    names = [recipe.name for recipe in ALL]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} == set(tasks())


def test_private_and_imported_functions_are_no_recipes() -> None:
    functions = {recipe.function.__name__ for recipe in ALL}
    assert "replace" not in functions
    assert not any(name.startswith("_") for name in functions)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("cls/kn", "did you mean cls/knn"),
        ("knn", "did you mean cls/knn?"),
        ("det/mask_rcnn_vitdet_b", "did you mean det/mask_rcnn_vitdet_b_"),
        ("zzz", "`mimbench recipes` lists them"),
    ],
)
def test_the_nearest_name_is_offered(name: str, offered: str) -> None:
    with pytest.raises(ValueError, match=f"unknown recipe '{name}'") as caught:
        find(name)
    assert offered in str(caught.value)


def test_only_config_classes_of_a_stage_are_looked_up() -> None:
    for stage, name in (("cls", "annotations"), ("os", "system"), ("cls", "Nothing")):
        with pytest.raises(ValueError, match="another version of mimbench"):
            config_type(stage, name)

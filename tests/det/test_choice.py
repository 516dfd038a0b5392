"""Which COCO recipe a file gets, and a step of its detector: files of every family, by timm and by transformers."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoints.families import FAMILIES
from mimbench.backbones.checkpoints.huggingface.models import MODEL_TYPES
from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.config import SIZES, Traits, ViT, Windows
from mimbench.backbones.weights import open_weights
from mimbench.det.choice import PUBLISHED, coco, coco_frozen, coco_plan
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals
from mimbench.det.model.build import build_detector
from mimbench.det.recipes import frozen, mask_rcnn, perception_encoder, scaled
from mimbench.engine.run.config import with_overrides
from mimbench.engine.run.task import Choice
from tests.backbones.test_families_timm import CASES as BY_TIMM
from tests.backbones.test_families_timm import TOLD, made
from tests.backbones.transformers_cases import CASES as BY_TRANSFORMERS
from tests.backbones.transformers_cases import made as made_by_transformers
from tests.det.tiny import SIDE, batch

PAPER = Path(__file__).parents[2] / "jobs" / "papers" / "pe.toml"
FAMILY_NAMES = {family.name for family in FAMILIES} | {kind.family for kind in MODEL_TYPES.values()}
TINY_HEADS: dict[str, Any] = {
    "heads": Heads(samples=8, convs=1, channels=8, fc=16, detections=5),
    "proposals": Proposals(convs=1, samples=16, before_nms=(30, 30), after_nms=(10, 10)),
}
WIDE_ONES = ("so400m", "eva_giant", "gigantic")


def one_of_each() -> dict[str, str]:
    """Return by family and library the name of one case."""
    found: dict[str, str] = {}
    for name, (family, *_) in {**BY_TIMM, **TOLD}.items():
        if not any(wide in name for wide in WIDE_ONES):
            found.setdefault(f"timm's {family}", name)
    for name, case in BY_TRANSFORMERS.items():
        native = " native" if case.config.get("is_native") else ""  # AIMv2 whose table is computed for each grid
        found.setdefault(f"transformers' {case.family}{native}", name)
    return found


def saved(which: str, folder: Path) -> str:
    """Write the file of a case and return its location."""
    name = one_of_each()[which]
    if which.startswith("transformers"):
        case = BY_TRANSFORMERS[name]
        made_by_transformers(case.kind, case.config).save_pretrained(folder)
        return str(folder)
    changes, options = (BY_TIMM[name][1], "") if name in BY_TIMM else (TOLD[name][1], f"?{TOLD[name][2]}")
    torch.save(made(name, **changes).state_dict(), folder / "encoder.pth")
    return f"{folder}/encoder.pth{options}"


def config_of(choice: Choice) -> MaskRCNNConfig:
    """Return the whole config of a choice."""
    modules = (mask_rcnn, frozen, scaled, perception_encoder)
    name = choice.recipe.removeprefix("det/")
    made_by = next(getattr(module, name) for module in modules if hasattr(module, name))
    config: MaskRCNNConfig = with_overrides(made_by(), choice.overrides)
    return config


@pytest.mark.parametrize("which", one_of_each())
def test_a_file_of_every_family_takes_a_step_on_coco(which: str, tmp_path: Path) -> None:
    location = saved(which, tmp_path)
    found = open_weights(location, "detector")
    for choose in (coco, coco_frozen):
        config = config_of(choose(found.vit, found.info))
        vitdet = replace(config.vitdet, channels=8, drop_path=0.0)
        config = replace(config, checkpoint=location, image=SIDE, vitdet=vitdet, **TINY_HEADS)
        model, info = build_detector(config, 3)
        assert info is not None
        assert info.family == found.family
        losses = model.train()({name: values[:1] for name, values in batch().items()})
        losses["loss"].backward()
        assert torch.isfinite(losses["loss"])
        assert (model.backbone.net.blocks[0].attn.qkv.weight.grad is None) == (choose is coco_frozen)


def _rows(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a paper's tables, wherever they are in the file."""
    if isinstance(content, dict) and "label" in content and "is" in content:
        yield content
        return
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _rows(part)


def test_names_of_families_are_those_of_the_registry() -> None:
    assert {family for family, *_ in PUBLISHED} <= FAMILY_NAMES
    rows = list(_rows(tomllib.loads(PAPER.read_text())))
    kinds = {row.get("is", {}).get("pretrain", {}).get("method", {}).get("kind") for row in rows} - {None}
    assert kinds
    assert kinds <= FAMILY_NAMES
    of_recipe = {recipe: family for (family, *_), recipe in PUBLISHED.items()}
    for row in rows:
        recipe = row.get("recipe", "").removeprefix("det/").removeprefix("lvis_")
        if recipe in of_recipe:
            assert row["is"]["pretrain"]["method"]["kind"] == of_recipe[recipe]


@pytest.mark.parametrize(
    ("family", "vit", "traits", "said"),
    [
        ("mae", SIZES["B"], Traits(), ["det/mask_rcnn_vitdet_b_100ep", "windows of 14, blocks 2, 5, 8, 11"]),
        (
            "dinov2",
            ViT(1024, 24, 16, patch=14, image=518),
            Traits(layer_scale=True),
            ["det/vitdet_dinov2_l_pe", "resampled from 14 to 16", "windows of 32, blocks 5, 11", "positions are tiled"],
        ),
        (
            "sam",
            ViT(768, 12, 12, 16, 1024),
            Traits(class_token=False, windows=Windows(14, (2, 5, 8, 11))),
            ["det/mask_rcnn_vitdet_b_100ep vitdet.window=none", "windows of 14", "are the encoder's own"],
        ),
    ],
)
def test_inspect_describes_the_recipe_that_evaluate_runs(
    family: str, vit: ViT, traits: Traits, said: list[str]
) -> None:
    about = EncoderInfo(family, vit, final_norm=True, traits=traits)
    plan = coco_plan(vit, about)
    assert plan[0].split()[0] == coco(vit, about).recipe
    assert all(any(phrase in part for part in plan) for phrase in said)
    native = replace(about, interpolation="regenerate")
    assert any("computed for the image's grid" in part for part in coco_plan(vit, native)) == any(
        "resized to the image's grid" in part for part in plan
    )
    assert family == "mae" or "decomposed relative positions are added" not in " ".join(plan)

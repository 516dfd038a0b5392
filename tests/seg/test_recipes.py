"""Recipes: every one builds, and the published ones have the settings of their sources."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from mimbench.engine.run.config import from_text, identity, to_text
from mimbench.seg.config import UPerNetConfig
from mimbench.seg.recipes import frozen, upernet


def _functions(module: ModuleType) -> list[str]:
    own = inspect.getmembers(module, inspect.isfunction)
    return [name for name, one in own if one.__module__ == module.__name__ and not name.startswith("_")]


@pytest.mark.parametrize("module", [upernet, frozen])
def test_every_recipe_survives_its_text(module: ModuleType) -> None:
    names = _functions(module)
    identities = set()
    for name in names:
        config = getattr(module, name)()
        assert from_text(type(config), to_text(config)) == config
        identities.add(identity(config, "seg", None))
    assert len(identities) == len(names)  # no two are the same run


@pytest.mark.parametrize(  # the facts' table: BEiT's, BEiT v2's, iBOT's and implus' configurations
    ("name", "lr", "layer_decay", "drop_path", "layer_scale", "image", "steps"),
    [
        ("upernet_vitb", 1e-4, 0.65, 0.1, 1.0, 512, 160_000),
        ("upernet_vitb_100ep", 1e-4, 0.65, 0.1, 1.0, 512, 100 * (20210 // 16)),
        ("upernet_beit_b", 7e-4, 0.65, 0.1, 0.1, 512, 160_000),
        ("upernet_beit_b_ft22k", 3e-5, 0.9, 0.1, 0.1, 640, 160_000),
        ("upernet_beit_l_ft22k", 2e-5, 0.95, 0.2, 1e-6, 640, 160_000),
        ("upernet_beitv2_b", 5e-5, 0.75, 0.15, 0.1, 512, 160_000),
        ("upernet_beitv2_b_ft21k", 5e-5, 0.85, 0.15, 0.1, 512, 160_000),
        ("upernet_beitv2_l", 4e-5, 0.9, 0.2, 1e-6, 512, 160_000),
        ("upernet_ibot_b", 8e-5, 0.65, 0.1, None, 512, 160_000),
    ],
)
def test_published_settings(
    name: str, lr: float, layer_decay: float, drop_path: float, layer_scale: float | None, image: int, steps: int
) -> None:
    config: UPerNetConfig = getattr(upernet, name)()
    backbone = config.backbone
    found = (config.lr, config.layer_decay, backbone.drop_path, backbone.layer_scale, config.image, config.steps)
    assert found == (lr, layer_decay, drop_path, layer_scale, image, steps)
    assert (config.batch, config.weight_decay, config.warmup, config.grad_clip) == (16, 0.05, 1500, None)
    stride = config.inference.stride or int(config.image * 2 / 3)
    assert stride == {512: 341, 640: 426}[image]
    assert config.augment.long == config.inference.long == 4 * image


def test_which_blocks_feed_the_pyramid() -> None:
    blocks = upernet.upernet_vitb().backbone
    assert blocks.outputs(12) == (3, 5, 7, 11)
    assert blocks.outputs(24) == (7, 11, 15, 23)
    assert blocks.outputs(4) == (0, 1, 2, 3)
    assert blocks.outputs(2) == (0, 0, 0, 1)

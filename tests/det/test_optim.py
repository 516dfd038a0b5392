"""Optimiser groups and learning rates against detectron2's (commit 02b5c4e2, its lazy configs instantiated)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mimbench.backbones.config import ViT
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.model.build import build_detector
from mimbench.det.optim import groups, layer_of, learning_rate
from mimbench.det.recipes import mask_rcnn as recipes

# depth: (rate, weight decay): tensors, from get_default_optimizer_params on the full-size models
GOLDEN = {
    12: {(1e-4, 0.1): 74, (9.6889e-07, 0.0): 1, (9.6889e-07, 0.1): 2}
    | {(rate, 0.0): 4 for rate in (1.384129e-06, 1.977327e-06, 2.824752e-06, 4.035361e-06, 5.764801e-06, 8.23543e-06)}
    | {(rate, 0.1): 10 for rate in (1.384129e-06, 1.977327e-06, 2.824752e-06, 4.035361e-06, 5.764801e-06, 8.23543e-06)}
    | {(rate, 0.0): 4 for rate in (1.17649e-05, 1.6807e-05, 2.401e-05, 3.43e-05, 4.9e-05, 7e-05)}
    | {(rate, 0.1): 10 for rate in (1.17649e-05, 1.6807e-05, 2.401e-05, 3.43e-05, 4.9e-05, 7e-05)},
}
RECIPES = {
    12: (recipes.mask_rcnn_vitdet_b_100ep, 27, 245),
    24: (recipes.mask_rcnn_vitdet_l_100ep, 51, 413),
    32: (recipes.mask_rcnn_vitdet_h_75ep, 34, 525),
}


def _thin(config: MaskRCNNConfig, depth: int) -> MaskRCNNConfig:
    """The recipe with few channels: groups depend on names alone."""
    return replace(
        config,
        encoder=ViT(16, depth, 2, patch=16, image=32),
        image=64,
        vitdet=replace(config.vitdet, channels=8, window=2),
        heads=replace(config.heads, channels=8, fc=8),
    )


@pytest.mark.parametrize("depth", RECIPES)
def test_groups(depth: int) -> None:
    recipe, number, tensors = RECIPES[depth]
    config = _thin(recipe(), depth)
    model, _ = build_detector(config, classes=80)
    made = groups(model, config, depth)
    assert len(made) == number
    assert sum(len(group["params"]) for group in made) == tensors
    counted = Counter()
    for group in made:
        counted[round(config.lr * group["lr_scale"], 12), group["weight_decay"]] += len(group["params"])
    if depth in GOLDEN:
        assert counted == GOLDEN[depth]
    lowest = {12: 9.6889e-07, 24: 3.77789e-07, 32: 3.090315e-06}[depth]
    assert min(rate for rate, _ in counted) == pytest.approx(lowest, abs=1e-12)
    spared = sum(count for (_, decay), count in counted.items() if decay == 0)
    assert spared == (0 if config.decay_norms else 4 * depth + 1)


def test_layers() -> None:
    assert layer_of("backbone.net.pos_embed", 12) == layer_of("backbone.net.patch_embed.proj.bias", 12) == 0
    assert layer_of("backbone.net.blocks.0.attn.rel_pos_h", 12) == 1
    assert layer_of("backbone.net.blocks.11.mlp.fc2.weight", 12) == 12
    assert layer_of("backbone.simfp_2.4.norm.weight", 12) == layer_of("roi_heads.box_head.fc1.bias", 12) == 13


BASE = {
    0: 1.0000000000000001e-07, 1: 4.996e-07, 100: 4.006e-05, 187: 7.482519999999999e-05, 249: 9.96004e-05,
    250: 1e-4, 5000: 1e-4, 163888: 1e-4, 163889: 1e-5, 177545: 1e-5, 177546: 1e-6, 184374: 1e-6,
}  # fmt: skip
HUGE = {
    0: 1.0000000000000001e-07, 1: 6.328009632559787e-07, 100: 5.3380096325597876e-05, 187: 9.973378012886803e-05,
    188: 1e-4, 122915: 1e-4, 122916: 1e-5, 133158: 1e-5, 133159: 1e-6, 138280: 1e-6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "rates"), [(recipes.mask_rcnn_vitdet_b_100ep, BASE), (recipes.mask_rcnn_vitdet_h_75ep, HUGE)]
)
def test_learning_rates(recipe, rates: dict[int, float]) -> None:
    config = recipe()
    assert {step: learning_rate(config, step) for step in rates} == pytest.approx(rates, rel=1e-12)

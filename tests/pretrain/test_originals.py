"""CrossMAE and MAE against the authors' numbers: losses, every gradient, first weights, and 50 steps of training.

Golden values were computed by the authors' code (github.com/TonyLianLong/CrossMAE, ed0677a), never by ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi

import pytest
import torch

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, Pretrain, RandomMasking
from mimbench.pretrain.masking.strategies import Random
from mimbench.pretrain.methods.method import Method
from mimbench.pretrain.methods.table import build_method
from mimbench.pretrain.run import decay_groups, schedule
from tests.pretrain.originals import golden, golden_noise, gradient_norms, sine_filled, sines

TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)
LARGE_IMAGE = ViT(width=48, depth=1, heads=4, patch=16, image=448)
CROSS = CrossMAEConfig(depth=2, width=32, heads=4)
SHALLOW = replace(CROSS, depth=1)
PLAIN = MAEConfig(depth=2, width=32, heads=4)
CASES: dict[str, tuple[CrossMAEConfig | MAEConfig, ViT, float, float]] = {  # with mask and predict
    "quarter": (CROSS, TINY, 0.75, 0.25),
    "all_hidden": (CROSS, TINY, 0.75, 0.75),
    "raw_pixels": (replace(CROSS, norm_pix=False), TINY, 0.75, 0.25),
    "no_input": (replace(CROSS, feature_maps=(0, 2), use_input=False), TINY, 0.65, 0.4),
    "early_maps": (replace(CROSS, feature_maps=(0,)), TINY, 0.75, 0.25),
    "self_attention": (replace(CROSS, self_attention=True), TINY, 0.75, 0.5),
    "no_maps": (replace(CROSS, mixing="none"), TINY, 0.75, 0.25),
    "image_448": (SHALLOW, LARGE_IMAGE, 0.75, 0.25),
    "mae": (PLAIN, TINY, 0.75, 0.75),
    "mae_raw_pixels": (replace(PLAIN, norm_pix=False), TINY, 0.6, 0.6),
    "mae_448": (replace(PLAIN, depth=1), LARGE_IMAGE, 0.75, 0.75),
}


def masking(mask: float, predict: float) -> Random:
    return Random(RandomMasking(mask_ratio=mask, predict=predict))


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient(name: str) -> None:
    config, shape, mask, predict = CASES[name]
    model = sine_filled(build_method(config, shape))
    masked = masking(mask, predict)(golden_noise(2, shape.grid**2), None, (shape.grid, shape.grid), 0.0)
    loss = model(sines(2, 3, shape.image, shape.image), masked)
    loss.backward()
    assert loss.item() == pytest.approx(golden()[name]["loss"], rel=2e-8)
    found = gradient_norms(model)
    assert found.keys() == golden()[name]["gradients"].keys()
    for parameter, norm in golden()[name]["gradients"].items():
        assert found[parameter] == pytest.approx(norm, rel=1e-5, abs=1e-10), parameter


@pytest.mark.parametrize(
    ("name", "config", "factor"),
    [("crossmae", CROSS, RandomMasking()), ("mae", PLAIN, RandomMasking(predict=0.75))],
)
def test_fifty_steps_end_where_the_authors_end(
    name: str, config: CrossMAEConfig | MAEConfig, factor: RandomMasking
) -> None:
    """Learning rates, which weights decay, the loss of every step, and the weights afterwards."""
    expected = golden()[f"{name}_trajectory"]
    recipe = Pretrain(
        encoder=TINY, method=config, masking=factor, epochs=5, warmup_epochs=1.3, min_lr=1e-5, lr_factor="none",
        batch=256, base_lr=2e-3,
    )  # fmt: skip
    model = sine_filled(build_method(config, TINY))
    groups = decay_groups(model, recipe)
    optimizer, rate, choose = adamw(groups, 1.0, recipe.betas), schedule(recipe, 10), masking(0.75, factor.predict)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == set(
        expected["decayed"]
    )
    losses, rates = [], [rate(step) for step in range(50)]
    for step in range(50):
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        masked = choose(golden_noise(4, 16, 0.11 * step), None, (4, 4), 0.0)
        loss = model(sines(4, 3, 32, 32, phase=0.7 * step), masked)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert rates == pytest.approx(expected["rates"], rel=1e-14)
    assert losses == pytest.approx(expected["losses"], rel=1e-7)
    for parameter, value in model.named_parameters():
        assert value.abs().sum().item() == pytest.approx(expected["weights"][parameter], rel=1e-6), parameter


@pytest.mark.parametrize(("name", "config"), [("crossmae", CROSS), ("mae", PLAIN)])
def test_the_same_seed_draws_the_authors_weights(name: str, config: CrossMAEConfig | MAEConfig) -> None:
    torch.manual_seed(0)
    state = build_method(config, TINY).state_dict()
    expected = golden()[f"{name}_seeded"]
    assert state.keys() == expected.keys()
    for parameter, total in expected.items():
        assert state[parameter].abs().sum().item() == pytest.approx(total, rel=1e-6), parameter


def _sized(config: CrossMAEConfig | MAEConfig, size: str) -> Callable[[], Method]:
    small = replace(config, width=256, heads=8) if size == "S" else config
    return lambda: build_method(small, SIZES[size])


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize(("name", "config"), [("crossmae", CrossMAEConfig()), ("mae", MAEConfig())])
def test_parameters_are_those_of_the_released_models(name: str, config: CrossMAEConfig | MAEConfig, size: str) -> None:
    with torch.device("meta"):
        model = _sized(config, size)()
    counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
    found = [sum(n for n, _ in counted), sum(n for n, trained in counted if trained), len(model.state_dict())]
    assert found == golden()[f"{name}_counts"][size]


def test_learning_rates_of_an_accumulated_run() -> None:
    """The rate is set once a window of accumulation, from the epoch at its first micro-step."""
    recipe = Pretrain(epochs=4, warmup_epochs=1.0, batch=256, base_lr=1.0, lr_factor="none")
    micro, accumulate = 14, 2
    expected = []
    for iteration in range(0, 4 * micro, accumulate):
        now = iteration // micro + iteration % micro / micro
        expected.append(now if now < 1 else 0.5 * (1 + cos(pi * (now - 1) / 3)))
    rate = schedule(recipe, micro // accumulate)
    assert [rate(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-12)

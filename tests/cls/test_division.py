"""Fine-tuning with mixing, erasing and drop path, however a step is divided: compute.accumulate is speed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mimbench.cls.config import Finetune
from mimbench.cls.draws import DropPathByImage, StepDraws
from mimbench.cls.finetune import prepare
from mimbench.engine.data.batches import Batches, step_places
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import seed_all
from mimbench.engine.training.step import Stepper
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
STEPS = 3


def _trained(folder: Path, accumulate: int, **changes) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses and gradient norms of some steps, and the weights after them."""
    compute = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=1, accumulate=accumulate)
    config = Finetune(
        data=str(folder), encoder=TINY, image=16, epochs=30, warmup_epochs=1, batch=16, base_lr=5e-2, layer_decay=0.9,
        drop_path=0.4, erasing=0.6, grad_clip=1e9, evaluate_every=None, compute=compute,
    )  # fmt: skip
    seed_all(0)
    training = prepare(replace(config, **changes), CPU).training
    nn.init.normal_(training.model.classifier.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    stepper, batches = Stepper(training, CPU), training.batches.starting_at(0)
    stepper.model.train()
    losses, norms = [], []
    for step in range(STEPS):
        scalars = stepper.step(step, batches)
        losses.append(float(np.mean([one["loss"].item() for one in scalars])))
        norms.append(scalars[-1]["grad_norm"].item())
    return losses, norms, training.model.state_dict()


@pytest.mark.parametrize(
    "changes",
    [{}, {"mixup": 0.0, "cutmix": 0.0}, {"erasing": 0.0, "drop_path": 0.0}, {"cutmix": 0.0, "erasing": 0.0}],
    ids=["all", "no mixing", "mixing alone", "mixup and drop path"],
)
def test_a_step_in_parts_is_the_whole_step(folder: Path, changes) -> None:
    losses, norms, weights = _trained(folder, 1, **changes)
    for accumulate in (2, 4, 8):
        other_losses, other_norms, other_weights = _trained(folder, accumulate, **changes)
        assert other_losses == pytest.approx(losses, rel=2e-5)
        assert other_norms == pytest.approx(norms, rel=1e-4)
        for name, value in weights.items():
            if not name.endswith("qkv.bias"):  # no gradient for those of keys: Adam makes steps of rounding
                torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_draws_matter_and_differ_from_step_to_step(folder: Path) -> None:
    """So that the equality above is not that of nothing drawn."""
    plain = _trained(folder, 1, erasing=0.0, drop_path=0.0, mixup=0.0, cutmix=0.0)[0]
    for changes in ({"erasing": 0.6}, {"drop_path": 0.4}, {"mixup": 0.8}, {"cutmix": 1.0}):
        off = {"erasing": 0.0, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, **changes}
        assert abs(_trained(folder, 1, **off)[0][0] - plain[0]) > 1e-3, changes
    draws = StepDraws(0, 8, parts=1, part=0, stride=1, paired=True)
    module = DropPathByImage(0.5, draws).train()
    masks = []
    for step in range(20):
        draws.begin(step)
        draws.advance()
        masks.append(tuple((module(torch.ones(8, 2, 3))[:, 0, 0] / 2).tolist()))
    assert len(set(masks)) > 15
    assert 0.35 < np.mean(masks) < 0.65
    assert module.eval()(torch.ones(2, 3)).tolist() == torch.ones(2, 3).tolist()


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_parts_are_the_step_and_mixed_images_stay_together(world: int, accumulate: int, paired: bool) -> None:
    parts, whole = world * accumulate, 48
    places = [step_places(part, parts, whole // parts, paired) for part in range(parts)]
    assert torch.cat(places).sort().values.tolist() == list(range(whole))
    if paired:
        for of in places:
            assert (of + of.flip(0) == whole - 1).all()
    draws = [StepDraws(3, whole, parts=parts, part=r, stride=world, paired=paired) for r in range(world)]
    seeds: dict[int, int] = {}
    for rank, one in enumerate(draws):
        one.begin(5)
        for micro in range(accumulate):
            one.advance()
            seeds |= dict(zip(places[micro * world + rank].tolist(), one.image_seeds(), strict=True))
    alone = StepDraws(3, whole, parts=1, part=0, stride=1, paired=paired)
    alone.begin(5)
    alone.advance()
    assert [seeds[place] for place in range(whole)] == alone.image_seeds()
    assert {one.mixing_seed() for one in draws} == {alone.mixing_seed()}


def test_batches_of_pairs_hold_the_samples_of_the_step() -> None:
    """Of every step the same ones as without pairs, at every place an epoch can be entered."""
    plain = Batches(range(50), 12, 0).starting_at(0)
    steps = [sorted(next(plain).tolist()) for _ in range(8)]
    paired = Batches(range(50), 4, 0, accumulate=3, paired=True)
    found = paired.starting_at(0)
    micro = [next(found).tolist() for _ in range(24)]
    assert [sorted(itertools.chain(*micro[3 * step : 3 * step + 3])) for step in range(8)] == steps
    assert next(paired.starting_at(7)).tolist() == micro[7]

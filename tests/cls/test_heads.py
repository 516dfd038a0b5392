"""Stacked heads against MAE's probe, against autograd, and each against itself alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.cls.frozen import heads as module
from mimbench.cls.frozen.heads import DIVERGED, HeadOptimizer, Heads, losses_and_gradients
from mimbench.cls.frozen.linear import Probe
from mimbench.engine.training.optim import LARS
from tests.cls.golden.linprobe import CLASSES, DECAYS, RATES, STEPS, WIDTH, features, first_weight, labels

GOLDEN = json.loads((Path(__file__).parent / "golden" / "linprobe.json").read_text())


def _close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", range(2))
def test_the_probe_is_that_of_mae_weight_by_weight(setting: int) -> None:
    probe = Probe(WIDTH, CLASSES)
    probe.linear.weight.data.copy_(first_weight())
    optimizer = LARS(probe.parameters(), lr=RATES[setting], weight_decay=DECAYS[setting])
    for step, golden in zip(range(STEPS), GOLDEN[setting]["steps"], strict=True):
        probe.train()
        logits = probe.logits(features(step))
        _close(logits, golden["training"])
        loss = F.cross_entropy(logits, labels(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        probe.eval()
        assert loss.item() == pytest.approx(golden["loss"], rel=1e-6)
        _close(probe.linear.weight, golden["weight"])
        _close(probe.linear.bias, golden["bias"])
        _close(probe.logits(features(step)), golden["evaluation"])


def test_stacked_heads_are_those_of_mae_each_with_its_setting() -> None:
    heads = Heads(WIDTH, CLASSES, 2)
    heads.weight.data.copy_(first_weight())
    optimizer = HeadOptimizer(heads.parameters(), RATES, DECAYS, trust=0.001)
    for step in range(STEPS):
        heads.train()
        heads((features(step), labels(step)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        heads.eval()
        logits = heads.logits(features(step))
        for head in range(2):
            golden = GOLDEN[head]["steps"][step]
            _close(heads.weight[head], golden["weight"])
            _close(heads.bias[head], golden["bias"])
            _close(logits[:, head], golden["evaluation"])


@pytest.mark.parametrize("logits", [2**21, 1, 60, 180])
def test_gradients_are_those_of_autograd_whatever_is_taken_at_a_time(
    logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LOGITS, "cpu", logits)
    torch.manual_seed(0)
    x, y = torch.randn(17, 6), torch.randint(0, 5, (17,))
    weight, bias = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    losses, weight_grad, bias_grad = losses_and_gradients(x, weight.detach(), bias.detach(), y)
    for head in range(3):
        expected = F.cross_entropy(x @ weight[head].T + bias[head], y)
        torch.testing.assert_close(losses[head], expected.detach())
        expected.backward()
    torch.testing.assert_close(weight_grad, weight.grad)
    torch.testing.assert_close(bias_grad, bias.grad)


def test_what_is_minimised_is_each_heads_own_loss() -> None:
    torch.manual_seed(0)
    heads, batch = Heads(6, 5, 4), (torch.randn(9, 6), torch.arange(9) % 5)
    heads.weight.data.normal_()
    loss = heads(batch)["loss"]
    (3 * loss).backward()  # as a loss scaler does
    alone = heads.weight.detach().clone().requires_grad_()
    normed = F.batch_norm(batch[0], None, None, training=True, eps=1e-6)
    own = [F.cross_entropy(normed @ alone[head].T, batch[1]) for head in range(4)]
    assert loss.item() == pytest.approx(torch.stack(own).mean().item(), rel=1e-5)
    (3 * sum(own)).backward()
    torch.testing.assert_close(heads.weight.grad, alone.grad)


def test_bfloat16_products_are_those_under_autocast() -> None:
    torch.manual_seed(0)
    heads, batch = Heads(32, 5, 2), (torch.randn(64, 32), torch.arange(64) % 5)
    plain = nn.Linear(32, 5)
    plain.load_state_dict({"weight": heads.weight[1].detach(), "bias": heads.bias[1].detach()})
    normed = F.batch_norm(batch[0], None, None, training=True, eps=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        heads(batch)["loss"].backward()
        loss = F.cross_entropy(plain(normed).float(), batch[1])
    loss.backward()
    assert heads.weight.grad is not None
    assert heads.weight.grad.dtype == torch.float32
    torch.testing.assert_close(heads.weight.grad[1], plain.weight.grad, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("trust", [0.001, None])
def test_each_head_moves_as_though_alone(trust: float | None) -> None:
    torch.manual_seed(0)
    rates, decays = (0.5, 4.0, 20.0), (0.0, 1e-2, 1e-1)
    start, bias = torch.randn(3, 5, 6), torch.randn(3, 5)
    stacked = [nn.Parameter(start.clone()), nn.Parameter(bias.clone())]
    optimizer = HeadOptimizer(stacked, rates, decays, trust)
    alone = [[nn.Parameter(start[head].clone()), nn.Parameter(bias[head].clone())] for head in range(3)]
    if trust is None:
        others = [
            torch.optim.SGD([{"params": [w], "weight_decay": decay}, {"params": [b]}], lr=rate, momentum=0.9)
            for (w, b), rate, decay in zip(alone, rates, decays, strict=True)
        ]
    else:
        others = [LARS(pair, rate, decay) for pair, rate, decay in zip(alone, rates, decays, strict=True)]
    for _ in range(4):
        for parameter, place in zip(stacked, range(2), strict=True):
            parameter.grad = torch.randn_like(parameter)
            for head in range(3):
                alone[head][place].grad = parameter.grad[head].clone()
        for each in (optimizer, *others):
            each.step()
        for head in range(3):
            torch.testing.assert_close(stacked[0][head], alone[head][0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(stacked[1][head], alone[head][1], rtol=1e-6, atol=1e-6)


def test_zero_weights_and_zero_gradients_are_taken() -> None:
    weight = nn.Parameter(torch.zeros(2, 3, 4))
    optimizer = HeadOptimizer([weight], [1.0, 2.0], [0.0, 0.0], 0.001)
    weight.grad = torch.ones_like(weight)
    weight.grad[1] = 0
    optimizer.step()
    assert torch.equal(weight.detach()[0], torch.full((3, 4), -1.0))
    assert torch.equal(weight.detach()[1], torch.zeros(3, 4))


@pytest.mark.parametrize(("trust", "decay", "rates"), [(0.001, 0.0, [6.4, 6400.0]), (None, 0.01, [1.0, 1000.0])])
def test_a_head_that_diverges_leaves_the_others_as_they_are(
    trust: float | None, decay: float, rates: list[float]
) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(256, 16), torch.randint(0, 8, (256,))  # not separable: the rate decides

    def trained(rates: list[float]) -> Heads:
        torch.manual_seed(1)
        heads = Heads(16, 8, len(rates))
        optimizer = HeadOptimizer(heads.parameters(), rates, [decay] * len(rates), trust)
        for _ in range(200):
            loss = heads((features, labels))["loss"]
            assert loss.isfinite()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return heads

    both, alone = trained(rates), trained(rates[:1])
    assert both.weight.isfinite().all()
    assert both.weight[1].norm() > DIVERGED
    torch.testing.assert_close(both.weight[0], alone.weight[0], rtol=1e-4, atol=1e-5)

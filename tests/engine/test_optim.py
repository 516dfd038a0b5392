"""Groups, LARS and AdamW give the originals' numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from mimbench.engine.training.ema import Ema
from mimbench.engine.training.optim import LARS, adamw, parameter_groups


def _vit_names(depth: int) -> Iterator[tuple[str, Parameter]]:
    """Parameters of a timm ViT classifier, by name and dimension."""
    shapes = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "patch_embed.proj.bias": 1}
    for block in range(depth):
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            shapes[f"blocks.{block}.{name}.weight"] = 1 if "norm" in name else 2
            shapes[f"blocks.{block}.{name}.bias"] = 1
    shapes |= {"fc_norm.weight": 1, "fc_norm.bias": 1, "head.weight": 2, "head.bias": 1}
    for name, dimensions in shapes.items():
        yield name, Parameter(torch.zeros([1] * dimensions))


def _layer_of(name: str, depth: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else depth + 1


@pytest.mark.parametrize(
    ("depth", "decay", "groups", "first", "second"),
    [(12, 0.65, 28, 0.00369721, 0.00568801), (24, 0.75, 52, 0.000752543, 0.00100339)],
)
def test_layer_decay_is_that_of_mae(depth: int, decay: float, groups: int, first: float, second: float) -> None:
    """Numbers of groups and scales were read off the groups that MAE's and CrossMAE's fine-tuning builds."""
    made = parameter_groups(
        _vit_names(depth),
        0.05,
        no_decay=lambda name, p: p.ndim == 1 or name in ("pos_embed", "cls_token"),
        layer_of=lambda name: _layer_of(name, depth),
        layers=depth + 1,
        decay=decay,
    )
    assert len(made) == groups
    assert made[0]["name"] == "layer0_no_decay"
    assert made[0]["weight_decay"] == 0
    assert made[0]["lr_scale"] == pytest.approx(first, rel=1e-5)
    assert made[2]["lr_scale"] == pytest.approx(second, rel=1e-5)
    assert made[-1]["lr_scale"] == 1
    assert len({id(p) for group in made for p in group["params"]}) == sum(len(g["params"]) for g in made)


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    [group] = parameter_groups(model.named_parameters(), 0.1, lambda name, p: False)
    assert [p is model.weight for p in group["params"]] == [True]
    assert group["lr_scale"] == 1


def test_lars_is_that_of_mae() -> None:
    """Three steps of the LARS of MAE's linear probe, on gradients [.6, .8] (s + 1) and .5."""
    weight, bias = Parameter(torch.tensor([[3.0, 4.0]]).double()), Parameter(torch.tensor([1.0]).double())
    optimizer = LARS([weight, bias], lr=0.1, weight_decay=0.01)
    weights = [[2.9997, 3.9996], [2.99913003, 3.99884004], [2.998317143997, 3.9977561919960003]]
    for step, (expected_weight, expected_bias) in enumerate(zip(weights, [0.95, 0.855, 0.7195], strict=True)):
        weight.grad = torch.tensor([[0.6, 0.8]], dtype=torch.float64) * (step + 1)
        bias.grad = torch.tensor([0.5]).double()
        optimizer.step()
        assert weight.detach()[0].tolist() == pytest.approx(expected_weight, rel=1e-12)
        assert bias.item() == pytest.approx(expected_bias, rel=1e-12)


def test_lars_takes_zero_weights_and_zero_gradients() -> None:
    zero, still = Parameter(torch.zeros(2, 2)), Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero, still], lr=0.1).step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.1))
    torch.testing.assert_close(still.detach(), torch.ones(2, 2))


def test_fused_adamw_is_adamw() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(20, 10), nn.Linear(20, 10)
    plain.load_state_dict(ours.state_dict())
    groups = parameter_groups(ours.named_parameters(), 0.05, lambda name, p: False)
    fused = adamw(groups, lr=1e-2, betas=(0.9, 0.95))
    default = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05, foreach=False)
    for _ in range(10):
        images = torch.randn(4, 20)
        for model, optimizer in ((ours, fused), (plain, default)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-6, atol=1e-6)


def test_the_average_is_the_one_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = Ema(model, decay=0.8)
    expected = model.weight.detach().clone()
    for _ in range(4):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update()
        expected = 0.8 * expected + 0.2 * model.weight.detach()
    before = model.weight.detach().clone()
    with ema.swapped():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight.detach(), before)


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="ema=1"):
        Ema(nn.Linear(1, 1), decay=1)

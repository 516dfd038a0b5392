"""The MLP that keeps less: the same numbers as timm's, and less is kept."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from torch import Tensor

from mimbench.backbones.blocks import Mlp


def _pair(**options: object) -> tuple[Mlp, timm.layers.Mlp]:
    torch.manual_seed(0)
    ours = Mlp(12, 48, **options)
    plain = timm.layers.Mlp(12, 48, **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def _gradients(mlp: torch.nn.Module, tokens: Tensor) -> list[Tensor]:
    tokens = tokens.clone().requires_grad_()
    made = mlp(tokens)
    made.pow(2).sum().backward()
    return [made.detach(), tokens.grad, *(parameter.grad for parameter in mlp.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5, 12), (7, 12), (2, 3, 4, 12)])
def test_values_and_gradients_are_those_of_timms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours, plain = (mlp.to(dtype) for mlp in _pair())
    tokens = torch.randn(shape, dtype=dtype)
    for one, other in zip(_gradients(ours, tokens), _gradients(plain, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)


def test_under_autocast_too() -> None:
    ours, plain = _pair()
    tokens = torch.randn(3, 5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = _gradients(ours, tokens), _gradients(plain, tokens)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_second_derivatives_too() -> None:
    ours, plain = _pair()
    tokens = torch.randn(2, 12)
    found, expected = (
        torch.autograd.functional.hessian(lambda x, mlp=mlp: mlp(x).sum(), tokens) for mlp in (ours, plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"drop": 0.1}, {"act_layer": torch.nn.SiLU}, {"bias": False}])
def test_others_are_left_to_timm(options: dict[str, object]) -> None:
    ours, plain = _pair(**options)
    tokens = torch.randn(3, 5, 12)
    torch.manual_seed(1)
    found = ours(tokens)
    torch.manual_seed(1)
    assert torch.equal(found, plain(tokens))


def test_what_comes_out_of_the_gelu_is_not_kept() -> None:
    def kept(mlp: torch.nn.Module) -> int:
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = mlp(tokens)
        del made
        return sum(seen.values())

    ours, plain = _pair()
    tokens = torch.randn(100, 12, requires_grad=True)
    assert kept(plain) - kept(ours) == 100 * 48 * 4

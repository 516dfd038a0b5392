"""Branches that drop path drops are not computed at one image: the same bits, draws, gradients and steps of AdamW."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vitdet import ViTDet
from mimbench.engine.training.optim import adamw

TINY = ViT(32, 4, 2, patch=8, image=32)
SCALED = Traits(layer_scale=True)


def _trained(skip: bool, traits: Traits, images: int, **changes: bool) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Outputs and gradients of 6 steps, the weights after them, and how many branches were computed."""
    torch.manual_seed(0)
    model = ViTDet(TINY, traits, image=48, window=4, global_blocks=(1, 3), drop_path=0.7).train()
    model.recompute = changes.get("recompute", False)
    if changes.get("frozen"):
        model.blocks[2].requires_grad_(False)
    computed: list[nn.Module] = []
    for block in model.blocks:
        block.skip_dropped = skip
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(lambda module, *_: computed.append(module))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw([{"params": learned, "weight_decay": 0.1}], 1e-2, (0.9, 0.95))
    found = []
    for step in range(6):
        torch.manual_seed(step)
        out = model(torch.randn(images, 3, 48, 48))
        out.square().mean().backward()
        assert all(parameter.grad is not None for parameter in learned)
        found += [out.detach(), torch.rand(1), *(parameter.grad.clone() for parameter in learned)]
        optimizer.step()
        optimizer.zero_grad()
    return found, model.state_dict(), len(computed)


@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"frozen": True}], ids=str)
@pytest.mark.parametrize("traits", [Traits(), SCALED], ids=["plain", "layer scale"])
def test_nothing_changes_but_what_is_computed(traits: Traits, changes: dict[str, bool]) -> None:
    plain, weights, every = _trained(False, traits, 1, **changes)
    found, others, computed = _trained(True, traits, 1, **changes)
    assert all(map(torch.equal, found, plain))
    assert all(torch.equal(value, weights[name]) for name, value in others.items())
    assert every == 6 * 8 or changes.get("recompute")
    assert 0.4 * every < computed < 0.85 * every  # of rates 0, .23, .47 and .7


def test_with_more_images_all_is_computed() -> None:
    plain, _, every = _trained(False, Traits(), 2)
    found, _, computed = _trained(True, Traits(), 2)
    assert all(map(torch.equal, found, plain))
    assert computed == every


def test_in_evaluation_nothing_is_dropped() -> None:
    model: Callable[..., Tensor] = ViTDet(TINY, image=48, drop_path=0.7).eval()
    for block in model.blocks:
        block.skip_dropped = True
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(pixels), model(pixels))

"""fvcore's counting with fused attention, against arithmetic and against torch's counter."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mimbench.engine.training.flops import module_table, operations, total_operations

WIDTH, HEADS, DEPTH, TOKENS, PATCH = 768, 12, 2, 197, 16


def by_torch(model: nn.Module, *inputs: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return float(counter.get_total_flops())


@pytest.fixture(params=["cpu", "meta"])
def vit(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """Two blocks of a ViT-B/16, with numbers and without."""
    with torch.device("cpu"):
        model = timm.create_model("vit_base_patch16_224", depth=DEPTH, num_classes=0).eval()
    return model.to(request.param), torch.zeros(1, 3, 224, 224, device=request.param)


def test_each_module_by_arithmetic(vit: tuple[nn.Module, Tensor]) -> None:
    model, images = vit
    if images.is_meta:
        model.patch_embed.proj = Patches().to("meta")  # a convolution on meta is what fvcore cannot trace
    found = operations(model, images)
    linear = 2 * TOKENS * WIDTH * WIDTH  # of a square layer, two operations to a multiply-add
    assert found["blocks.0.attn.qkv"] == 3 * linear
    assert found["blocks.0.attn.proj"] == linear
    attention = 2 * 2 * HEADS * TOKENS**2 * (WIDTH // HEADS)  # q kᵀ, and its product with v
    assert found["blocks.0.attn"] == 4 * linear + attention
    assert found["blocks.0.mlp"] == 8 * linear
    assert found["blocks"] == DEPTH * (12 * linear + attention)
    assert found["blocks.0.norm1"] == found["norm"] == 0
    embed = 2 * 196 * 3 * PATCH**2 * WIDTH
    assert found[""] == total_operations(model, images) == found["blocks"] + embed
    assert found[""] == by_torch(model, images)


class Patches(nn.Module):
    """timm's patch embedding as a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, 3 * PATCH**2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, D, 14, 14)."""
        cut = images.unflatten(3, (14, PATCH)).unflatten(2, (14, PATCH)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return (cut @ self.weight.T).permute(0, 3, 1, 2)


def test_convolutions_are_counted_as_torch_counts_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2))
    images = torch.zeros(2, 3, 16, 16)
    convolution, transposed = 2 * 2 * 16 * 16 * 8 * 3 * 9, 2 * 2 * 16 * 16 * 8 * 4 * 4
    assert operations(model, images) == {"": convolution + transposed, "0": convolution, "1": 0, "2": transposed}
    assert total_operations(model, images) == by_torch(model, images)


def test_the_table_has_a_row_for_each_module(vit: tuple[nn.Module, Tensor]) -> None:
    model, images = vit
    if not images.is_meta:
        text = module_table(model, images, depth=2)
        assert "blocks.0" in text
        assert "blocks.0.attn.qkv" not in text
        assert text.count("\n") > 8

"""ViTDet of every kind of encoder: equal to the plain encoder, and learning in all its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mimbench.backbones.config import SIZES, Rope, Traits, ViT, global_blocks, vitdet_window
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet

TINY = ViT(32, 4, 2, patch=8, image=32)
FAMILIES = {
    "mae": Traits(),
    "dinov2": Traits(layer_scale=True),
    "dinov2 with registers": Traits(layer_scale=True, registers=4),
    "dinov2 giant": Traits(layer_scale=True, mlp="swiglu", hidden=24),
    "dinov3": Traits(positions="rope", registers=4, layer_scale=True, norm_eps=1e-5),
    "dinov3 7B": Traits(positions="rope", registers=4, layer_scale=True, norm_eps=1e-5, mlp="swiglu_split"),
    "beit": Traits(positions="relative", layer_scale=True),
    "simmim": Traits(positions="relative", layer_scale=True, qkv_bias=False),
    "clip": Traits(pre_norm=True, patch_bias=False, activation="quick_gelu", norm_eps=1e-5),
    "siglip": Traits(class_token=False, activation="gelu_tanh", hidden=48),
    "eva02": Traits(rope=Rope(4), key_bias=False, mlp="swiglu_split", hidden=20, mlp_norm=True),
    "eva02 clip": Traits(rope=Rope(4), key_bias=False, mlp="swiglu_split", mlp_norm=True, attention_norm=True),
    "pe core": Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5, rope=Rope(4, order="xy", offset=1.0)),
    "pe spatial": Traits(class_token=False, pre_norm=True, layer_scale=True, rope=Rope(4, order="xy")),
    "aimv2": Traits(class_token=False, mlp="swiglu_split", qkv_bias=False, proj_bias=False, mlp_bias=False, norm="rms",
                    norm_eps=1e-5, patch_norm=True),
}  # fmt: skip


def drawn(traits: Traits, final_norm: bool = False) -> VisionTransformer:
    """A random encoder none of whose weights are still what they start from."""
    torch.manual_seed(0)
    model = VisionTransformer(TINY, final_norm, traits=traits, interpolation="bicubic").double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3 if weight.ndim == 1 or "token" in name else 0.08)
    return model


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 64)])
@pytest.mark.parametrize("prefix", ["global", "copies"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_blocks_global_it_is_the_plain_encoder(family: str, prefix: Any, size: tuple[int, int]) -> None:
    traits = FAMILIES[family]
    if traits.positions == "relative" and size != (32, 32):
        pytest.skip("a plain encoder with a table of relative positions takes one grid alone")
    encoder = drawn(traits, final_norm=True)
    model = ViTDet(TINY, traits, image=32, rel_pos=False, global_blocks=range(4), prefix=prefix, norm=True).double()
    model.load_encoder(encoder.state_dict(), traits)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.allclose(model(images).permute(0, 2, 3, 1), encoder(images).grid, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", ["drop", "global", "copies"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_learns(family: str, prefix: Any) -> None:
    traits = FAMILIES[family]
    model = ViTDet(TINY, traits, image=48, window=4, global_blocks=(1, 3), prefix=prefix, drop_path=0.1).double()
    model.load_encoder(drawn(traits).state_dict(), traits)
    model.recompute = True
    model.train()
    images = torch.randn(8, 3, 48, 32, dtype=torch.float64, requires_grad=True)
    (model(images) * torch.randn(8, 32, 6, 4, dtype=torch.float64)).sum().backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_that_is_the_whole_image_is_a_global_block(family: str) -> None:
    traits = FAMILIES[family]
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    maps = []
    for blocks in ((), range(4)):
        model = ViTDet(TINY, traits, image=32, window=4, rel_pos=False, global_blocks=blocks).double()
        model.load_encoder(drawn(traits).state_dict(), traits)
        maps.append(model(images))
    assert torch.allclose(*maps, rtol=0, atol=1e-12)


def test_decomposed_positions_leave_the_prefix_alone() -> None:
    """Where they are, the tokens before the patches have none: attention by the plain formula, logit by logit."""
    torch.manual_seed(0)
    model = ViTDet(TINY, image=32, global_blocks=range(4), prefix="global").double()
    attention = model.blocks[0].attn
    torch.nn.init.normal_(attention.rel_pos_h)
    torch.nn.init.normal_(attention.rel_pos_w)
    grid, first = torch.randn(1, 4, 4, 32).double(), torch.randn(1, 1, 3, 32).double()
    q, k, v = attention.qkv(torch.cat([first[0, 0], grid[0].flatten(0, 1)])).view(19, 3, 2, 16).permute(1, 2, 0, 3)
    logits = q @ k.mT / 4
    for query in range(16):
        for key in range(16):
            row = attention.rel_pos_h[query // 4 - key // 4 + 3] + attention.rel_pos_w[query % 4 - key % 4 + 3]
            logits[:, 3 + query, 3 + key] += q[:, 3 + query] @ row
    plain = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
    patches, prefix = attention(grid, first)
    assert torch.allclose(prefix[0, 0], plain[:3], rtol=0, atol=1e-12)
    assert torch.allclose(patches[0].flatten(0, 1), plain[3:], rtol=0, atol=1e-12)


def test_drop_path_takes_the_prefix_and_the_patches_of_an_image_together() -> None:
    torch.manual_seed(0)
    model = ViTDet(TINY, FAMILIES["dinov2"], image=32, global_blocks=range(4), prefix="global", drop_path=0.9).double()
    block = model.blocks[3].train()
    grid, first = torch.randn(64, 4, 4, 32).double(), torch.randn(64, 1, 32).double()
    patches, prefix = block(grid, first)
    changed = [(part != was).flatten(1).any(1) for part, was in ((patches, grid), (prefix, first))]
    assert torch.equal(*changed)
    assert 0 < int(changed[0].sum()) < 40


def test_rotary_positions_are_computed_once_for_each_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = FAMILIES["dinov3"]
    model = ViTDet(TINY, traits, image=64, window=4, global_blocks=(3,))
    asked = []
    plain = type(model.rope)._table
    monkeypatch.setattr(type(model.rope), "_table", lambda self, grid: asked.append(grid) or plain(self, grid))
    for _ in range(3):
        model(torch.zeros(1, 3, 64, 64))
    assert asked == [(8, 8), (4, 4)]
    with torch.no_grad():
        model.rope.periods *= 2  # as a checkpoint's do when they are loaded
    model(torch.zeros(1, 3, 64, 64))
    assert asked == [(8, 8), (4, 4)] * 2


def test_windows_and_global_blocks_follow_the_encoder() -> None:
    assert global_blocks(12) == (2, 5, 8, 11)
    assert global_blocks(24) == (5, 11, 17, 23)
    with torch.device("meta"):
        large = ViTDet(SIZES["L"])
        wide = ViTDet(replace(SIZES["B"], image=256), FAMILIES["dinov3"])
    assert [index for index, block in enumerate(large.blocks) if not block.attn.window] == [5, 11, 17, 23]
    assert (large.window, wide.window) == (14, 16)
    expected = ((512, 16, 32), (256, 16, 16), (448, 14, 32), (224, 16, 16), (384, 16, 16), (518, 14, 16))
    for image, patch, window in expected:
        vit = ViT(768, 12, 12, patch, image)  # 14, 24 and 37 patches do not divide 64, and 14 is MAE's alone
        assert vitdet_window(vit, FAMILIES["clip"], image=64 * patch) == window
    assert vitdet_window(ViT(768, 12, 12, 16, 224), Traits(rope=Rope(32)), image=1024) == 32


def test_a_small_window_and_rotary_positions_of_the_image_need_to_divide_it() -> None:
    model = ViTDet(TINY, FAMILIES["dinov3"], image=48, window=4, rope_windows="image")
    with pytest.raises(ValueError, match=r"\(4, 4\) do not divide \(6, 6\)"):
        model(torch.zeros(1, 3, 48, 48))


def test_a_table_of_relative_positions_is_not_stretched_when_that_is_refused() -> None:
    traits = FAMILIES["beit"]
    model = ViTDet(TINY, traits, image=64, window=4, global_blocks=(3,), relative_resize="none")
    with pytest.raises(ValueError, match="is for 4 x 4 patches and not for 8 x 8"):
        model.load_encoder(drawn(traits).state_dict(), traits)


def test_the_pseudo_inverse_keeps_the_response_to_a_flat_patch() -> None:
    encoder = VisionTransformer(replace(TINY, patch=14, image=56)).double()
    flat, responses = torch.ones(1, 3, 16, 16, dtype=torch.float64), {}
    torch.nn.init.zeros_(encoder.patch_embed.proj.bias)
    for kernel in ("bicubic", "pseudo-inverse"):
        model = ViTDet(replace(TINY, patch=16, image=64), image=64).double()
        model.load_encoder(encoder.state_dict(), kernel=kernel)
        responses[kernel] = model.patch_embed(flat) / encoder.patch_embed.proj(flat[..., :14, :14]).permute(0, 2, 3, 1)
    assert torch.allclose(responses["pseudo-inverse"], torch.ones(1).double(), atol=1e-4)
    assert responses["bicubic"].median().item() == pytest.approx(256 / 196, abs=0.02)

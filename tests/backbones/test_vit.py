"""The plain ViT: what it embeds, its names, and features of other sizes."""

from __future__ import annotations

import pytest
import torch

from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.contract import Features
from mimbench.backbones.vit import VisionTransformer, patch_view, pick_patches

TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)


@pytest.fixture
def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(TINY).double().eval()


def test_features(encoder: VisionTransformer) -> None:
    features = encoder(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert isinstance(features, Features)
    assert features.pooled.shape == (2, 48)
    assert features.grid.shape == (2, 4, 4, 48)
    assert torch.allclose(features.grid.flatten(1, 2).mean(1), features.pooled)


def test_class_token_as_the_pooled_feature() -> None:
    encoder = VisionTransformer(TINY, final_norm=True, pool="cls")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(images).pooled, encoder.norm(encoder.forward_tokens(images)[-1])[:, 0])


def test_the_patch_embedding_is_the_convolution(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    tokens = encoder.embed(images)
    assert torch.allclose(tokens[:, 1:], plain, rtol=0, atol=1e-12)
    assert torch.equal(tokens[:, 0], encoder.cls_token[0].expand(2, -1))


def test_only_the_kept_patches_are_embedded_in_their_order(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    keep = torch.tensor([[5, 0, 15], [3, 2, 1]])
    every, kept = encoder.embed(images), encoder.embed(images, keep)
    for image in range(2):
        assert torch.allclose(kept[image, 1:], every[image, 1 + keep[image]], rtol=0, atol=1e-12)


def test_maps_are_the_input_and_every_block(encoder: VisionTransformer) -> None:
    images, keep = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([[0, 1], [2, 3]])
    maps = encoder.forward_tokens(images, keep)
    assert [tuple(each.shape) for each in maps] == [(2, 3, 48)] * 4
    assert torch.equal(maps[0], encoder.embed(images, keep))
    assert torch.equal(maps[2], encoder.blocks[1](maps[1]))


def test_picking_patches_is_cutting_the_image() -> None:
    images = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    picked = pick_patches(patch_view(images, 4), torch.tensor([[4], [2]]))
    assert torch.equal(picked[0, 0], images[0, :, 4:8, 4:8])
    assert torch.equal(picked[1, 0], images[1, :, 0:4, 8:12])


def test_other_sizes_get_interpolated_positions(encoder: VisionTransformer) -> None:
    assert encoder(torch.randn(1, 3, 64, 40, dtype=torch.float64)).grid.shape == (1, 8, 5, 48)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match="30 x 32 cannot be cut into patches of 8"):
        encoder(torch.randn(1, 3, 30, 32, dtype=torch.float64))


def test_names_are_those_of_mae() -> None:
    names = set(VisionTransformer(TINY, final_norm=True).state_dict())
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.2.attn.qkv.bias"} <= names
    assert len(names) == 4 + 2 + 3 * 12
    assert "norm.weight" not in VisionTransformer(TINY).state_dict()


def test_positions_are_not_trained() -> None:
    parameters = dict(VisionTransformer(TINY).named_parameters())
    assert [name for name, parameter in parameters.items() if not parameter.requires_grad] == ["pos_embed"]


def test_the_class_token_has_a_position_too(encoder: VisionTransformer) -> None:
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.nn.init.normal_(encoder.pos_embed)
    assert torch.equal(encoder.embed(images)[:, 0], encoder.cls_token[0] + encoder.pos_embed[:, 0])


def test_registers_come_between_the_class_token_and_the_patches() -> None:
    traits = Traits(registers=3)
    encoder = VisionTransformer(TINY, traits=traits).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = encoder.encode(images)
    assert tokens.shape == (2, 1 + 3 + 16, 48)
    assert torch.equal(encoder.embed(images)[:, 1:4], encoder.reg_token.expand(2, -1, -1))
    assert torch.equal(encoder(images).grid.flatten(1, 2), tokens[:, 4:])


def test_an_encoder_without_a_class_token() -> None:
    traits = Traits(class_token=False)
    encoder = VisionTransformer(TINY, traits=traits)
    assert encoder(torch.randn(1, 3, 64, 40)).grid.shape == (1, 8, 5, 48)
    assert "cls_token" not in encoder.state_dict()
    with pytest.raises(ValueError, match="pool=avg"):
        VisionTransformer(TINY, pool="cls", traits=traits)


def test_how_positions_are_resized_is_a_choice() -> None:
    images = torch.randn(1, 3, 16, 24)
    features = []
    for how in ("bicubic", "bicubic-antialias", "bicubic-offset", "regenerate"):
        torch.manual_seed(0)
        features.append(VisionTransformer(TINY, interpolation=how).eval()(images).pooled)  # type: ignore[arg-type]
    assert all(not torch.allclose(one, other) for one in features for other in features if one is not other)


def test_rotary_positions_are_for_any_size() -> None:
    encoder = VisionTransformer(TINY, traits=Traits(positions="rope", registers=2)).eval()
    assert "pos_embed" not in encoder.state_dict()
    assert encoder(torch.randn(1, 3, 64, 40)).grid.shape == (1, 8, 5, 48)

"""Segmenters from encoder files of several families, and from whole segmenters as mmsegmentation and BEiT save them."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import Compute
from mimbench.seg.config import Backbone, Heads, UPerNetConfig
from mimbench.seg.model.build import WHOLE, build_segmenter
from mimbench.seg.model.relative import resize_relative
from mimbench.seg.model.segmenter_file import save_segmenter

PLAIN = Traits()
TINY = ViT(16, 4, 2, patch=4, image=16)
CONFIG = UPerNetConfig(
    data="x",
    encoder=TINY,
    image=32,
    heads=Heads(channels=8, aux_channels=8),
    compute=Compute(precision="fp32", workers=0, threads=1, device="cpu"),
)


def _mae_file(path: Path, traits: Traits = PLAIN, final_norm: bool = True) -> VisionTransformer:
    torch.manual_seed(3)
    model = VisionTransformer(TINY, final_norm=final_norm, traits=traits)
    save_encoder(path, model.state_dict(), EncoderInfo("mimbench", TINY, final_norm, traits=traits))
    return model


def test_an_mae_file_lacks_scales_and_relative_positions_and_nothing_else(tmp_path) -> None:
    file = tmp_path / "mae.safetensors"
    source = _mae_file(file)
    built = build_segmenter(replace(CONFIG, checkpoint=str(file)), 5)
    assert built.loaded is not None
    assert set(built.loaded.unexpected) == {"norm.weight", "norm.bias"}
    assert set(built.loaded.missing) == {
        f"layers.{block}.{name}"
        for block in range(4)
        for name in ("gamma_1", "gamma_2", "attn.relative_position_bias_table")
    }
    backbone = built.model.backbone
    assert backbone.pos_embed.shape == (1, 65, 16)
    assert torch.equal(backbone.pos_embed[:, 0], source.pos_embed[:, 0])
    assert not backbone.layers[1].attn.relative_position_bias_table.any()
    assert (backbone.layers[1].gamma_2 == 1).all()
    assert torch.equal(backbone.layers[2].ffn.layers[0][0].weight, source.blocks[2].mlp.fc1.weight)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_the_backbone_starts_as_the_encoder(tmp_path) -> None:
    """Scales of one and relative positions of zero change nothing."""
    file = tmp_path / "mae.safetensors"
    source = _mae_file(file).eval()
    config = replace(CONFIG, checkpoint=str(file), image=16)
    images = torch.randn(2, 3, 16, 16)
    maps = build_segmenter(config, 5).model.backbone.eval()(images)
    wanted = [tokens[:, 1:].mT.unflatten(2, (4, 4)) for tokens in source.after_each_block(images)]
    for made, block in zip(maps, (0, 1, 2, 3), strict=True):
        torch.testing.assert_close(made, wanted[block])
    normed = build_segmenter(replace(config, backbone=Backbone(final_norm=True)), 5).model.backbone.eval()(images)[-1]
    torch.testing.assert_close(normed.permute(0, 2, 3, 1), source(images).grid)


@pytest.mark.parametrize(
    "traits",
    [
        Traits(registers=2, layer_scale=True, mlp="swiglu_split", hidden=40),
        Traits(positions="rope", registers=4, layer_scale=True),
        Traits(class_token=False),
        Traits(layer_scale=True, norm_eps=1e-5),
        Traits(positions="relative", layer_scale=True),
    ],
    ids=["registers", "rope", "no class token", "LayerScale", "relative"],
)
def test_encoders_of_every_kind(traits: Traits, tmp_path) -> None:
    file = tmp_path / "encoder.safetensors"
    source = _mae_file(file, traits, final_norm=False).eval()
    config = replace(CONFIG, checkpoint=str(file), image=16)
    images = torch.randn(2, 3, 16, 16)
    model = build_segmenter(config, 5).model
    [*_, wanted] = source.after_each_block(images)
    made = model.backbone.eval()(images)[-1]
    torch.testing.assert_close(made, wanted[:, traits.prefix :].mT.unflatten(2, (4, 4)))
    sizes = [(16, 16), (12, 16)]
    batch = {
        "images": torch.randint(256, (2, 3, 16, 16)).byte(),
        "sizes": sizes,
        "labels": torch.zeros(2, 16, 16).byte(),
    }
    model.train()(batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_beit_files_relative_positions_are_resized(tmp_path) -> None:
    torch.manual_seed(1)
    options = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1, "num_classes": 0}
    source = Beit(img_size=16, patch_size=4, embed_dim=128, depth=4, num_heads=2, **options)
    state = {**source.state_dict(), "lm_head.weight": torch.zeros(8, 128), "lm_head.bias": torch.zeros(8)}
    table = torch.randn(52, 2)
    state["rel_pos_bias.relative_position_bias_table"] = table
    state["norm.weight"], state["norm.bias"] = torch.ones(128), torch.zeros(128)
    state["mask_token"] = torch.zeros(1, 1, 128)
    drop = ("fc_norm", "head", "blocks.0.attn.k_bias")
    state = {name: value for name, value in state.items() if not name.startswith(drop) and "k_bias" not in name}
    torch.save({"model": state}, tmp_path / "beit.pth")
    built = build_segmenter(replace(CONFIG, checkpoint=str(tmp_path / "beit.pth")), 5)
    assert built.info is not None
    assert built.info.family == "beit"
    attention = built.model.backbone.layers[3].attn
    assert torch.equal(attention.relative_position_bias_table, resize_relative(table, 8))
    assert torch.equal(attention.q_bias, state["blocks.3.attn.q_bias"])
    assert attention.qkv.bias is None
    assert built.model.backbone.pos_embed is None
    assert built.model.mean == pytest.approx((0.485, 0.456, 0.406))  # BEiT's own segmentation configs
    own = build_segmenter(replace(CONFIG, checkpoint=str(tmp_path / "beit.pth"), pixels="checkpoint"), 5)
    assert own.model.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("names", ["mmsegmentation 1.x", "BEiT's, 0.x"])
def test_a_whole_segmenter_is_taken_as_it_is(names: str, tmp_path) -> None:
    torch.manual_seed(2)
    source = build_segmenter(CONFIG, 5).model.eval()
    weights = source.state_dict()
    if names != "mmsegmentation 1.x":
        back = (
            ("neck.upsample_4x", "backbone.fpn1"),
            ("neck.upsample_2x", "backbone.fpn2"),
            ("backbone.layers", "backbone.blocks"),
            ("patch_embed.projection", "patch_embed.proj"),
            ("ffn.layers.0.0", "mlp.fc1"),
            ("ffn.layers.1", "mlp.fc2"),
            (".ln", ".norm"),
        )
        renamed = {reduce(lambda name, pair: name.replace(*pair), back, name): v for name, v in weights.items()}
        weights = renamed
    weights = {**weights, "backbone.layers.0.attn.relative_position_index": torch.zeros(65, 65, dtype=torch.int64)}
    file = tmp_path / "iter_160000.pth"
    torch.save({"state_dict": weights, "meta": {}}, file)
    config = replace(CONFIG, checkpoint=str(file), steps=0, encoder=ViT(32, 2, 2, patch=16, image=32))
    built = build_segmenter(config, 5)
    assert built.info is not None
    assert built.info.family == WHOLE
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(built.model.eval().logits(images), source.logits(images))
    with pytest.raises(ValueError, match=r"iter_160000\.pth has 5 classes, but x has 6"):
        build_segmenter(config, 6)
    with pytest.raises(ValueError, match="use image=32"):
        build_segmenter(replace(config, image=64), 5)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "mmsegmentation"])
def test_a_whole_segmenter_refuses_settings_that_contradict_it(ours: bool, tmp_path) -> None:
    built, file = build_segmenter(CONFIG, 5), tmp_path / "segmenter.pth"
    if ours:
        save_segmenter(file, built.model, built.description(CONFIG, tuple("abcde")))
    else:
        torch.save({"state_dict": built.model.state_dict(), "meta": {}}, file)
    config = replace(CONFIG, encoder=ViT(64, 3, 4, patch=8, image=32))
    for setting in ("heads=4", "activation=quick_gelu", "norm_eps=1e-3", "grid=7", "mean=.1,.2,.3", "std=.4"):
        name = setting.partition("=")[0]
        why = "contradicts the metadata that mimbench wrote" if ours else "cannot be set: it is used as it was trained"
        with pytest.raises(
            ValueError, match=rf"^{file} holds a whole segmenter, and {name}=.* {why}.*leave {name}= out"
        ):
            build_segmenter(replace(config, checkpoint=f"{file}?{setting}"), 5)
    with pytest.raises(ValueError, match=r"image=64: this segmenter was trained at 32 px; use image=32"):
        build_segmenter(replace(config, checkpoint=str(file), image=64), 5)
    again = replace(config, checkpoint=f"{file}?heads=2&grid=8" if ours else str(file))  # what the file states
    assert build_segmenter(again, 5).model.backbone.outputs == (0, 1, 2, 3)
    if ours:
        with pytest.raises(ValueError, match=r"backbone\.blocks=0,1,1,3: .*; use backbone\.blocks=0,1,2,3"):
            build_segmenter(replace(again, backbone=Backbone(blocks=(0, 1, 1, 3))), 5)
        with pytest.raises(ValueError, match=r"heads\.pool_scales=1,2,4,8: .*; use heads\.pool_scales=1,2,3,6"):
            build_segmenter(replace(again, heads=replace(CONFIG.heads, pool_scales=(1, 2, 4, 8))), 5)
    build_segmenter(replace(again, backbone=Backbone(blocks=(0, 1, 2, 3))), 5)
    with pytest.raises(ValueError, match=r"heads\.channels=64: .*segmenter\.pth.* has 8; use heads\.channels=8"):
        build_segmenter(replace(again, heads=Heads(channels=64)), 5)


def test_what_cannot_be(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"image=30 .*patch=4; use 28 or 32"):
        build_segmenter(replace(CONFIG, image=30), 5)
    file = tmp_path / "mae.safetensors"
    _mae_file(file, final_norm=False)
    with pytest.raises(ValueError, match="has no final norm"):
        build_segmenter(replace(CONFIG, checkpoint=str(file), backbone=Backbone(final_norm=True)), 5)
    with pytest.raises(ValueError, match="encoder of 4 blocks"):
        build_segmenter(replace(CONFIG, backbone=Backbone(blocks=(3, 5, 7, 11))), 5)
    with pytest.raises(ValueError, match="four blocks"):
        build_segmenter(replace(CONFIG, backbone=Backbone(blocks=(3,))), 5)


def test_a_random_encoder_under_a_recipe_with_a_final_norm() -> None:
    encoder = ViT(width=32, depth=4, heads=2, patch=8, image=32)
    backbone = Backbone(rel_pos=False, layer_scale=None, final_norm=True)  # iBOT's
    config = UPerNetConfig(data="", encoder=encoder, backbone=backbone, heads=Heads(channels=16, aux_channels=16))
    norm = build_segmenter(config, 3).model.backbone.norm
    assert torch.equal(norm.weight, torch.ones(32))
    assert torch.equal(norm.bias, torch.zeros(32))

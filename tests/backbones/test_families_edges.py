"""Families of checkpoints whose encoder is more than MAE's: what looks alike, what is refused, what cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.checkpoints.families import FAMILIES
from mimbench.backbones.checkpoints.families.clip import clip_heads, clip_traits
from mimbench.backbones.checkpoints.families.dinov2 import of_dinov2
from mimbench.backbones.checkpoints.families.dinov3 import dinov3_heads
from tests.backbones.golden.sine import filled
from tests.backbones.test_families_golden import golden, write

WIDTH = 64


def state_of(folder: Path, name: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(write(folder, name), weights_only=True)["model"]
    return state


def load(folder: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    torch.save({"model": state}, folder / "file.pth")
    loaded, info = load_encoder(folder / "file.pth")
    return loaded, info.family


def test_amt_does_not_scale_attention_and_simmim_does(tmp_path: Path) -> None:
    amt, _ = load_encoder(write(tmp_path, "simmim_amt"))
    ape, _ = load_encoder(write(tmp_path, "simmim_ape"))
    assert torch.equal(amt["blocks.1.ls1.gamma"], torch.ones(WIDTH))
    assert amt["blocks.1.ls2.gamma"].unique().numel() > 1
    assert ape["blocks.1.ls1.gamma"].unique().numel() > 1


def test_biases_of_keys_are_zeros(tmp_path: Path) -> None:
    state = state_of(tmp_path, "simmim_amt")
    loaded, _ = load(tmp_path, state)
    query, key, value = loaded["blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(query, state["encoder.blocks.0.attn.q_bias"])
    assert torch.equal(value, state["encoder.blocks.0.attn.v_bias"])
    assert not key.any()


def test_a_fine_tuned_simmim_with_absolute_positions(tmp_path: Path) -> None:
    state = {key.removeprefix("encoder."): value for key, value in state_of(tmp_path, "simmim_ape").items()}
    state = {key: value for key, value in state.items() if "mask_token" not in key and "decoder" not in key}
    loaded, family = load(tmp_path, {**state, "head.weight": torch.zeros(10, WIDTH), "head.bias": torch.zeros(10)})
    assert family == "simmim"
    assert "blocks.0.ls2.gamma" in loaded


def test_the_shared_positions_are_in_every_block(tmp_path: Path) -> None:
    state = state_of(tmp_path, "beit")
    loaded, _ = load(tmp_path, state)
    for block in range(2):
        table = loaded[f"blocks.{block}.attn.relative_position_bias_table"]
        assert torch.equal(table, state["rel_pos_bias.relative_position_bias_table"])


@pytest.mark.parametrize("rows", [50, 3, 39])
def test_a_relative_table_of_no_square_grid(tmp_path: Path, rows: int) -> None:
    state = {**state_of(tmp_path, "beit"), "rel_pos_bias.relative_position_bias_table": torch.zeros(rows, 1)}
    with pytest.raises(ValueError, match=f"has {rows} rows"):
        load(tmp_path, state)


def test_absolute_and_relative_positions_at_once_are_refused(tmp_path: Path) -> None:
    state = {**state_of(tmp_path, "beit_finetuned"), "pos_embed": torch.zeros(1, 17, WIDTH)}
    with pytest.raises(ValueError, match=r"file\.pth"):
        load(tmp_path, state)


@pytest.mark.parametrize("spoilt", ["unmasked", "never initialised"])
def test_a_key_with_a_bias_under_rotary_positions_is_refused(tmp_path: Path, spoilt: str) -> None:
    state = state_of(tmp_path, "dinov3")
    if spoilt == "unmasked":
        state = {key: value for key, value in state.items() if not key.endswith("bias_mask")}
    else:
        state["blocks.1.attn.qkv.bias_mask"] = torch.full((3 * WIDTH,), torch.nan)
    with pytest.raises(ValueError, match=r"attn\.qkv\.bias"):
        load(tmp_path, state)


def test_a_norm_of_its_own_for_the_class_token_is_refused(tmp_path: Path) -> None:
    norm = {"cls_norm.weight": torch.ones(WIDTH), "cls_norm.bias": torch.zeros(WIDTH)}
    with pytest.raises(ValueError, match=r"cls_norm\.weight"):
        load(tmp_path, {**state_of(tmp_path, "dinov3"), **norm})


def test_the_periods_are_those_of_the_file(tmp_path: Path) -> None:
    state = state_of(tmp_path, "dinov3")
    state["rope_embed.periods"] = state["rope_embed.periods"].bfloat16()
    loaded, _ = load(tmp_path, state)
    assert torch.equal(loaded["rope.periods"], state["rope_embed.periods"].float())
    of_timm, _ = load_encoder(write(tmp_path, "dinov3_timm"))
    assert torch.allclose(of_timm["rope.periods"], 100 ** (torch.arange(16) / 16))


def test_a_training_file_of_dinov2_with_its_heads(tmp_path: Path) -> None:
    state = state_of(tmp_path, "dinov2_swiglu")
    assert any(key.startswith("blocks.0.1.") for key in state)  # block 1 in chunk 0
    heads = {"dino_head.mlp.0.weight": torch.zeros(8, WIDTH), "ibot_head.last_layer.weight_v": torch.zeros(8, 8)}
    torch.save({"teacher": {**{f"backbone.{key}": value for key, value in state.items()}, **heads}}, tmp_path / "t.pth")
    loaded, info = load_encoder(tmp_path / "t.pth")
    assert (info.family, info.vit.depth) == ("dinov2", 2)
    assert torch.equal(loaded["blocks.1.mlp.fc1.weight"], state["blocks.0.1.mlp.w12.weight"])


def test_layer_scale_is_never_left_out(tmp_path: Path) -> None:
    state = {key: value for key, value in state_of(tmp_path, "dinov2").items() if key != "blocks.1.ls2.gamma"}
    with pytest.raises(ValueError, match=r"blocks\.1\.ls2\.gamma is missing"):
        load(tmp_path, state)


def test_the_sizes_of_towers_and_of_dinov3() -> None:
    assert [clip_heads(width) for width in (768, 1024, 1280, 1408, 1664)] == [12, 16, 16, 16, 16]
    assert [dinov3_heads(width) for width in (384, 768, 1024, 1280, 4096)] == [6, 12, 16, 20, 32]
    kernels = {width: {"patch_embed.proj.weight": torch.empty(width, 3, 14, 14)} for width in (1024, 1280)}
    assert clip_traits(kernels[1024]).activation == "quick_gelu"
    assert clip_traits(kernels[1280]).activation == "gelu"
    assert of_dinov2(kernels[1024])
    assert not of_dinov2(kernels[1280])  # DeiT III has this size with patches of 14


def test_other_vits_with_layer_scale_are_not_taken_for_dinov2(tmp_path: Path) -> None:
    shapes = golden("dinov2_timm")["state"]
    shapes = {**shapes, "patch_embed.proj.weight": [WIDTH, 3, 16, 16]}
    assert load(tmp_path, filled(shapes))[1] == "vit"


def test_families_of_one_name_are_told_apart_in_their_titles() -> None:
    titles = [family.title for family in FAMILIES]
    assert len(set(titles)) == len(titles)

"""Encoders of timm, tiny and random: features from their files equal timm's own, or the file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mimbench.backbones.checkpoint import build_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import ViT

WIDE = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # timm's name: family, what is changed beyond WIDE
    "eva02_base_patch14_224": ("eva02", {"img_size": 224}),
    "eva02_large_patch14_448": ("eva02", {"img_size": 112}),
    "eva02_base_patch16_clip_224": ("eva02", {"img_size": 224}),
    "aimv2_large_patch14_224": ("aimv2", {"img_size": 56, "num_heads": 1}),
    "vit_base_patch16_siglip_224": ("siglip", {"img_size": 64}),
    "vit_base_patch16_siglip_gap_224": ("siglip", {"img_size": 64}),
    "vit_base_patch32_siglip_gap_256": ("siglip", {"img_size": 64}),
    "vit_so400m_patch16_siglip_gap_256": ("siglip", {"embed_dim": 1152, "num_heads": 16, "depth": 1, "img_size": 64}),
    "vit_so400m_patch14_siglip_224": ("siglip", {"embed_dim": 1152, "num_heads": 16, "depth": 1, "img_size": 56}),
    "vit_pe_core_base_patch16_224": ("pe", {"img_size": 224}),
    "vit_pe_core_gigantic_patch14_448": ("pe", {"img_size": 448}),
    "vit_pe_spatial_gigantic_patch14_448": ("pe_spatial", {"img_size": 448}),
    "vit_pe_lang_large_patch14_448": ("pe_spatial", {"img_size": 448}),
    "vit_base_patch16_rope_224": ("rope_vit", {"img_size": 64}),
    "eva02_tiny_patch14_224": ("eva02", {"img_size": 224}),
    "vit_base_patch14_reg1_tipsv2": ("tips", {"img_size": 56}),
    "vit_base_patch16_radio_v3": ("radio", {"img_size": 64}),
    "vit_intern300m_patch14_448": ("plain", {"img_size": 56}),
    "vit_base_patch16_clip_quickgelu_224": ("clip", {"img_size": 64}),
    "vit_small_patch16_dinov3": ("dinov3", {"img_size": 64}),
    "vit_small_plus_patch16_dinov3_qkvb": ("dinov3", {"img_size": 64}),
    "vit_base_patch14_reg4_dinov2": ("dinov2", {"img_size": 56}),
    "deit3_base_patch16_224": ("vit", {"img_size": 64}),
    "samvit_base_patch16": ("sam", {"img_size": 320, "global_attn_indexes": (1,)}),
}
TOLD = {  # what the file does not tell, and the user does
    "vit_base_patch16_rope_ape_224": ("rope_vit", {"img_size": 64}, "family=rope_vit"),
    "vit_pe_spatial_base_patch16_512": ("pe_spatial", {"img_size": 512}, "family=pe_spatial"),
    "vit_base_patch16_clip_224": ("clip", {"img_size": 64}, "activation=gelu&mean=.1,.2,.3&std=.5"),
    "vit_base_patch16_gap_224": ("siglip", {"img_size": 64, "num_heads": 4}, "heads=4&activation=gelu"),
}
REFUSED = {
    "vit_base_patch16_rope_ape_224": ({"img_size": 64}, "family=deit3 or family=rope_vit"),
    "vit_pe_spatial_base_patch16_512": ({"img_size": 64}, "family=pe_spatial or family=clip"),
    "vit_base_patch16_rpn_224": ({"img_size": 64, "global_pool": "avg"}, "norms after attention"),
    "vit_base_patch16_rope_mixed_224": ({"img_size": 64}, "no known family|rope.freqs"),
}


def made(name: str, **changes: Any) -> torch.nn.Module:
    """A tiny model of timm's whose weights all matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**WIDE, **changes}).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1 if weight.ndim == 1 or "pos_embed" in key else 0.02)
    return model


@pytest.mark.parametrize("name", CASES)
def test_features_are_timms(name: str, tmp_path: Path) -> None:
    family, changes = CASES[name]
    model = made(name, **changes)
    torch.save(model.state_dict(), tmp_path / "encoder.pth")
    ours, info = build_encoder(tmp_path / "encoder.pth", ViT())
    assert info is not None
    assert info.family == family
    assert info.mean == pytest.approx(model.pretrained_cfg["mean"], abs=1e-6) or "mean" in info.assumed
    assert_features(model, ours, changes["img_size"])


@pytest.mark.parametrize("name", TOLD)
def test_what_a_file_does_not_tell_may_be_told(name: str, tmp_path: Path) -> None:
    family, changes, options = TOLD[name]
    model = made(name, **changes)
    torch.save(model.state_dict(), tmp_path / "encoder.pth")
    ours, info = build_encoder(f"{tmp_path}/encoder.pth?{options}", ViT())
    assert info is not None
    assert info.family == family
    assert not {option.partition("=")[0] for option in options.split("&")} & set(info.assumed)
    assert info.mean == (0.1, 0.2, 0.3) or "mean=" not in options
    assert_features(model, ours, changes["img_size"])


def assert_features(model: Any, ours: torch.nn.Module, side: int) -> None:
    """The patch features of both are equal to 1e-4."""
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        if hasattr(model, "neck"):  # SAM's, which gives a map
            model.neck = torch.nn.Identity()
            theirs = model.forward_features(images).flatten(2).mT
        else:
            theirs = model.forward_features(images)[:, model.num_prefix_tokens :]
        grid = ours.eval()(images).grid.flatten(1, 2)
    assert torch.allclose(grid, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_does_not_tell_is_not_guessed(name: str, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    torch.save(made(name, **changes).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=said) as refused:
        match(open_checkpoint(tmp_path / "encoder.pth")).require(allow_partial=True)
    assert "\n" not in str(refused.value)


def test_one_register_is_tips_and_four_are_dinov2s(tmp_path: Path) -> None:
    for registers, family, mean, how in (
        (1, "tips", 0.0, "bilinear-antialias"),
        (4, "dinov2", 0.485, "bicubic-antialias"),
    ):
        state = made("vit_base_patch14_reg4_dinov2", img_size=56, reg_tokens=registers).state_dict()
        state["register_tokens"] = state.pop("reg_token")
        state["mask_token"] = torch.zeros(1, 128)
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 128), state["pos_embed"]], dim=1)
        torch.save(state, tmp_path / f"{registers}.pth")
        _, info = build_encoder(tmp_path / f"{registers}.pth", ViT())
        assert info is not None
        assert (info.family, info.mean[0], info.interpolation) == (family, mean, how)
        assert info.traits.registers == registers

"""Encoders of Hugging Face's transformers: features from their folders equal the library's own, or they are refused.

What ours cannot be is refused in one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mimbench.backbones.checkpoint import build_encoder
from mimbench.backbones.checkpoints.huggingface.family import family_of
from mimbench.backbones.checkpoints.huggingface.folder import NOT_THEIRS, Config
from mimbench.backbones.checkpoints.huggingface.models import MODEL_TYPES, TOWERS
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.config import ViT
from mimbench.backbones.vitdet import ViTDet, vitdet_reason
from mimbench.backbones.weights import open_weights
from tests.backbones.transformers_cases import (
    CASES,
    ODD,
    built,
    changed,
    last_hidden_state,
    post_normed,
)

OWN_WAY = ("siglip2", "aimv2_native")  # whose classes bring positions to other sizes as their authors do


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_librarys(name: str, folders: dict[str, tuple[PreTrainedModel, Path]]) -> None:
    case, (model, folder) = CASES[name], folders[name]
    for side, theirs in {32: case.tokens, **case.at}.items():
        ours, info = build_encoder(folder, ViT(), interpolation=None if name in OWN_WAY else "bicubic")
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            tokens = ours.norm(ours.eval().encode(images))
            expected = theirs(model, images)
        assert info is not None
        assert info.family == case.family
        error = (tokens - expected).abs().max() / expected.abs().max()
        assert error < 2e-6, f"{error:.1e} at {side} pixels"


@pytest.mark.parametrize("name", CASES)
def test_vitdet_of_global_blocks_gives_the_librarys_patches(
    name: str, folders: dict[str, tuple[PreTrainedModel, Path]]
) -> None:
    case, (model, folder) = CASES[name], folders[name]
    found = open_weights(folder)
    assert vitdet_reason(found.traits) is None
    options: dict[str, Any] = {"rel_pos": False, "prefix": "global", "norm": found.info.final_norm}
    everywhere = None if found.traits.windows else range(found.vit.depth)
    backbone = ViTDet(found.vit, found.traits, image=32, global_blocks=everywhere, **options)
    backbone.load_encoder(found.encoder, found.traits)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        patches = case.tokens(model, images)[:, found.traits.prefix :]
        error = (backbone.eval()(images).flatten(2).mT - patches).abs().max() / patches.abs().max()
    assert error < 2e-6, f"{error:.1e}"


CONTRADICTIONS = [
    ("vit", {"hidden_size": 96}, "patches are embedded in 48 channels"),
    ("vit", {"num_hidden_layers": 3}, "there are 2 blocks"),
    ("vit", {"intermediate_size": 64}, "the MLP's first matrix has 80 rows, not 64"),
    ("vit", {"patch_size": 16}, "patches have sides of 8 pixels"),
    ("vit", {"image_size": 64}, "the position table has 17 rows, not 65"),
    ("vit", {"num_channels": 1}, "images have 3 channels"),
    ("vit", {"qkv_bias": False}, "the file has blocks.0.attn.qkv.bias"),
    ("vit_without_bias", {"qkv_bias": True}, "the file has no blocks.0.attn.qkv.bias"),
    ("vit", {"num_attention_heads": 5}, "does not divide hidden_size=48"),
    ("vit", {"head_dim": 8}, "only heads of hidden_size / num_attention_heads"),
    ("vit", {"hidden_act": "relu"}, "supported are gelu"),
    ("vit", {"image_size": [32, 64]}, "images and patches must be square"),
    ("vit", {"hidden_size": "48"}, "which is no number above 0"),
    ("vit", {"model_type": "hiera"}, "its stages have other widths and grids"),
    ("vit", {"model_type": "vit-of-tomorrow"}, "known model types are clip, "),
    ("vit", {"model_type": "siglip_vision_model"}, "the file has no patch embedding of it"),
    ("beit_tables", {"num_attention_heads": 6}, "relative positions are of 3 heads"),
    ("beit_tables", {"image_size": 64}, "has 52 rows, not 228"),
    ("beit_tables", {"use_relative_position_bias": False}, "the file has blocks.0.attn.relative_position_bias_table"),
    ("beit_tables", {"layer_scale_init_value": 0.0}, "the file has blocks.0.gamma_1"),
    ("beit_tables", {"use_absolute_position_embeddings": True}, "an encoder has one kind of positions"),
    ("dinov2", {"mlp_ratio": 4}, "the MLP's first matrix has 144 rows, not 192"),
    ("dinov2_registers", {"num_register_tokens": 4}, "there are 3 registers"),
    ("dinov3", {"key_bias": True}, "keys have no bias"),
    ("dinov3", {"num_attention_heads": 8}, "heads of a width that 4 divides"),
    ("siglip2", {"num_patches": 17}, "which is no square grid"),
    ("vitdet", {"residual_block_indices": [1]}, "its convolutions between blocks are not supported"),
    ("vitdet", {"use_relative_position_embeddings": True}, "the file has no blocks.0.attn.rel_pos_h"),
    ("vitdet_windows", {"use_relative_position_embeddings": False}, "the file has blocks.0.attn.rel_pos_h"),
    ("vitdet_windows", {"window_size": 5}, "block 0's relative positions have 7 rows, not 9"),
    ("vitdet_windows", {"image_size": 64}, "block 1's relative positions have 11 rows, not 15"),
]


@pytest.mark.parametrize("name", ["vitdet_windows", "vitdet_without_tables"])
@pytest.mark.parametrize("shape", [(48, 48), (48, 40)])
def test_vitdet_in_windows_gives_the_librarys_map(
    name: str, shape: tuple[int, int], folders: dict[str, tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = folders[name]
    found = open_weights(folder, "detector")
    assert found.kind == "encoder"
    backbone = ViTDet(found.vit, found.traits, image=48)
    backbone.load_encoder(found.encoder, found.traits)
    assert (backbone.is_global, backbone.window) == ((False, True), 4)
    images = torch.randn(2, 3, *shape)
    with torch.no_grad():
        theirs = model(images).last_hidden_state
        error = (backbone.eval()(images) - theirs).abs().max() / theirs.abs().max()
    assert error < 2e-6, f"{error:.1e}"


@pytest.mark.parametrize(("name", "values", "said"), CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_refused(
    name: str,
    values: dict[str, Any],
    said: str,
    folders: dict[str, tuple[PreTrainedModel, Path]],
    tmp_path: Path,
) -> None:
    folder = changed(folders[name][1], tmp_path / name, **values)
    with pytest.raises(ValueError, match=r"config\.json says") as refused:
        open_weights(folder, allow_partial=True).require()
    key = next(iter(values))
    assert f"{key}=" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


OTHERS = {  # what else transformers has that looks like a ViT, by model type, with what makes it tiny
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "dpt": {"backbone_out_indices": [0, 1, 1, 1]},
    "flava_image_model": {},
    "mlcd_vision_model": {},
    "owlvit_vision_model": {},
    "pixio": {"mlp_ratio": 2},
    "internvl_vision": {},
    "sam3_vit_model": {"window_size": 2, "global_attn_indexes": [1], "rope_theta": 10.0},
    "videoprism_vision_model": {"num_frames": 2},
    "videomae": {"num_frames": 4},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 4},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_looks_like_a_vit_and_is_none_of_ours_is_refused(kind: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[kind]()
    asked = {**ODD, **OTHERS[kind]}
    built(kind, {key: value for key, value in asked.items() if hasattr(config, key)}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"config.json says model_type={kind}, which is not supported") as refused:
        open_weights(tmp_path, allow_partial=True).require()
    assert "\n" not in str(refused.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_weights(tmp_path).require()


def test_every_model_type_of_the_library_is_tried_or_refused_by_its_name(tmp_path: Path) -> None:
    assert {case.kind for case in CASES.values()} == set(MODEL_TYPES)
    file = tmp_path / "model.safetensors"
    others = set(MODEL_MAPPING_NAMES) - {*MODEL_TYPES, *TOWERS, *NOT_THEIRS}
    assert len(others) > 300
    for name in others:
        weights = {"embeddings.patch_embeddings.projection.weight": torch.zeros(48, 3, 8, 8)}
        opened = Opened(
            file, "safetensors", 0, weights, "", config=Config(tmp_path / "config.json", {"model_type": name})
        )
        with pytest.raises(ValueError, match=f"model_type={name}, which is not supported"):
            family_of(opened)


WHOLE = {"CLIPModel": "", "AltCLIPModel": "", "CLIPSegForImageSegmentation": "clip.", "SiglipModel": ""}


@pytest.mark.parametrize("name", WHOLE)
def test_the_image_tower_of_a_whole_model_is_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "vocab_size": 99, "project_dim": 32, "projection_size": 32}
    kind = getattr(transformers, name)
    config = kind.config_class(text_config=text, vision_config=dict(ODD))
    config.extract_layers = [0, 1]  # CLIPSeg's
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    ours, info = build_encoder(tmp_path, ViT(), interpolation="bicubic")
    assert info is not None
    assert not info.partial
    images = torch.randn(2, 3, 32, 32)
    tower: Any = model.get_submodule(f"{WHOLE[name]}vision_model")
    with torch.no_grad():
        expected = last_hidden_state(tower, images) if name == "SiglipModel" else post_normed(tower, images)
        error = (ours.norm(ours.eval().encode(images)) - expected).abs().max() / expected.abs().max()
    assert error < 2e-6, f"{error:.1e}"


def test_the_wrapper_of_timms_models_is_read_as_timms(tmp_path: Path) -> None:
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "patch_size": 8, "act_layer": "gelu_tanh"}
    config = CONFIG_MAPPING["timm_wrapper"](architecture="vit_base_patch16_siglip_gap_224", model_args=options)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({**values, "pretrained_cfg": statistics}))
    ours, info = build_encoder(tmp_path, ViT())
    assert info is not None
    assert (info.family, info.vit.heads, info.traits.activation) == ("siglip", 3, "gelu_tanh")
    assert (info.mean, info.std, info.assumed) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.timm_model.forward_features(images)
        assert (ours.norm(ours.eval().encode(images)) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_defaults_are_the_librarys() -> None:
    for name, kind in MODEL_TYPES.items():
        config = CONFIG_MAPPING[name]()
        assert {key: getattr(config, key) for key in kind.defaults} == {
            key: list(value) if isinstance(value, tuple) and isinstance(getattr(config, key), list) else value
            for key, value in kind.defaults.items()
        }, name
    for name, tower in TOWERS.items():
        assert CONFIG_MAPPING[name]().vision_config.model_type == tower

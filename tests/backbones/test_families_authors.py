"""Encoders by their authors' own names: tokens of the originals, and what becomes of every key.

The golden files were written by the originals' own code (golden/make_authors.py), in float64.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import Rope, Traits, ViT, Windows
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet
from mimbench.backbones.weights import open_weights
from tests.backbones.golden.sine import image, summary
from tests.backbones.test_families_golden import close, golden, write

SCALED = Traits(layer_scale=True)
CLIP = Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu")
PE = Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5, rope=Rope(4, order="xy", offset=1.0))
TOKENLESS = replace(PE, class_token=False, layer_scale=True, hidden=320, rope=Rope(4, order="xy"))
SAM = Traits(class_token=False, windows=Windows(3, (1,)))
AIMV2 = Traits(class_token=False, mlp="swiglu_split", hidden=176, qkv_bias=False, proj_bias=False, mlp_bias=False,
               norm="rms", norm_eps=1e-5, patch_norm=True)  # fmt: skip
RELATIVE = Traits(positions="relative", layer_scale=True)
AIM = Traits(class_token=False, qkv_bias=False, proj_bias=False, mlp_bias=False, patch_norm=True)
CASES = {  # file: family, traits, final norm, mean of the first colour
    "sam": ("sam", SAM, False, 0.485),
    "pe_core": ("pe", PE, True, 0.5),
    "pe_spatial": ("pe_spatial", PE, False, 0.5),
    "pe_spatial_giant": ("pe_spatial", TOKENLESS, False, 0.5),
    "pe_lang": ("pe_spatial", replace(PE, layer_scale=True), False, 0.5),
    "radio": ("radio", Traits(registers=7, patch_bias=False), False, 0.48145466),
    "franca": ("dinov2", replace(SCALED, mlp="swiglu", hidden=176), True, 0.485),
    "ibot": ("dino", Traits(), True, 0.485),
    "tips": ("tips", replace(SCALED, registers=1), True, 0.0),
    "data2vec": ("data2vec", RELATIVE, True, 0.5),
    "open_clip": ("clip", CLIP, True, 0.48145466),
    "aim": ("aim", AIM, True, 0.485),
    "aimv2": ("aimv2", AIMV2, True, 0.48145466),
    "aimv2_native": ("aimv2", AIMV2, True, 0.48145466),
}


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_the_authors_code(tmp_path: Path, name: str) -> None:
    family, traits, final_norm, mean = CASES[name]
    path = write(tmp_path, name)
    state, info = load_encoder(path)
    assert (info.family, info.traits, info.final_norm, info.mean[0]) == (family, traits, final_norm, mean)
    encoder = VisionTransformer(info.vit, info.final_norm, "avg", info.traits, info.interpolation)
    encoder.load_state_dict(state)
    for features in golden(name)["features"]:
        with torch.no_grad():
            tokens = encoder.double().eval().encode(image(*features["size"]))
            close(summary(encoder.norm(tokens), info.traits.prefix), features)
    matched = match(open_checkpoint(path))
    assert not matched.of("suspicious")
    assert {entry.key for entry in matched.entries if entry.verdict != "expected missing"} == set(golden(name)["state"])


def test_vitdet_has_sams_own_windows(tmp_path: Path) -> None:
    found = open_weights(write(tmp_path, "sam"), "detector")
    assert found.kind == "encoder"  # not a ViTDet backbone, though it has relative positions
    for image_side in (40, 64):
        net = ViTDet(found.vit, found.traits, image=image_side, rel_pos=False)
        net.load_encoder(found.encoder, found.traits)
        assert (net.window, net.is_global) == (3, (False, True, False))
    net = ViTDet(found.vit, found.traits, image=40, rel_pos=False)
    net.load_encoder(found.encoder, found.traits)
    with torch.no_grad():
        tokens = net.double().eval()(image(40, 40)).flatten(2).mT
    close(summary(tokens, 0), golden("sam")["features"][0])


def test_sams_tables_tell_its_heads(tmp_path: Path) -> None:
    traits, vit = Traits(class_token=False, windows=Windows(3, (1,))), ViT(48, 2, 3, 8, 40)
    state = {f"image_encoder.{key}": value for key, value in VisionTransformer(vit, traits=traits).state_dict().items()}
    state = {key.replace(".mlp.fc", ".mlp.lin"): value for key, value in state.items()}
    state["image_encoder.pos_embed"] = torch.zeros(1, 5, 5, 48)
    torch.save(state, tmp_path / "sam.pth")
    _, info = load_encoder(tmp_path / "sam.pth")
    assert (info.vit, info.assumed) == (vit, ())


def test_sam_by_other_sides_is_refused(tmp_path: Path) -> None:
    state = torch.load(write(tmp_path, "sam"))["model"]
    table = "image_encoder.blocks.2.attn.rel_pos_h"
    torch.save({**state, table: torch.zeros(7, 64)}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="for sides of 3, 4 patches, and the image has 5"):
        open_weights(tmp_path / "sam.pth").require()


@pytest.mark.parametrize("name", ["aimv2_native", "aim"])
def test_a_native_encoder_computes_its_positions_in_vitdet_too(tmp_path: Path, name: str) -> None:
    found = open_weights(write(tmp_path, name), "detector")
    assert found.info.interpolation == "regenerate"
    options = {"global_blocks": range(2), "rel_pos": False, "norm": True, "interpolation": found.info.interpolation}
    net = ViTDet(found.vit, found.traits, image=64, **options)
    net.load_encoder(found.encoder, found.traits)
    assert net.pos_embed is not None
    assert not net.pos_embed.requires_grad
    for features in golden(name)["features"]:
        with torch.no_grad():
            tokens = net.double().eval()(image(*features["size"])).flatten(2).mT
        close(summary(tokens, 0), features)


def test_apples_files_for_mlx_and_of_both_towers_are_the_same_encoder(tmp_path: Path) -> None:
    torch_file = write(tmp_path, "aimv2")
    state = torch.load(torch_file)["model"]
    key = "preprocessor.patchifier.proj.weight"
    save_file({**state, key: state[key].permute(0, 2, 3, 1).contiguous()}, tmp_path / "mlx_model.safetensors")
    towers = {f"image_encoder.{name}": value for name, value in state.items()}
    text = {"text_encoder.trunk.blocks.0.norm_1.weight": torch.ones(8), "log_logit_scale": torch.tensor(1.0)}
    save_file({**towers, **text, "image_projector.weight": torch.ones(8, 64)}, tmp_path / "lit.safetensors")
    hashes = {content_hash(tmp_path / name) for name in (torch_file.name, "mlx_model.safetensors", "lit.safetensors")}
    assert len(hashes) == 1
    assert load_encoder(torch_file)[1].assumed == ("heads", "grid")
    save_file(state, tmp_path / "model.safetensors")  # as on the hub, with a config of the authors' own class
    values = {"model_type": "aimv2", "hidden_size": 64, "num_attention_heads": 2, "rms_norm_eps": 1e-4}
    (tmp_path / "config.json").write_text(json.dumps({**values, "image_size": 32, "patch_size": 8}))
    info = load_encoder(tmp_path)[1]
    assert (info.family, info.vit.heads, info.traits.norm_eps, info.assumed) == ("aimv2", 2, 1e-4, ())


def test_data2vec_2_is_refused_with_its_reason(tmp_path: Path) -> None:
    state = {
        "modality_encoders.IMAGE.local_encoder.proj.weight": torch.zeros(64, 3, 8, 8),
        "modality_encoders.IMAGE.extra_tokens": torch.zeros(1, 1, 64),
        "blocks.0.norm1.weight": torch.ones(64),
    }
    torch.save({"model": state}, tmp_path / "base_imagenet.pt")
    with pytest.raises(ValueError, match=r"data2vec 2\.0 .* norm the sum after attention and after the MLP"):
        open_weights(tmp_path / "base_imagenet.pt").require()


def test_a_conditioner_of_other_statistics_is_not_taken(tmp_path: Path) -> None:
    state = torch.load(write(tmp_path, "radio"))["model"]
    torch.save({**state, "input_conditioner.norm_mean": torch.full((3, 1, 1), 0.5)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        open_weights(tmp_path / "other.pth").require()


def test_radio_by_transformers_is_read_by_its_authors_names(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 8, "max_img_size": 48}
    config = CONFIG_MAPPING["radio"](**sizes, num_cls_tokens=2, num_registers=3, summary_idxs=[0, 1])
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(tmp_path)
    state, info = load_encoder(tmp_path)
    assert (info.family, info.traits.registers, info.traits.layer_scale) == ("radio", 4, True)
    encoder = VisionTransformer(info.vit, info.final_norm, "avg", info.traits, info.interpolation)
    encoder.load_state_dict(state)
    for height, width in ((48, 48), (24, 40)):
        images = torch.rand(2, 3, height, width)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
        with torch.no_grad():
            expected = model(images).last_hidden_state
            tokens = encoder.eval().encode((images - mean) / std)
        assert (tokens - expected).abs().max() < 1e-5 * expected.abs().max()

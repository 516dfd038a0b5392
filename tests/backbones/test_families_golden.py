"""Families of checkpoints whose encoder is more than MAE's: features of the originals, and what becomes of every key.

The golden files were written by the originals' own code (golden/make_families.py), in float64.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoint import EncoderInfo, load_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.config import Traits
from mimbench.backbones.vit import VisionTransformer
from tests.backbones.golden.make_families import SWING
from tests.backbones.golden.sine import filled, image, summary

GOLDEN = Path(__file__).parent / "golden"
RELATIVE = Traits(positions="relative", layer_scale=True)
SCALED = Traits(layer_scale=True)
CLIP = Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu")
ROTARY = Traits(positions="rope", layer_scale=True, norm_eps=1e-5)


def but(traits: Traits, **changes: Any) -> Traits:
    return Traits(**{**asdict(traits), **changes})


CASES = {  # file: family, traits, what is dropped
    "simmim": ("simmim", RELATIVE, {"decoder", "mask token", "index into the positions, computed anew"}),
    "simmim_finetuned": ("beit", RELATIVE, {"classification head", "norm of the classification head"}),
    "simmim_ape": ("simmim", SCALED, {"decoder", "mask token"}),
    "simmim_amt": ("simmim", SCALED, {"decoder", "mask token"}),
    "amt": ("mae", Traits(), {"decoder", "mask token"}),
    "maskalign": ("maskalign", Traits(), {"teacher", "head that predicts the teacher"}),
    "maskalign_dino": ("maskalign", Traits(), {"teacher", "mixture of layers for the teacher"}),
    "beit": ("beit", RELATIVE, {"decoder: logits of visual tokens", "mask token"}),
    "beit2": ("beitv2", RELATIVE, {"decoder: logits of visual tokens", "decoder of the class token"}),
    "beit_finetuned": ("beit", RELATIVE, {"classification head", "norm of the classification head"}),
    "beit_timm": ("beit", RELATIVE, {"classification head", "norm of the classification head"}),
    "clip_openai": ("clip", CLIP, {"text tower", "projection into the space of text", "a number beside the towers"}),
    "clip_hf": ("clip", CLIP, {"text tower", "projection into the space of text"}),
    "clip_timm": ("clip", CLIP, set()),
    "dinov2": ("dinov2", SCALED, {"mask token"}),
    "dinov2_registers": ("dinov2", but(SCALED, registers=4), {"mask token"}),
    "dinov2_swiglu": ("dinov2", but(SCALED, mlp="swiglu", hidden=176), {"mask token"}),
    "dinov2_timm": ("dinov2", SCALED, set()),
    "dinov2_timm_registers": ("dinov2", but(SCALED, registers=4), set()),
    "dinov2_timm_swiglu": ("dinov2", but(SCALED, mlp="swiglu", hidden=160), set()),
    "dinov3": ("dinov3", but(ROTARY, registers=4), {"mask token"}),
    "dinov3_swiglu": (
        "dinov3",
        but(ROTARY, mlp="swiglu_split", hidden=128, qkv_bias=False),
        {"mask token", "norm of small crops, of pretraining alone"},
    ),
    "dinov3_timm": ("dinov3", but(ROTARY, registers=4, qkv_bias=False), set()),
    "dinov3_timm_bias": ("dinov3", but(ROTARY, registers=4, mlp="swiglu_split"), set()),
}
NORMLESS = {"simmim_finetuned", "beit_finetuned", "beit_timm"}


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def write(folder: Path, name: str) -> Path:
    """A file as the original's training leaves it."""
    content = golden(name)
    given = {key: torch.tensor(value) for key, value in content["given"].items()}
    whole = {key: torch.zeros(content["state"][key], dtype=torch.int64) for key in content["integers"]}
    state = filled(content["state"], {**given, **whole}, SWING)
    torch.save({"model": state, "epoch": 3, "optimizer": {"state": {}}}, folder / f"{name}.pth")
    return folder / f"{name}.pth"


def close(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    """Equal to 1e-5 of the largest number."""
    for key, values in found.items():
        golden_F = torch.tensor(wanted[key], dtype=torch.float64)
        far = (torch.tensor(values, dtype=torch.float64) - golden_F).abs().max() / golden_F.abs().max()
        assert far < 1e-5, f"{key}: {far}"


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_the_original(tmp_path: Path, name: str) -> None:
    family, traits, dropped = CASES[name]
    path = write(tmp_path, name)
    state, info = load_encoder(path)
    assert (info.family, info.traits, info.final_norm) == (family, traits, name not in NORMLESS)
    for features in golden(name)["features"]:
        how = features.get("interpolation", info.interpolation)
        encoder = VisionTransformer(info.vit, info.final_norm, "cls", info.traits, how)
        encoder.load_state_dict(state)
        encoder = encoder.double().eval()
        with torch.no_grad():
            tokens = encoder.norm(encoder.encode(image(*features["size"])))
            assert torch.equal(encoder(image(*features["size"])).pooled, tokens[:, 0])
        close(summary(tokens, info.traits.prefix), features)
    matched = match(open_checkpoint(path))
    assert not matched.of("suspicious")
    assert dropped <= {entry.note for entry in matched.of("expected dropped")}
    assert {entry.key for entry in matched.entries if entry.verdict != "expected missing"} == set(golden(name)["state"])


@pytest.mark.parametrize("name", ["simmim", "beit", "beit2", "beit_finetuned"])
def test_relative_positions_are_for_one_size_alone(tmp_path: Path, name: str) -> None:
    state, info = load_encoder(write(tmp_path, name))
    encoder = VisionTransformer(info.vit, info.final_norm, traits=info.traits)
    encoder.load_state_dict(state)
    with pytest.raises(ValueError, match=r"4 x 4 patches.* 6 x 5 .*images of 32 pixels"):
        encoder(torch.zeros(1, 3, 48, 40))


def test_the_statistics_of_their_images(tmp_path: Path) -> None:
    infos: dict[str, EncoderInfo] = {
        name: load_encoder(write(tmp_path, name))[1] for name in ("clip_openai", "beit", "beit2", "dinov3")
    }
    assert infos["clip_openai"].mean == (0.48145466, 0.4578275, 0.40821073)
    assert infos["beit"].mean == infos["beit"].std == (0.5, 0.5, 0.5)
    assert infos["beit2"].mean == infos["dinov3"].mean == (0.485, 0.456, 0.406)

"""Every family that is a plain ViT: files as the originals write them give the originals' features.

`golden/plain_vits.json` was made by the originals (`golden/plain_vits.py` says how); the weights are made by a rule.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.positions import fixed_table
from mimbench.backbones.vit import VisionTransformer
from tests.backbones.golden.sine import filled, image, summary

GOLDEN = json.loads((Path(__file__).parent / "golden" / "plain_vits.json").read_text())
OPTIONS = argparse.Namespace(model="a", lr=1e-3)
FAMILY = {
    "mae encoder": "mae", "mocov3 probe": "mocov3", "vit without a class token": "vit",
    "vit without the token's row": "vit", "vit with registers": "vit",
}  # fmt: skip


def original_state(name: str) -> dict[str, Tensor]:
    """The state dictionary of a case, by the rule."""
    case = GOLDEN[name]
    rows_first = name.startswith("mocov3")
    table = torch.cat([torch.zeros(1, 1, 128), fixed_table(128, (4, 4), rows_first)], dim=1)
    state = filled(case["shapes"], dict.fromkeys(case["keep"], table))
    for key in case["zero"]:
        state[key][:, 0] = 0
    return state


def saved(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the original's training writes around a state dictionary."""
    if name == "dino":
        module = {f"module.{key}": value for key, value in state.items()}
        return {"student": {key: value + 1 for key, value in module.items()}, "teacher": dict(state), "args": OPTIONS}
    if name.startswith("mocov3"):
        wrapped = {f"module.{key}": value for key, value in state.items()}
        return {"epoch": 300, "arch": "vit_base", "state_dict": wrapped, "optimizer": {"state": {}}}
    if name == "mae encoder":
        return {"model": {key: value for key, value in state.items() if "decoder" not in key and key != "mask_token"}}
    if name.startswith(("vit", "augreg")):
        return dict(state)
    return {"model": dict(state), "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 799, "args": OPTIONS}


@pytest.mark.parametrize("name", GOLDEN)
def test_features_are_the_originals(name: str, tmp_path: Path) -> None:
    torch.save(saved(name, original_state(name)), tmp_path / "file.pth")
    state, info = load_encoder(tmp_path / "file.pth")
    assert info.family == FAMILY.get(name, name)
    assert (info.vit.width, info.vit.depth, info.vit.heads, info.vit.patch, info.vit.image) == (128, 2, 2, 8, 32)
    model = VisionTransformer(info.vit, info.final_norm, traits=info.traits, interpolation=info.interpolation)
    model.load_state_dict(state)
    model.double().eval()
    for side, golden in GOLDEN[name]["features"].items():
        with torch.no_grad():
            tokens = model.norm(model.encode(image(*map(int, side.split("x")))))
        found = summary(tokens, info.traits.prefix)
        for what, numbers in golden.items():
            torch.testing.assert_close(torch.tensor(found[what]), torch.tensor(numbers), rtol=1e-5, atol=1e-7)
    assert not match(open_checkpoint(tmp_path / "file.pth")).of("suspicious")

"""The report: exact for programs, readable for people."""

from __future__ import annotations

import argparse
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.checkpoints.report import Report, as_json, report
from mimbench.backbones.checkpoints.report_text import render, size
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from tests.backbones.test_match import CROSS_DECODER, TINY, encoder, learned


def told(path: Path, content: Any = None) -> Report:
    """The report on a file with this content."""
    if content is not None:
        torch.save(content, path)
    return report(match(open_checkpoint(path)))


def shown(what: Report, every_key: bool = False) -> str:
    """As a terminal 100 columns wide has it, without colours."""
    console = Console(file=StringIO(), width=100, highlight=False)
    console.print(render(what, every_key))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.fixture
def cross(tmp_path: Path) -> Report:
    """Of a CrossMAE training's file."""
    options = argparse.Namespace(model="mae_vit_tiny", lr=1e-3, object=None)
    moments = {"state": {0: {"exp_avg": torch.zeros(1000)}}, "param_groups": [{"lr": 1e-3}]}
    model = {**encoder(final_norm=False), **CROSS_DECODER}
    return told(tmp_path / "cross.pth", {"model": model, "optimizer": moments, "epoch": 7, "args": options})


def test_what_a_file_is(cross: Report) -> None:
    assert (cross.family, cross.architecture, cross.vit) == ("crossmae", "ViT 64x2/8", TINY)
    assert (cross.final_norm, cross.positions, cross.traits) == (False, "sincos", {})
    assert (cross.found_under, cross.precision, cross.refused, cross.vitdet) == ("model", ("float32",), None, None)
    assert cross.arguments["model"] == "mae_vit_tiny"
    weights = sum(value.numel() for value in encoder(final_norm=False).values())
    assert (cross.weights, cross.bytes_that_matter) == (weights, 4 * weights)


def test_every_key_and_every_byte_has_its_place(cross: Report) -> None:
    model = {**encoder(final_norm=False), **CROSS_DECODER}
    assert [entry.key for entry in cross.keys] == list(model)
    assert cross.counts["loaded"] == len(encoder(final_norm=False))
    assert cross.counts["expected dropped"] == len(CROSS_DECODER)
    parts = {part.name: part for part in cross.parts}
    assert parts["encoder"].encoder
    assert parts["decoder"].keys + parts["mask token"].keys == len(CROSS_DECODER)
    assert parts["optimizer"].bytes == 4000
    assert sum(part.bytes for part in cross.parts) <= cross.size


def test_json_is_exact_and_says_whether_it_loads(cross: Report) -> None:
    again = json.loads(json.dumps(as_json(cross)))
    assert again["loads"] is True
    assert again["vit"] == {"width": 64, "depth": 2, "heads": 1, "patch": 8, "image": 32}
    assert again["size"] == cross.size
    assert again["keys"][0]["key"] == cross.keys[0].key


def test_the_terminal_names_what_matters(cross: Report) -> None:
    text = shown(cross)
    for part in (
        "CrossMAE (Fu et al., 2025)  ✓ loads",
        "ViT 64x2/8",
        "4 x 4 patches of 8 px and a class token",
        "fixed sine-cosine table",
        "final norm     none",
        "model=mae_vit_tiny",
        "0 suspicious",
    ):
        assert part in text, text
    assert "blocks.0" not in text
    assert "blocks.0.attn.qkv.weight" in shown(cross, every_key=True)


def test_what_would_not_load_is_shown_block_by_block_and_named(tmp_path: Path) -> None:
    state = {**learned(), "adapter.weight": torch.zeros(3)}
    for block in range(2):
        del state[f"blocks.{block}.mlp.fc2.bias"]
    found = told(tmp_path / "odd.pth", state)
    assert found.refused is not None
    assert "does not load" in shown(found)
    assert "blocks.0-1.mlp.fc2.bias  is missing" in shown(found)
    assert "suspicious keys" in shown(found)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = learned()
    state["blocks.0.norm1.bias"][0] = float("nan")
    found = told(tmp_path / "nan.pth", state)
    assert found.not_finite == ("blocks.0.norm1.bias",)
    assert found.refused is not None
    monkeypatch.setattr("mimbench.backbones.checkpoints.report.READ", 1000)
    unread = told(tmp_path / "nan.pth")
    assert (unread.not_finite, unread.refused) == (None, None)
    assert "values" in shown(unread)


def test_copies_wrappers_and_precision(tmp_path: Path) -> None:
    half = {f"module.{key}": value.half() for key, value in learned().items()}
    found = told(tmp_path / "ema.pth", {"state_dict": half, "state_dict_ema": dict(half)})
    text = shown(found)
    assert found.copies
    assert found.copies[0] in text
    assert "names without 'module.'" in text
    assert "float16, loaded as float32" in " ".join(text.split())


def test_our_own_file_says_who_made_it(tmp_path: Path) -> None:
    about = EncoderInfo("crossmae", TINY, False, recipe="pretrain/x", identity="ab12")
    save_encoder(tmp_path / "e.safetensors", encoder(final_norm=False), about)
    assert told(tmp_path / "e.safetensors").pretraining == {"recipe": "pretrain/x", "identity": "ab12"}
    assert "pretrain/x ab12" in shown(told(tmp_path / "e.safetensors"))


def test_sizes_for_people() -> None:
    assert [size(number) for number in (12, 2048, 5 * 2**20, 3 * 2**30)] == [
        "12 bytes",
        "2.0 KiB",
        "5.0 MiB",
        "3.00 GiB",
    ]


def test_what_vitdet_will_do_with_it(tmp_path: Path) -> None:
    traits = Traits(positions="rope", registers=4, layer_scale=True, norm_eps=1e-5)
    vit = ViT(64, 12, 1, patch=16, image=256)
    state = VisionTransformer(vit, True, traits=traits).state_dict()
    save_encoder(tmp_path / "encoder.safetensors", state, EncoderInfo("dinov3", vit, True, traits=traits))
    said = told(tmp_path / "encoder.safetensors")
    assert said.vitdet is None
    assert said.vitdet_plan == (
        "windows of 16 (vitdet.window=none), blocks 2, 5, 8, 11 attend globally",
        "the class token and 4 registers are dropped",
        "rotary positions count from each window's corner",
    )
    assert said.detectron2 is not None
    assert "blocks 2, 5, 8, 11 attend globally; the class token" in " ".join(shown(said).split())


def test_keys_are_not_cut_off(tmp_path: Path) -> None:
    key = f"{'inside_of_' * 6}the_end"
    assert key[-10:] in "".join(shown(told(tmp_path / "long.pth", {**learned(), key: torch.zeros(2)})).split())

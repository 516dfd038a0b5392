"""`mimbench inspect` as people and scripts meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.jobs.cli.main import app

TINY = ViT(width=64, depth=2, heads=1, patch=8, image=32)


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], prog_name="mimbench", env={"COLUMNS": "120"})


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A file of ours."""
    state = VisionTransformer(TINY, final_norm=True).state_dict()
    save_encoder(tmp_path / "encoder.safetensors", state, EncoderInfo("mae", TINY, True))
    return tmp_path / "encoder.safetensors"


def test_a_file_is_shown(encoder: Path) -> None:
    done = mimbench(encoder)
    assert done.exit_code == 0
    assert "✓ loads" in done.stdout
    assert "ViT 64x2/8" in done.stdout
    assert "blocks.1.attn.qkv.weight" not in done.stdout
    assert "blocks.1.attn.qkv.weight" in mimbench(encoder, "--keys").stdout


def test_json_is_for_programs(encoder: Path) -> None:
    done = mimbench(encoder, "--json")
    told = json.loads(done.stdout)
    assert (told["loads"], told["family"], told["counts"]["suspicious"]) == (True, "mae", 0)
    assert mimbench(f"file://{encoder}", "--json").stdout == done.stdout


def test_what_would_not_load_is_shown_and_fails(tmp_path: Path) -> None:
    state = {**VisionTransformer(TINY).state_dict(), "adapter.weight": torch.zeros(3)}
    torch.save({"model": state, "model_ema": VisionTransformer(TINY).state_dict()}, tmp_path / "odd.pth")
    done = mimbench(tmp_path / "odd.pth")
    assert done.exit_code == 1
    assert "✗  adapter.weight" in done.stdout
    assert "error: " in done.stderr
    assert "adapter.weight" in done.stderr
    assert json.loads(mimbench(tmp_path / "odd.pth", "--json").stdout)["loads"] is False
    assert mimbench(tmp_path / "odd.pth", "--copy", "ema").exit_code == 0
    assert mimbench(f"{tmp_path / 'odd.pth'}?copy=ema").exit_code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"hello", "checkpoint"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "file.pth").write_bytes(content)
    done = mimbench(tmp_path / "file.pth")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1

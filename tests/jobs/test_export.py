"""`mimbench export`: what is printed, and what a person gets who asks for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.jobs.cli.main import app

TINY = ViT(64, 1, 1, patch=16, image=32)


def mimbench(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder's file, in a directory of its own; the tests run in another, empty one."""
    file = tmp_path / "made" / "encoder.safetensors"
    torch.manual_seed(0)
    save_encoder(file, VisionTransformer(TINY).state_dict(), EncoderInfo("crossmae", TINY, False))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return file


def test_it_says_how_the_file_is_loaded(encoder: Path) -> None:
    done = mimbench("export", encoder, "--to", "timm")
    assert done.exit_code == 0, done.output
    first, usage, *notes = done.stdout.splitlines()
    assert first.startswith("encoder-timm.safetensors: 16 tensors, ")
    assert usage.startswith("  timm.create_model('vit_base_patch16_224', checkpoint_path='encoder-timm.safetensors', ")
    assert notes[1].startswith("  - final_norm=False")
    assert [file.name for file in Path().iterdir()] == ["encoder-timm.safetensors"]


def test_for_programs(encoder: Path) -> None:
    done = mimbench("export", encoder, "--to", "detectron2", "--output", "sub/vitdet.pth", "--json")
    made = json.loads(done.stdout)
    assert (made["file"], made["target"], made["tensors"]) == ("sub/vitdet.pth", "detectron2", 16)
    assert made["usage"] == "DetectionCheckpointer(model).load('sub/vitdet.pth')"
    assert Path("sub/vitdet.pth").stat().st_size == made["bytes"]


def test_what_cannot_be_ends_in_one_line(encoder: Path) -> None:
    Path("page.pth").write_text("<!DOCTYPE html>")
    Path("there.pth").write_text("mine")
    for arguments, why in [
        (("page.pth", "--to", "mae"), "page.pth is a web page"),
        (("none.pth", "--to", "mae"), "none.pth does not exist"),
        ((encoder, "--to", "mae", "--output", "there.pth"), "there.pth exists; remove it"),
        (
            (encoder, "--to", "mae", "--output", "x.safetensors"),
            "--output x.safetensors: a file for mae must end in .pth",
        ),
        ((encoder, "--to", "mae", "--output", "there.pth/x.pth"), "there.pth"),
        ((encoder.parent, "--to", "mae"), "is not a run directory"),
        ((encoder, "--to", "timm", "--patch", "5"), "image=32 must be a multiple of patch=5"),
    ]:
        done = mimbench("export", *arguments)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert why in done.stderr
        assert done.stderr.count("\n") == 1
    assert mimbench("export", encoder, "--to", "onnx").exit_code == 2
    assert {file.name for file in Path().iterdir()} == {"page.pth", "there.pth"}

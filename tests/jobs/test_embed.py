"""Features to a file, for data with classes and for a directory of pictures, equal to those that k-NN evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import mimbench
from mimbench.jobs.cli.main import app


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small ViT and pictures, with classes and without."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in (
        "birds/train/wren/a",
        "birds/train/owl/b",
        "birds/val/wren/c",
        "birds/val/owl/d",
        "loose/x/e",
        "loose/f",
    ):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=32)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    return tmp_path


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dictionary)
        return tensors, json.loads(opened.metadata()["mimbench_features"])


def _embed(*words: str) -> str:
    done = CliRunner().invoke(app, ["embed", "vit.pth", *words], prog_name="mimbench")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_data_set_with_classes(place: Path) -> None:
    assert "2 images, features 192 wide" in _embed("birds", "-o", "out/features.safetensors")
    tensors, about = _read(place / "out" / "features.safetensors")
    assert tensors["label"].tolist() == [0, 1]
    assert about["classes"] == ["owl", "wren"]
    assert [Path(name).name for name in about["names"]] == ["d.png", "c.png"]  # type: ignore[attr-defined]
    files = [place / "birds/val/owl/d.png", place / "birds/val/wren/c.png"]
    pooled = mimbench.load_encoder(place / "vit.pth").features(files, size=32).pooled
    torch.testing.assert_close(tensors["features"], pooled, rtol=2e-2, atol=2e-2)  # bfloat16 where the CPU has it
    train = json.loads(_embed("birds", "-o", "train.safetensors", "--split", "train", "--pool", "both", "--json"))
    assert (train["images"], train["width"]) == (2, 384)


def test_a_directory_of_pictures(place: Path) -> None:
    assert json.loads(_embed("loose", "-o", "f.safetensors", "--half", "--json"))["images"] == 2
    tensors, about = _read(place / "f.safetensors")
    assert set(tensors) == {"features"}
    assert tensors["features"].dtype == torch.float16
    assert about["names"] == ["f.png", "x/e.png"]
    (place / "empty").mkdir()
    done = CliRunner().invoke(app, ["embed", "vit.pth", "empty", "-o", "x.safetensors"], prog_name="mimbench")
    assert done.exit_code == 1
    assert "empty" in done.stderr
    assert not (place / "x.safetensors").exists()


def test_features_that_are_not_numbers_are_not_written(place: Path) -> None:
    state = torch.load(place / "vit.pth", weights_only=True)

    def refused(scale: float, *words: str) -> str:
        torch.save({**state, "norm.weight": state["norm.weight"] * scale}, place / "vit.pth")
        done = CliRunner().invoke(app, ["embed", "vit.pth", "loose", "-o", "f.safetensors", *words])
        assert done.exit_code == 1
        assert not (place / "f.safetensors").exists()
        return " ".join(done.stderr.split())

    message = refused(1e7, "--half")
    assert "the feature of f.png is NaN, infinite or above float16's maximum 65504" in message
    assert "leave out --half" in message
    assert "the feature of f.png is NaN or infinite" in refused(3e38)

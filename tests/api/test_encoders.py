"""`load_encoder`: the originals' features from images in every usual form, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import mimbench
from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Knn
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.jobs.cli.inspect import show
from tests.backbones.golden.make_families import SWING
from tests.backbones.golden.sine import filled, image, summary

GOLDEN = Path(__file__).parents[1] / "backbones" / "golden"
TINY = ViT(width=64, depth=2, heads=1, patch=8, image=32)
HALF = (0.5, 0.5, 0.5)
STATISTICS = {  # as the originals' repositories state them
    "clip_openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "beit": (HALF, HALF),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "maskalign": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An encoder of ours, without a final norm."""
    torch.manual_seed(0)
    state = VisionTransformer(TINY).state_dict()
    save_encoder(tmp_path / "encoder.safetensors", state, EncoderInfo("crossmae", TINY, False))
    return tmp_path / "encoder.safetensors"


@pytest.fixture
def photograph() -> Image.Image:
    """A smooth picture of 60 x 48 pixels."""
    wave = np.sin(np.arange(48)[:, None, None] * 0.2 + np.arange(60)[None, :, None] * 0.1 + np.arange(3))
    return Image.fromarray((127 + 100 * wave).astype(np.uint8))


def _original(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A file as the original's training leaves it, and the original's features."""
    content = json.loads((GOLDEN / f"{name}.json").read_text())
    given = {key: torch.tensor(value) for key, value in content["given"].items()}
    whole = {key: torch.zeros(content["state"][key], dtype=torch.int64) for key in content["integers"]}
    torch.save({"model": filled(content["state"], {**given, **whole}, SWING)}, folder / f"{name}.pth")
    return folder / f"{name}.pth", content["features"]


@pytest.mark.parametrize("name", STATISTICS)
def test_features_are_the_originals_from_images_that_are_not_normalised(name: str, tmp_path: Path) -> None:
    path, features = _original(tmp_path, name)
    encoder = mimbench.load_encoder(path)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[name])
    golden, patch = features[0], encoder.patch
    height, width = golden["size"]
    pixels = (image(height, width) * std + mean).float()
    pooled, grid = encoder.features(pixels)
    assert (pooled.shape, grid.shape) == ((1, 64), (1, height // patch, width // patch, 64))
    torch.testing.assert_close(pooled, grid.mean(dim=(1, 2)), rtol=1e-5, atol=1e-6)
    found = summary(grid.flatten(1, 2), 0)
    for key, values in found.items():
        wanted = torch.tensor(golden[key])
        assert (torch.tensor(values) - wanted).abs().max() < 1e-4 * wanted.abs().max(), key


def test_every_form_of_an_image_gives_the_same(file: Path, photograph: Image.Image, tmp_path: Path) -> None:
    encoder = mimbench.load_encoder(file)
    small = photograph.crop((0, 0, 40, 32))
    small.save(tmp_path / "small.png")
    array = np.asarray(small)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    wanted = encoder.features(small)
    assert wanted.grid.shape == (1, 4, 5, 64)
    forms: list[Any] = [
        [small], tmp_path / "small.png", str(tmp_path / "small.png"), array, array[None], tensor, tensor[None],
        (one for one in [small]),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(encoder.features(form).grid, wanted.grid)
    for form in (tensor / 255, tensor.double() / 255, (array / 255.0).astype(np.float32)):
        torch.testing.assert_close(encoder.features(form).grid, wanted.grid, rtol=1e-4, atol=1e-5)
    mixed = encoder.features([small, tensor / 255, array])
    torch.testing.assert_close(mixed.pooled, wanted.pooled.expand(3, -1), rtol=1e-4, atol=1e-5)
    grey = small.convert("L")
    assert torch.equal(encoder(grey).pooled, encoder(np.asarray(grey)).pooled)


def test_size_crops_as_torchvision_does(file: Path, photograph: Image.Image) -> None:
    encoder = mimbench.load_encoder(file)
    torchvision = v2.Compose([v2.PILToTensor(), v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    wanted = encoder.features(torchvision(photograph))
    assert torch.equal(encoder.features(photograph, size=32).grid, wanted.grid)
    assert torch.equal(encoder.model(encoder.prepare([photograph], size=32)).grid, wanted.grid)
    both = encoder.features([photograph, photograph.rotate(90, expand=True)], size=32)
    assert torch.equal(both.grid[:1], wanted.grid)


def test_batches_change_nothing(file: Path) -> None:
    encoder = mimbench.load_encoder(file)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(encoder.features(images, batch=2), encoder.features(images), rtol=1e-5, atol=1e-6)


def test_pooling_is_what_knn_evaluates(file: Path, tmp_path: Path) -> None:
    state = VisionTransformer(TINY, final_norm=True).state_dict()
    state["norm.weight"] += torch.rand(64)
    save_encoder(tmp_path / "mae.safetensors", state, EncoderInfo("mae", TINY, True))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for pool in ("avg", "cls"):
        config = Knn(data="none", checkpoint=str(tmp_path / "mae.safetensors"), image=32, pool=pool)
        wanted = frozen_encoder(config, torch.device("cpu"))(images)
        encoder = mimbench.load_encoder(tmp_path / "mae.safetensors", pool=pool)  # type: ignore[arg-type]
        torch.testing.assert_close(encoder.features(images).pooled, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_the_model_alone(file: Path) -> None:
    encoder = mimbench.load_encoder(file)
    pixels = torch.rand(1, 3, 32, 32)
    assert not encoder.features(pixels).pooled.requires_grad
    assert encoder.model(encoder.prepare(pixels)).pooled.requires_grad
    assert not encoder.model.training
    assert "crossmae, width 64, depth 2, patch 8" in repr(encoder)
    assert (encoder.patch, encoder.width, encoder.image, encoder.device.type) == (8, 64, 32, "cpu")


@pytest.mark.parametrize(
    ("images", "size", "complaint"),
    [
        (torch.zeros(1, 3, 40, 41), None, r"40 x 41 pixels cannot be cut into patches of 8; size=32"),
        (torch.zeros(3, 3), None, r"a tensor of images has the shape \(3, 3\); it must be \(3, H, W\)"),
        (torch.zeros(32, 32, 3), None, r"shape \(32, 32, 3\); it must be \(3, H, W\)"),
        (np.zeros((3, 32, 32), np.uint8), None, r"an array of images has .* must be \(H, W, 3\)"),
        (torch.randn(1, 3, 32, 32), None, r"values in 0..1, but these have -\d.* `encoder.model`"),
        (torch.full((3, 32, 32), 200.0), None, "these have 200 to 200"),
        (torch.full((3, 32, 32), float("nan")), None, "these have nan to nan"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), None, "of type torch.int64; they must be uint8"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 40, 32)], None, "several sizes .* size=224"),
        ([], None, "images is empty"),
        (torch.zeros(3, 32, 32), 0, "size=0 must be at least 1"),
    ],
)
def test_wrong_images_are_refused_in_a_line(file: Path, images: Any, size: int | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        mimbench.load_encoder(file).features(images, size)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused(file: Path, tmp_path: Path) -> None:
    encoder = mimbench.load_encoder(file)
    with pytest.raises(TypeError, match="tensor, not int"):
        encoder.features(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        encoder.features(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="batch=0"):
        encoder.features(torch.zeros(3, 32, 32), batch=0)
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth does not exist"):
        mimbench.load_encoder(tmp_path / "nowhere.pth")


def test_files_with_several_sets_of_weights_and_with_unknown_keys(tmp_path: Path) -> None:
    state = VisionTransformer(TINY).state_dict()
    ema = {key: value + 1 for key, value in state.items()}
    torch.save({"model": {**state, "adapter.weight": torch.zeros(3)}, "model_ema": ema}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"adapter.weight"):
        mimbench.load_encoder(tmp_path / "odd.pth")
    partial = mimbench.load_encoder(tmp_path / "odd.pth", allow_partial=True)
    assert len(partial.info.partial) == 1
    for given in (
        mimbench.load_encoder(tmp_path / "odd.pth", copy="ema"),
        mimbench.load_encoder(f"{tmp_path / 'odd.pth'}?copy=ema"),
    ):
        assert torch.equal(given.model.cls_token, ema["cls_token"])


def test_inspect_says_what_the_command_says(file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = mimbench.inspect(file)
    assert (report.family, report.architecture, report.refused) == ("crossmae", "ViT 64x2/8", None)
    show(str(file), None, True, False)
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == report.counts
    assert len(repr(report)) < 2000
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is a web page"):
        mimbench.inspect(tmp_path / "page.pth")

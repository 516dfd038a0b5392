"""Pictures and the validation loss: what is hidden, what is pasted back, and the colours of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimbench.backbones.config import ViT
from mimbench.engine.data.images import normalise
from mimbench.pretrain.config import CrossMAEConfig, KeepMasking, MAEConfig, RandomMasking
from mimbench.pretrain.masking.strategies import Keep, Masked, Random
from mimbench.pretrain.methods.crossmae import CrossMAE as CrossModel
from mimbench.pretrain.methods.method import Context
from mimbench.pretrain.methods.pixels import pixels, standardised
from mimbench.pretrain.methods.table import build_method
from mimbench.pretrain.reconstruct import HIDDEN, fixed_noise, heat, picture_rows, save_picture, validation_loss
from mimbench.pretrain.step import Step

TINY = ViT(width=16, depth=1, heads=2, patch=4, image=16)
DECODER = CrossMAEConfig(depth=1, width=16, heads=2)


class Clairvoyant(CrossModel):
    """Predicts exactly what is there."""

    def predict(self, images: Tensor, shown_BV: Tensor, predicted_BQ: Tensor) -> Tensor:
        """The target itself."""
        target = pixels(images, predicted_BQ, self.patch)
        return standardised(target) if self.config.norm_pix else target


class Attentive(CrossModel):
    """Weighs the patches by their number, and paints nothing."""

    def compute_context(self, images: Tensor) -> Context:
        """Weights."""
        return Context(torch.arange(16.0).expand(len(images), -1))

    def rebuild(self, images: Tensor, masked: Masked) -> None:  # type: ignore[override]
        """Nothing."""


def images(number: int = 3) -> Tensor:
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def noise() -> Tensor:
    return fixed_noise(images(), 16, 0)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_the_image(norm_pix: bool) -> None:
    step = Step(Clairvoyant(TINY, replace(DECODER, norm_pix=norm_pix)), Random(RandomMasking()))
    rows = picture_rows(step, images(), noise())
    assert rows["rebuilt"].dtype == torch.uint8
    assert (rows["rebuilt"].int() - images().int()).abs().max() <= 1
    assert torch.equal(rows["original"], images())


@pytest.mark.parametrize("config", [DECODER, MAEConfig(depth=1, width=16, heads=2)], ids=lambda config: config.kind)
def test_all_that_is_hidden_is_painted_and_the_rest_untouched(config: CrossMAEConfig | MAEConfig) -> None:
    step = Step(build_method(config, TINY), Random(RandomMasking(predict=0.25)))
    rows = picture_rows(step, images(), noise())
    shown, hidden, _ = Random(RandomMasking(predict=0.75))(noise(), None, (4, 4), 0.0)
    assert hidden.shape[1] == 12
    assert torch.equal(pixels(rows["shown"], shown, 4), pixels(images(), shown, 4))
    assert torch.equal(pixels(rows["rebuilt"], shown, 4), pixels(images(), shown, 4))
    assert (pixels(rows["shown"], hidden, 4) == HIDDEN).all()
    assert "weights" not in rows


def test_a_method_that_weighs_patches_shows_the_weights() -> None:
    rows = picture_rows(Step(Attentive(TINY, DECODER), Keep(KeepMasking())), images(), noise())
    assert list(rows) == ["original", "shown", "weights"]
    assert rows["weights"].shape == (3, 3, 16, 16)
    brightness = heat(torch.arange(16.0).view(1, 4, 4), 1)[0].float().mean(dim=0).flatten()
    assert torch.equal(brightness, brightness.sort().values)


def test_the_loss_is_that_of_the_method_whatever_the_batch() -> None:
    step = Step(build_method(DECODER, TINY), Random(RandomMasking()))
    whole = step.method(normalise(images()), step.masking(fixed_noise(images(), 16, 7), None, (4, 4), 0.0)).item()
    assert validation_loss(step, images(), seed=7, batch=2) == pytest.approx(whole, rel=1e-6)
    assert validation_loss(step, images(), seed=8, batch=2) != pytest.approx(whole, rel=1e-6)


def test_the_picture_is_a_png_that_says_nothing_of_when_it_was_made(tmp_path: Path) -> None:
    from PIL import Image

    rows = picture_rows(Step(build_method(DECODER, TINY), Random(RandomMasking())), images(), noise())
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / "plots" / name, rows, "caption")
    with Image.open(tmp_path / "plots" / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (656, 656)
    assert (tmp_path / "plots" / "a.png").read_bytes() == (tmp_path / "plots" / "b.png").read_bytes()

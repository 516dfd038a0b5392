"""Reconstructions: what is hidden, what is pasted back, and the colours of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.config import ViT
from engine.images import normalise
from pretrain.config import CrossMAE as Config
from pretrain.crossmae import CrossMAE, pixels, standardised
from pretrain.masking import mask_patches
from pretrain.reconstruct import HIDDEN, fixed_noise, reconstruct, save_picture, validation_loss

TINY = ViT(width=16, depth=1, heads=2, patch=4, image=16)


class Clairvoyant(CrossMAE):
    """Predicts exactly what is there."""

    answers: Tensor

    def predict(self, images: Tensor, shown_BV: Tensor, predicted_BQ: Tensor) -> Tensor:
        """The target itself."""
        target = pixels(images, predicted_BQ, self.patch)
        return standardised(target) if self.config.norm_pix else target


def images(number: int = 3) -> Tensor:
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_the_image(norm_pix: bool) -> None:
    model = Clairvoyant(TINY, Config(depth=1, width=16, heads=2, norm_pix=norm_pix))
    pictures = reconstruct(model, images(), fixed_noise(images(), model, 0))
    assert pictures.reconstruction.dtype == torch.uint8
    assert (pictures.reconstruction.int() - images().int()).abs().max() <= 1
    assert torch.equal(pictures.original, images())


def test_three_quarters_are_hidden_and_the_rest_is_untouched() -> None:
    model = CrossMAE(TINY, Config(depth=1, width=16, heads=2))
    noise = fixed_noise(images(), model, 0)
    pictures = reconstruct(model, images(), noise)
    shown, hidden = mask_patches(noise, 0.75, 0.75)
    assert hidden.shape[1] == 12
    assert torch.equal(pixels(pictures.masked, shown, 4), pixels(images(), shown, 4))
    assert torch.equal(pixels(pictures.reconstruction, shown, 4), pixels(images(), shown, 4))
    assert (pixels(pictures.masked, hidden, 4) == HIDDEN).all()


def test_the_loss_is_that_of_the_model_whatever_the_batch() -> None:
    model = CrossMAE(TINY, Config(depth=1, width=16, heads=2))
    whole = model(normalise(images()), fixed_noise(images(), model, 7)).item()
    assert validation_loss(model, images(), seed=7, batch=2) == pytest.approx(whole, rel=1e-6)
    assert validation_loss(model, images(), seed=8, batch=2) != pytest.approx(whole, rel=1e-6)


def test_the_picture_is_a_png_that_says_nothing_of_when_it_was_made(tmp_path: Path) -> None:
    from PIL import Image

    model = CrossMAE(TINY, Config(depth=1, width=16, heads=2))
    pictures = reconstruct(model, images(), fixed_noise(images(), model, 0))
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / "plots" / name, pictures, "caption")
    with Image.open(tmp_path / "plots" / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (656, 656)
    assert (tmp_path / "plots" / "a.png").read_bytes() == (tmp_path / "plots" / "b.png").read_bytes()

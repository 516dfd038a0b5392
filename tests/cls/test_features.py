"""Which feature a frozen encoder gives, and that it is the one described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from mimbench.backbones.checkpoint import EncoderInfo, load_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.positions import resize_positions
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Knn
from mimbench.cls.data.crops import open_splits
from mimbench.cls.frozen.encoders import describe, encoder_facts, frozen_vit
from mimbench.cls.frozen.features import features_of
from mimbench.engine.data.images import normalise
from mimbench.engine.run.config import Compute
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
SMALL = Compute(precision="fp32", workers=0, device="cpu")


def _tokens(checkpoint: Path, images: torch.Tensor) -> tuple[torch.Tensor, VisionTransformer]:
    """Tokens after the last block, by hand."""
    state, info = load_encoder(checkpoint)
    model = VisionTransformer(info.vit, info.final_norm)
    model.load_state_dict(state)
    with torch.no_grad():
        return model.forward_tokens(normalise(images))[-1], model


@pytest.mark.parametrize("pool", ["avg", "cls"])
@pytest.mark.parametrize("norm", ["tokens", "pooled"])
def test_features_are_those_described(
    checkpoint: Path, pool: Literal["avg", "cls"], norm: Literal["tokens", "pooled"]
) -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    tokens, model = _tokens(checkpoint, images)
    normed = model.norm(tokens) if norm == "tokens" else tokens
    expected = normed[:, 1:].mean(1) if pool == "avg" else normed[:, 0]
    expected = F.layer_norm(expected, (16,), eps=1e-6) if norm == "pooled" else expected
    config = Knn(checkpoint=str(checkpoint), image=16, pool=pool, norm=norm, compute=SMALL, eval_batch=2)
    found = frozen_vit(config, CPU)(images)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_a_split_is_encoded_in_its_order(folder: Path, checkpoint: Path) -> None:
    config = Knn(checkpoint=str(checkpoint), image=16, compute=SMALL, eval_batch=5)
    val = open_splits(str(folder)).val
    encoder = frozen_vit(config, CPU)
    features, labels = features_of(encoder, val, 16, 1.0, workers=0)
    assert features.shape == (21, 16)
    torch.testing.assert_close(features[13], encoder(val[13][0][None])[0], rtol=1e-5, atol=1e-6)
    assert labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7  # blue, green, red


def test_an_encoders_own_statistics_are_used(checkpoint: Path) -> None:
    config = Knn(checkpoint=str(checkpoint), image=16, compute=SMALL)
    encoder = frozen_vit(config, CPU)
    shifted = frozen_vit(config, CPU)
    assert encoder.info is not None
    object.__setattr__(shifted, "info", EncoderInfo("mae", TINY, True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert not torch.allclose(encoder(images), shifted(images))


def test_images_that_cannot_be_cut_into_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image=20 .*patch size 8; use image=16"):
        frozen_vit(Knn(encoder=TINY, image=20, compute=SMALL), CPU)


def test_the_feature_is_said_in_words() -> None:
    crossmae = EncoderInfo("crossmae", TINY, final_norm=False)
    assert describe("avg", "tokens", crossmae).endswith("standardising (the encoder has no final norm of its own)")
    assert describe("cls", "tokens", EncoderInfo("mae", TINY, True)) == "class token after the checkpoint's final norm"
    assert describe("avg", "pooled", crossmae) == "mean of the patch tokens, no final norm, then standardised"


def test_positions_are_brought_to_the_grid_in_the_way_that_is_asked_for(tmp_path: Path) -> None:
    state = VisionTransformer(ViT(64, 1, 1, 8, 32), final_norm=True).state_dict()
    save_encoder(tmp_path / "e.safetensors", state, EncoderInfo("mae", ViT(64, 1, 1, 8, 32), True))
    base = Knn(checkpoint=str(tmp_path / "e.safetensors"), image=16, compute=SMALL)
    for positions, said in [
        ("auto", "bicubic"),
        ("bicubic-antialias", "bicubic-antialias"),
        ("regenerate", "regenerate"),
    ]:
        config = replace(base, positions=positions)
        encoder = frozen_vit(config, CPU)
        assert torch.equal(encoder.model.pos_embed, resize_positions(state["pos_embed"], (2, 2), said))
        assert encoder_facts(config, encoder.model, encoder.info)["positions"] == said
    config = replace(base, image=32)
    encoder = frozen_vit(config, CPU)
    assert encoder_facts(config, encoder.model, encoder.info)["positions"] == "as pretrained"
    assert torch.equal(encoder.model.pos_embed, state["pos_embed"])


def test_what_allow_partial_let_pass_is_in_the_facts(tmp_path: Path) -> None:
    state = {**VisionTransformer(ViT(64, 1, 1, 8, 16), final_norm=True).state_dict(), "adapter.weight": torch.zeros(3)}
    torch.save({"model": state}, tmp_path / "odd.pth")
    config = Knn(checkpoint=str(tmp_path / "odd.pth"), image=16, compute=SMALL)
    with pytest.raises(ValueError, match=r"adapter\.weight"):
        frozen_vit(config, CPU)
    encoder = frozen_vit(replace(config, allow_partial=True), CPU)
    [passed] = encoder_facts(config, encoder.model, encoder.info)["partial"]
    assert passed.startswith("adapter.weight")

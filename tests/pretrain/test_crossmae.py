"""CrossMAE: what its options do, and that it equals its plain form. The authors' numbers are in test_originals.py."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.pretrain.config import CrossMAEConfig, RandomMasking
from mimbench.pretrain.masking.strategies import Masked, Random
from mimbench.pretrain.methods.crossmae import CrossMAE
from mimbench.pretrain.methods.pixels import pixels, standardised
from tests.pretrain.originals import golden_noise, sine_filled, sines

TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)
DECODER = CrossMAEConfig(depth=2, width=32, heads=4)
PREDICTION_SUM = -9.9765653074661
PREDICTION = [-0.8012719647170407, -0.8063807813281494, -0.40947804744375166]
# ViT-S with dd 12 under torch.manual_seed(0): the first three values, and the sum of absolute values
SEEDED = {
    "patch_embed.proj.weight": [-0.0647389, 0.0362042, 0.0171041, 10637.9784],
    "patch_embed.proj.bias": [0.0011689, -0.0160073, 0.017806, 6.458],
    "cls_token": [0.0358136, 0.0121182, 0.0182969, 6.1767],
    "mask_token": [-0.0138751, 0.0206583, -0.0162261, 3.985],
    "blocks.0.attn.qkv.weight": [-0.0213011, -0.0562863, 0.0539294, 13808.8186],
    "decoder_pred.weight": [-0.060548, -0.0661418, 0.0322437, 7523.0208],
    "wfm.linear.weight": [-0.3921951, -0.4042605, -0.4666135, 38.2687],
    "decoder_blocks.0.cross_attn.kv.weight": [0.0806658, 0.061002, 0.0462739, 8049.8437],
}
SEEDED_LOSS = 1.5249253511428833  # two images of seed 1, noise of seed 2, predict .25


def masks(noise_BN: Tensor, mask: float = 0.75, predict: float = 0.25) -> Masked:
    return Random(RandomMasking(mask_ratio=mask, predict=predict))(noise_BN, None, (4, 4), 0.0)


def test_predictions_are_the_authors() -> None:
    model = sine_filled(CrossMAE(TINY, DECODER))
    prediction = model.predict(sines(2, 3, 32, 32), *masks(golden_noise(2, 16))[:2])
    assert prediction.shape == (2, 4, 192)
    assert prediction[0, 0, :3].tolist() == pytest.approx(PREDICTION, rel=1e-7)
    assert prediction.sum().item() == pytest.approx(PREDICTION_SUM, rel=1e-7)


def test_the_same_seed_draws_the_authors_weights() -> None:
    torch.manual_seed(0)
    model = CrossMAE(SIZES["S"], CrossMAEConfig(width=256, heads=8))
    state = model.state_dict()
    for name, (*first, total) in SEEDED.items():
        assert state[name].flatten()[:3].tolist() == pytest.approx(first, abs=1e-7), name
        assert state[name].abs().sum().item() == pytest.approx(total, rel=1e-5), name
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(2, 196, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert model(images, masks(noise)).item() == pytest.approx(SEEDED_LOSS, rel=1e-6)


def test_names_and_shapes_are_those_of_the_released_models() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in CrossMAE(SIZES["H"], CrossMAEConfig()).state_dict().items()}
    assert shapes["wfm.linear.weight"] == (12, 33)
    assert shapes["pos_embed"] == (1, 257, 1280)
    assert shapes["decoder_pos_embed"] == (1, 257, 512)
    assert shapes["decoder_pred.weight"] == (588, 512)
    assert shapes["decoder_blocks.11.cross_attn.kv.weight"] == (1024, 1280)
    assert shapes["dec_norms.11.bias"] == (1280,)
    assert not any(name.startswith("norm.") for name in shapes)


def test_mixing_as_printed_in_the_paper() -> None:
    torch.manual_seed(0)
    config = CrossMAEConfig(depth=64, width=32, heads=4, mixing_init="normal")
    weight = CrossMAE(replace(TINY, depth=31), config).wfm.linear.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(32), rel=0.05)


def test_softmax_mixing_is_linear_mixing_with_weights_that_sum_to_one() -> None:
    torch.manual_seed(0)
    soft, linear = CrossMAE(TINY, replace(DECODER, mixing="softmax")), CrossMAE(TINY, DECODER)
    state = soft.state_dict()
    weights = state["wfm.linear.weight"].softmax(dim=1)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2))
    linear.load_state_dict({**state, "wfm.linear.weight": weights})
    images, masked = torch.randn(2, 3, 32, 32), masks(torch.rand(2, 16))
    assert torch.equal(soft(images, masked), linear(images, masked))


def test_without_maps_the_encoder_ends_in_a_norm_and_can_be_evaluated_with_it() -> None:
    model = CrossMAE(TINY, replace(DECODER, mixing="none"))
    assert model.final_norm
    encoder = VisionTransformer(TINY, final_norm=True)
    missing, _ = encoder.load_state_dict(model.encoder_state(), strict=False)
    assert missing == []


def test_blocks_that_nothing_reads_are_not_trained() -> None:
    """Nor computed; with all processes of a distributed run waiting for no gradient that never comes."""
    model = CrossMAE(TINY, replace(DECODER, feature_maps=(0,)))
    model(torch.randn(2, 3, 32, 32), masks(torch.rand(2, 16))).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.partition(".")[0] for name in without} == {"pos_embed", "decoder_pos_embed", "blocks"}
    assert not any(name.startswith("blocks.0") for name in without)


def plain() -> dict[str, Any]:
    """The benchmark holds the plain form: it is timed there, and believed here."""
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "crossmae_plain.py"))


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("mask", "predict"), [(0.75, 0.25), (0.75, 0.75), (0.6, 0.35)])
def test_the_model_is_its_plain_form(mask: float, predict: float, norm_pix: bool) -> None:
    torch.manual_seed(0)
    model = CrossMAE(TINY, replace(DECODER, norm_pix=norm_pix, feature_maps=(0, 2))).double()
    images, noise = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.rand(3, 16, dtype=torch.float64)
    found = []
    ours = model(images, masks(noise, mask, predict))
    for loss in (ours, plain()["plain_loss"](model, images, noise, mask, predict)):
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


def test_activations_computed_again_are_the_same() -> None:
    torch.manual_seed(0)
    model = CrossMAE(TINY, DECODER)
    images, masked, found = torch.randn(2, 3, 32, 32), masks(torch.rand(2, 16)), []
    for model.recompute in (False, True):
        model.zero_grad()
        loss = model(images, masked)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_every_patch_can_be_predicted_and_each_alone() -> None:
    torch.manual_seed(0)
    model = CrossMAE(TINY, DECODER).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    shown, hidden, _ = masks(torch.rand(2, 16), 0.75, 0.75)
    every = model.predict(images, shown, hidden)
    assert torch.allclose(every[:, 3:5], model.predict(images, shown, hidden[:, 3:5]), rtol=0, atol=1e-12)


def test_hidden_patches_do_not_reach_the_prediction() -> None:
    model = CrossMAE(TINY, DECODER)
    shown, predicted, _ = masks(torch.rand(1, 16))
    images = torch.randn(1, 3, 32, 32)
    cells = torch.zeros(16).index_fill(0, shown[0], 1.0).view(1, 1, 4, 4)
    seen_only = images * cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(model.predict(images, shown, predicted), model.predict(seen_only, shown, predicted))


def test_targets_are_standardised_with_the_unbiased_variance() -> None:
    patches = torch.randn(2, 3, 48, dtype=torch.float64)
    plain = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(standardised(patches), plain)


def test_pixels_run_row_column_colour() -> None:
    images = torch.arange(3 * 4 * 4).view(1, 3, 4, 4)
    found = pixels(images, torch.tensor([[3]]), 2)[0, 0]
    assert found.tolist() == [int(images[0, c, y, x]) for y in (2, 3) for x in (2, 3) for c in range(3)]


def test_a_step_never_reads_from_the_device() -> None:
    """Shapes and values that depend on data cannot be traced on the meta device, which holds none."""
    with torch.device("meta"):
        model = CrossMAE(TINY, DECODER)
        model(torch.zeros(2, 3, 32, 32), masks(torch.zeros(2, 16))).backward()

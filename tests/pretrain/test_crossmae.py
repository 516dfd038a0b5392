"""CrossMAE against the authors' numbers, and against its plain form.

Golden values were computed by the authors' code (github.com/TonyLianLong/CrossMAE, ed0677a), never by ours: in
float64, weights and images filled with sines, noise from the golden ratio, so that every draw is known.
"""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.config import SIZES, ViT
from pretrain.config import CrossMAE as Config
from pretrain.crossmae import CrossMAE, pixels, standardised
from pretrain.masking import mask_patches

TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)
DECODER = Config(depth=2, width=32, heads=4)
GOLDEN: dict[bool, dict[str, Any]] = {  # by norm_pix
    True: {
        "loss": 1.3744486008213965,
        "gradient": 1.4255716663306948,
        "patch_embed.proj.weight": 0.004894346213954426,
        "cls_token": 0.004680626871351858,
        "mask_token": 0.2045597679669735,
        "wfm.linear.weight": 0.1099443700546752,
    },
    False: {
        "loss": 0.8816570140081866,
        "gradient": 1.4026238001809237,
        "patch_embed.proj.weight": 0.004839524006480376,
        "cls_token": 0.004658102027709083,
        "mask_token": 0.2043465974025365,
        "wfm.linear.weight": 0.10947177220883794,
    },
}
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


def sines(*shape: int) -> Tensor:
    return torch.sin(0.011 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def golden_noise(batch: int, patches: int) -> Tensor:
    image, patch = torch.meshgrid(torch.arange(batch), torch.arange(patches), indexing="ij")
    return (0.6180339887498949 * (patch.double() + 1) + 0.37 * image) % 1


def sine_filled(shape: ViT, config: Config) -> CrossMAE:
    """Positions stay as they are; the authors' have single-precision frequencies, which is 1e-9 in the loss."""
    model = CrossMAE(shape, config).double()
    state = model.state_dict()
    for rank, name in enumerate(sorted(state)):
        if name.endswith("pos_embed"):
            continue
        value = 0.05 * torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 1.3 * rank)
        state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)
    return model


def gradient_norms(model: nn.Module) -> dict[str, float]:
    squares = {name: p.grad.square().sum() for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: square.sqrt().item() for name, square in squares.items()}
    return {**norms, "gradient": torch.stack(list(squares.values())).sum().sqrt().item()}


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_and_gradients_are_the_authors(norm_pix: bool) -> None:
    model = sine_filled(TINY, replace(DECODER, norm_pix=norm_pix))
    loss = model(sines(2, 3, 32, 32), golden_noise(2, 16))
    loss.backward()
    found = {**gradient_norms(model), "loss": loss.item()}
    for name, value in GOLDEN[norm_pix].items():
        assert found[name] == pytest.approx(value, rel=1e-7), name


def test_predictions_are_the_authors() -> None:
    model = sine_filled(TINY, DECODER)
    prediction = model.predict(sines(2, 3, 32, 32), *mask_patches(golden_noise(2, 16), 0.75, 0.25))
    assert prediction.shape == (2, 4, 192)
    assert prediction[0, 0, :3].tolist() == pytest.approx(PREDICTION, rel=1e-7)
    assert prediction.sum().item() == pytest.approx(PREDICTION_SUM, rel=1e-7)


def test_selected_maps_self_attention_and_uneven_counts_are_the_authors() -> None:
    shape = ViT(width=48, depth=4, heads=4, patch=8, image=48)
    config = Config(
        mask=0.65, predict=0.4, depth=3, width=32, heads=4, feature_maps=(0, 2), use_input=False, self_attention=True
    )
    model = sine_filled(shape, config)
    loss = model(sines(2, 3, 48, 48), golden_noise(2, 36))
    loss.backward()
    assert loss.item() == pytest.approx(1.2331823079270912, rel=1e-7)
    assert gradient_norms(model)["gradient"] == pytest.approx(2.1794184836987807, rel=1e-7)


def test_the_same_seed_draws_the_authors_weights() -> None:
    torch.manual_seed(0)
    model = CrossMAE(SIZES["S"], Config(width=256, heads=8))
    state = model.state_dict()
    for name, (*first, total) in SEEDED.items():
        assert state[name].flatten()[:3].tolist() == pytest.approx(first, abs=1e-7), name
        assert state[name].abs().sum().item() == pytest.approx(total, rel=1e-5), name
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(2, 196, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert model(images, noise).item() == pytest.approx(SEEDED_LOSS, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "total", "trainable", "entries"),
    [("S", 32_186_396, 32_060_316, 347), ("B", 127_286_428, 127_034_268, 347), ("L", 347_940_908, 347_638_316, 491)],
)
def test_parameters_are_those_of_the_released_models(size: str, total: int, trainable: int, entries: int) -> None:
    with torch.device("meta"):
        model = CrossMAE(SIZES[size], Config(width=256, heads=8) if size == "S" else Config())
    counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
    assert sum(number for number, _ in counted) == total
    assert sum(number for number, trained in counted if trained) == trainable
    assert len(model.state_dict()) == entries


def test_names_and_shapes_are_those_of_the_released_models() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in CrossMAE(SIZES["H"], Config()).state_dict().items()}
    assert shapes["wfm.linear.weight"] == (12, 33)
    assert shapes["pos_embed"] == (1, 257, 1280)
    assert shapes["decoder_pos_embed"] == (1, 257, 512)
    assert shapes["decoder_pred.weight"] == (588, 512)
    assert shapes["decoder_blocks.11.cross_attn.kv.weight"] == (1024, 1280)
    assert shapes["dec_norms.11.bias"] == (1280,)
    assert not any(name.startswith("norm.") for name in shapes)


def test_mixing_as_printed_in_the_paper() -> None:
    torch.manual_seed(0)
    config = Config(depth=64, width=32, heads=4, mixing_init="normal")
    weight = CrossMAE(replace(TINY, depth=31), config).wfm.linear.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(32), rel=0.05)


def benchmark() -> dict[str, Any]:
    """The benchmark holds the plain form: it is timed there, and believed here."""
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "crossmae_step.py"))


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("mask", "predict"), [(0.75, 0.25), (0.75, 0.75), (0.6, 0.35)])
def test_the_model_is_its_plain_form(mask: float, predict: float, norm_pix: bool) -> None:
    torch.manual_seed(0)
    config = replace(DECODER, mask=mask, predict=predict, norm_pix=norm_pix, feature_maps=(0, 2))
    model = CrossMAE(TINY, config).double()
    images, noise = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.rand(3, 16, dtype=torch.float64)
    found = []
    for loss in (model(images, noise), benchmark()["plain_loss"](model, images, noise)):
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-13)


def test_the_benchmark_runs_and_agrees() -> None:
    results, _ = benchmark()["measure"]("T", 2, 1)
    assert [result.name for result in results] == ["B1", "B2", "B3"]
    assert not any(result.failed for result in results)


def test_every_patch_can_be_predicted_and_each_alone() -> None:
    torch.manual_seed(0)
    model = CrossMAE(TINY, DECODER).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    shown, hidden = mask_patches(torch.rand(2, 16), 0.75, 0.75)
    every = model.predict(images, shown, hidden)
    assert torch.allclose(every[:, 3:5], model.predict(images, shown, hidden[:, 3:5]), rtol=0, atol=1e-12)


def test_hidden_patches_do_not_reach_the_prediction() -> None:
    model = CrossMAE(TINY, DECODER)
    shown, predicted = mask_patches(torch.rand(1, 16), 0.75, 0.25)
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


def test_decoder_flops_are_two_and_a_half_times_less_than_maes() -> None:
    """Multiply-adds of ViT-B's decoder for one image: 4.13 GFLOP (MAE: 10.7)."""
    with torch.device("meta"):
        model = CrossMAE(SIZES["B"], Config())
        images, noise = torch.zeros(1, 3, 224, 224), torch.zeros(1, 196)
    with FlopCounterMode(display=False) as counter:
        model(images, noise)
    blocks = [counter.get_flop_counts()[f"CrossMAE.decoder_blocks.{index}"] for index in range(12)]
    assert sum(sum(block.values()) for block in blocks) / 1e9 == pytest.approx(4.09, abs=0.01)


def test_a_step_never_reads_from_the_device() -> None:
    """Shapes and values that depend on data cannot be traced on the meta device, which holds none."""
    with torch.device("meta"):
        model = CrossMAE(TINY, DECODER)
        model(torch.zeros(2, 3, 32, 32), torch.zeros(2, 16)).backward()


def test_a_mask_that_shows_nothing_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match="leaves none of 16 patches"):
        CrossMAE(TINY, replace(DECODER, mask=0.95, predict=0.25))

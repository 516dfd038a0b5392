"""The reconstruction of FAMT's frequency branch does what its text says; whether FAMT does so is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mimbench.pretrain.config import AttentionMasking
from mimbench.pretrain.masking.frequency import lowpass, lowpass_energy, merged, with_frequencies

SIDE, PATCH = 64, 8


def wave(cycles: float) -> Tensor:
    """A grey image (1, 3, 64, 64) that repeats so many times across."""
    x = torch.arange(SIDE) / SIDE
    return torch.sin(2 * torch.pi * cycles * x).expand(1, 3, SIDE, SIDE).clone()


def attend(images: Tensor) -> Tensor:
    """A made-up attention: the mean brightness of each patch, moved into [0, 1]."""
    return torch.nn.functional.avg_pool2d(images, PATCH).mean(1).flatten(1).sigmoid()


@pytest.mark.parametrize(("cycles", "left"), [(3, 1.0), (16, 1.0), (17, 0.0), (30, 0.0)])
def test_what_repeats_more_often_than_the_radius_is_gone(cycles: float, left: float) -> None:
    assert torch.allclose(lowpass(wave(cycles), 16), left * wave(cycles), atol=1e-5)
    turned = wave(cycles).transpose(2, 3)
    assert torch.allclose(lowpass(turned, 16), left * turned, atol=1e-5)


def test_the_filter_is_a_disc() -> None:
    diagonal = wave(12) * wave(12).transpose(2, 3)  # 12 cycles each way: 17 along the diagonal
    assert lowpass(diagonal, 16).abs().max() < 1e-5
    assert torch.allclose(lowpass(diagonal, 17), diagonal, atol=1e-5)


def test_energy_is_where_low_frequencies_are() -> None:
    images = wave(30)
    images[..., 32:] = wave(4)[..., 32:] + 5  # bright, and slow
    energy = lowpass_energy(images, PATCH, 16).view(8, 8)
    assert energy.min() == 0
    assert energy.max() == 1
    assert lowpass_energy(images + 100, PATCH, 16).sub(energy.flatten()).abs().max() < 1e-3  # brightness is no matter


def test_none_is_attention_alone() -> None:
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(with_frequencies(images, attend, PATCH, AttentionMasking()), attend(images))


def test_product_and_sum() -> None:
    attention, frequency = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.5, 0.2]])
    assert torch.allclose(merged(attention, frequency, None), torch.tensor([[1e-6, 0.25, 0.2]]))
    assert torch.allclose(merged(attention, frequency, 0.25), torch.tensor([[0.25, 0.5, 0.8]]))


def test_each_mode_uses_frequencies_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    base = AttentionMasking(freq_mode="lowpass_energy")
    attention = attend(images)
    energy = with_frequencies(images, attend, PATCH, base)
    assert torch.allclose(energy, (attention * lowpass_energy(images, PATCH, 16)).clamp_min(1e-6))
    shown = with_frequencies(images, attend, PATCH, replace(base, freq_mode="attn_of_lowpass", freq_radius=4))
    assert torch.allclose(shown, attention * attend(lowpass(images, 4)))
    smooth = with_frequencies(images, attend, PATCH, replace(base, freq_mode="attn_map_lowpass"))
    assert smooth.min() == 0
    assert smooth.max() == 1
    rough = attention.view(2, 8, 8)
    assert smooth.view(2, 8, 8).diff(dim=2).abs().mean() * (rough.max() - rough.min()) < rough.diff(dim=2).abs().mean()


def test_a_run_with_frequencies_is_called_unverified() -> None:
    assert AttentionMasking().label == "AMT"
    assert AttentionMasking(freq_mode="lowpass_energy").label == "FAMT-style (lowpass_energy, unverified)"


@pytest.mark.parametrize("options", [{"freq_radius": 8.0}, {"freq_share": 0.5}])
def test_options_of_frequencies_need_a_mode(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="freq_share have no effect with freq_mode=none"):
        AttentionMasking(**options)  # type: ignore[arg-type]


def test_impossible_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"freq_radius=0.0 must be positive"):
        AttentionMasking(freq_mode="lowpass_energy", freq_radius=0.0)
    with pytest.raises(ValueError, match=r"freq_share=1.0 must lie between 0 and 1"):
        AttentionMasking(freq_mode="lowpass_energy", freq_share=1.0)

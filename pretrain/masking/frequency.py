"""Weights of patches from low spatial frequencies: a reconstruction of FAMT's frequency branch, UNVERIFIED.

FAMT (Gui et al., TIP 2025, arXiv 2211.15362v3) merges frequency information with AMT's attention. Its code is not
public. Its text states that the guidance is low-pass, computed by a Fourier transform, and merged with the attention
into the weights of patches. The filter, the score and the merging are not known. This file implements possible
versions, selected by `masking.freq_mode`:

    lowpass_energy     the contrast of each patch at low frequencies
    attn_of_lowpass    the encoder's attention for the image without high frequencies
    attn_map_lowpass   the attention map without its high frequencies

Numbers from any of them are ours, not FAMT's, and such runs are labelled so everywhere.

Shapes: B image, C colour, H x W its size, h x w the grid of patches, N = h w patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.pretrain.masking.attention import LEAST, stretched
from mimbench.pretrain.masking.configs import AttentionMasking

IMAGE_RADIUS = 16.0  # cycles per image: keeps structures of one patch (of 14) and larger; our choice
MAP_RADIUS = 3.0  # of the 7 cycles that a 14 x 14 map can represent; our choice

Attend = Callable[[Tensor], Tensor]  # normalised images -> maps of attention (B, N) in [0, 1]


def lowpass(images: Tensor, radius: float) -> Tensor:
    """Return `images` (..., H, W) without frequencies above `radius` cycles per image: an ideal low-pass, a disc."""
    down = torch.fft.fftfreq(images.shape[-2], 1 / images.shape[-2], device=images.device)
    across = torch.fft.rfftfreq(images.shape[-1], 1 / images.shape[-1], device=images.device)
    kept = down[:, None].square() + across.square() <= radius**2
    spectrum = torch.fft.rfft2(images.to(torch.promote_types(images.dtype, torch.float32))) * kept
    return torch.fft.irfft2(spectrum, s=images.shape[-2:]).to(images.dtype)


def lowpass_energy(images: Tensor, patch: int, radius: float) -> Tensor:
    """Return each patch's mean square over pixels and colours at low frequencies: (B, N), scaled to [0, 1].

    Each colour's mean over the image is subtracted, so that brightness has no effect.
    """
    low = lowpass(images, radius)
    contrast = low - low.mean(dim=(-2, -1), keepdim=True)
    energy_BN = F.avg_pool2d(contrast.square(), patch).mean(dim=1).flatten(1)
    return stretched(energy_BN)


def with_frequencies(images: Tensor, attend: Attend, patch: int, config: AttentionMasking) -> Tensor:
    """Return weights (B, N) in [0, 1] of the patches of normalised images (B, 3, H, W), by `config.freq_mode`.

    They are the product, or with `freq_share` the sum, of the attention map and the frequency map; `attn_map_lowpass`
    uses only the frequency map, `none` only the attention map.
    """
    attention_BN = attend(images)
    match config.freq_mode:
        case "none":
            return attention_BN
        case "attn_map_lowpass":
            maps_Bhw = attention_BN.unflatten(1, (images.shape[-2] // patch, -1))
            return stretched(lowpass(maps_Bhw, config.freq_radius or MAP_RADIUS).flatten(1))
        case "lowpass_energy":
            frequency_BN = lowpass_energy(images, patch, config.freq_radius or IMAGE_RADIUS)
        case "attn_of_lowpass":
            frequency_BN = attend(lowpass(images, config.freq_radius or IMAGE_RADIUS))
    return merged(attention_BN, frequency_BN, config.freq_share)


def merged(attention_BN: Tensor, frequency_BN: Tensor, share: float | None) -> Tensor:
    """Return the sum with weight `share` for the frequencies, or the product; at least `LEAST`."""
    if share is None:
        return (attention_BN * frequency_BN).clamp_min(LEAST)
    return ((1 - share) * attention_BN + share * frequency_BN).clamp_min(LEAST)

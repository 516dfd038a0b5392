"""Weights of patches from low spatial frequencies: a reconstruction of FAMT's frequency branch, UNVERIFIED.

FAMT (Gui et al., TIP 2025, arXiv 2211.15362v3) merges frequency information with AMT's attention. Its code is not
public, and of the text this much is known: the guidance is low-pass, made by a Fourier transform, and merged with the
attention into the weights that patches are drawn by. Which filter, which score and which merging are not known. What
stands here is one way to do it, to be chosen by `masking.freq_mode`:

    lowpass_energy     how much of an image's contrast is at low frequencies, patch by patch
    attn_of_lowpass    the encoder's attention when it is shown the image without its high frequencies
    attn_map_lowpass   the map of attention itself, without its high frequencies

Numbers made with any of them are ours, not FAMT's, and every place that names such a run says so.

Shapes: B image, C colour, H x W its size, h x w the grid of patches, N = h w patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.pretrain.masking.attention import LEAST, stretched
from mimbench.pretrain.masking.configs import AttentionMasking

IMAGE_RADIUS = 16.0  # cycles per image: structures of a patch (of 14) and larger; our choice
MAP_RADIUS = 3.0  # of the 7 cycles that a map of 14 by 14 can hold; our choice

Attend = Callable[[Tensor], Tensor]  # normalised images -> maps of attention (B, N) in [0, 1]


def lowpass(images: Tensor, radius: float) -> Tensor:
    """`images` (..., H, W) without what repeats more than `radius` times across them: an ideal filter, a disc."""
    down = torch.fft.fftfreq(images.shape[-2], 1 / images.shape[-2], device=images.device)
    across = torch.fft.rfftfreq(images.shape[-1], 1 / images.shape[-1], device=images.device)
    kept = down[:, None].square() + across.square() <= radius**2
    spectrum = torch.fft.rfft2(images.to(torch.promote_types(images.dtype, torch.float32))) * kept
    return torch.fft.irfft2(spectrum, s=images.shape[-2:]).to(images.dtype)


def lowpass_energy(images: Tensor, patch: int, radius: float) -> Tensor:
    """The mean square, over pixels and colours, of each patch at low frequencies: (B, N), stretched to [0, 1].

    Each colour's mean over the image is left out, so that brightness does not count.
    """
    low = lowpass(images, radius)
    contrast = low - low.mean(dim=(-2, -1), keepdim=True)
    energy_BN = F.avg_pool2d(contrast.square(), patch).mean(dim=1).flatten(1)
    return stretched(energy_BN)


def with_frequencies(images: Tensor, attend: Attend, patch: int, config: AttentionMasking) -> Tensor:
    """Weights (B, N) in [0, 1] of the patches of normalised images (B, 3, H, W), as `config.freq_mode` has them.

    A product, or with `freq_share` a sum, of the attention's map and the frequencies'; `attn_map_lowpass` replaces the
    former by the latter. With `none` it is attention alone.
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
    """The sum with `share` for the frequencies, or the product; no weight below `LEAST`."""
    if share is None:
        return (attention_BN * frequency_BN).clamp_min(LEAST)
    return ((1 - share) * attention_BN + share * frequency_BN).clamp_min(LEAST)

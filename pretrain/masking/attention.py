"""AMT's masking: patches with high encoder attention are masked, the next are thrown away, the rest are shown.

(Liu et al., AAAI 2023. With a frequency branch, frequency.py, it is FAMT: Gui et al., TIP 2025; arXiv 2211.15362.)

Each training image has a map of weights, one for each patch of the whole image, computed by the encoder in training
(`weight_map`) and stored in a file (weight_maps.py). A batch's maps are cropped like its images (`follow_crops`), and
patches are drawn without replacement in proportion to the weights: the first are predicted, the next dropped.

    masking = MaskAndThrow(config, epochs)
    masked = masking(noise, weights, (14, 14), epoch)

The authors' code crops the map incorrectly: for every crop it uses the first two or three rows and columns. This is
`as_published`, which is not the default. The maps' scale has no effect.

Shapes: B image, H head, N patch (row-major), T token (class token first), D width, h x w the grid of patches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from mimbench.backbones.vit import Trunk
from mimbench.engine.data.images import Crop
from mimbench.pretrain.masking.configs import PUBLISHED_SIDE, AttentionMasking, RandomMasking
from mimbench.pretrain.masking.strategies import Counts, Masked, Random, split_order, weighted_order

LEAST = 1e-6  # smallest weight of a patch: a patch without attention can be drawn too
SAMPLES = 4  # sampling points per side of a patch, to average a map over the patch
TINY = 1e-12  # less than any difference of attention: a head with uniform attention gets weight 0


class MaskAndThrow:
    """Patches drawn by weight: the first are predicted, the next dropped; uniform before the first maps exist.

    Args:
        config: shares and schedule.
        epochs: of the whole training, which the schedule may depend on.
    """

    needs_weights = True

    def __init__(self, config: AttentionMasking, epochs: int) -> None:
        self.config = config
        self.schedule = config.schedule(epochs)
        alike = RandomMasking(mask_ratio=config.random_mask, predict=config.random_predict, unit=config.unit)
        self.before = Random(alike)

    def counts(self, patches: int, epoch: float) -> Counts:
        """See `Masking`. Of 196, mask .45 and throw .40 give 30 shown, 78 dropped and 88 predicted."""
        if epoch < self.schedule.start:
            return self.before.counts(patches, epoch)
        mask, throw = self.config.mask_ratio, self.config.throw
        if self.config.unit == 1:
            predicted = int(patches * mask)  # rounded as in AMT's MAE
            dropped = int(patches * (mask + throw)) - predicted
        else:
            predicted, dropped = math.ceil(patches * mask), math.ceil(patches * throw)  # as in AMT's SimMIM
        if predicted + dropped >= patches:
            raise ValueError(f"mask_ratio={mask} and throw={throw} leave none of {patches} patches visible; lower one")
        return Counts(patches - predicted - dropped, dropped, predicted)

    def __call__(self, noise_BN: Tensor, weights_BN: Tensor | None, grid: tuple[int, int], epoch: float) -> Masked:
        """See `Masking`; weights are ignored before `start_epoch`. Validation images have none."""
        if epoch < self.schedule.start:
            return self.before(noise_BN, None, grid, epoch)
        order_BN = weighted_order(noise_BN, weights_BN).flip(1)
        return split_order(order_BN, self.counts(noise_BN.shape[1], epoch))


# ------------------------------------------------------------------------------------------------------------ attention


def class_attention(method: nn.Module, images: Tensor) -> Tensor:
    """Return the class token's attention to patches in the encoder's last block: (B, H, N), softmax over all tokens.

    Only that row of the last block is computed, and no other block's attention is stored. Blocks that a method does not
    train (CrossMAE's after the last map it reads) do not count as part of the encoder.

    Args:
        method: a method whose encoder is a `Trunk`, or that has its own `class_attention`.
        images: (B, 3, H, W), normalised, of the pretraining size.
    """
    if not isinstance(method, Trunk):
        own: Tensor = method.class_attention(images)  # type: ignore[operator]
        return own
    tokens_BTD = method.embed(images)
    blocks: list[Any] = [block for block in method.blocks if next(block.parameters()).requires_grad]
    for block in blocks[:-1]:
        tokens_BTD = block(tokens_BTD)
    last = blocks[-1]
    q_bias, k_bias, _ = last.attn.qkv.bias.chunk(3)
    return first_row(last.norm1(tokens_BTD), last.attn.qkv.weight, q_bias, k_bias, last.attn.num_heads)[..., 1:]


def first_row(
    tokens_BTD: Tensor, qkv: Tensor, q_bias: Tensor, k_bias: Tensor, heads: int, bias_HT: Tensor | None = None
) -> Tensor:
    """Return the first token's attention to all tokens, (B, H, T), at least in single precision.

    Args:
        tokens_BTD: the source of queries and keys.
        qkv: the weight (3 D, D) of queries, keys and values.
        bias_HT: added to the scores.
    """
    q_weight, k_weight, _ = qkv.chunk(3)
    q_BHd = F.linear(tokens_BTD[:, 0], q_weight, q_bias).unflatten(1, (heads, -1))
    k_BTHd = F.linear(tokens_BTD, k_weight, k_bias).unflatten(2, (heads, -1))
    scores_BHT = torch.einsum("bhd,bthd->bht", q_BHd, k_BTHd) * q_BHd.shape[-1] ** -0.5
    if bias_HT is not None:
        scores_BHT = scores_BHT + bias_HT
    return scores_BHT.to(torch.promote_types(scores_BHT.dtype, torch.float32)).softmax(dim=-1)


def weight_map(attention_BHN: Tensor) -> Tensor:
    """Return weights (B, N) in [0, 1]: the mean over heads of attention, each head scaled to [0, 1] per image."""
    return stretched(attention_BHN).mean(dim=1)


def stretched(values: Tensor) -> Tensor:
    """Return `values` scaled along the last axis, minimum to 0 and maximum to 1; all 0 if all are equal."""
    above = values - values.amin(dim=-1, keepdim=True)
    return above / above.amax(dim=-1, keepdim=True).clamp_min(TINY)


# ------------------------------------------------------------------------------------------------------ crop and mirror


def follow_crops(maps_Bhw: Tensor, crop: Crop) -> Tensor:
    """Return weights (B, N) of the patches of crops, cropped from the maps of whole images; at least `LEAST`.

    A patch's weight is the mean of the linearly interpolated map over the patch.

    Args:
        maps_Bhw: maps, of any scale; row 0 is the top of the whole image.
        crop: of tensors (B,), each image's crop box, and whether it was mirrored afterwards.
    """
    rows, columns = maps_Bhw.shape[1:]
    top, left, height, width, flip, image_height, image_width = (torch.as_tensor(value) for value in crop)
    down, across = rows / image_height, columns / image_width
    image = torch.arange(len(maps_Bhw), device=maps_Bhw.device)
    corners = [image, left * across, top * down, (left + width) * across, (top + height) * down]
    boxes = torch.stack([corner.to(maps_Bhw.dtype) for corner in corners], dim=1)
    cut = roi_align(maps_Bhw[:, None], boxes, (rows, columns), sampling_ratio=SAMPLES, aligned=True)[:, 0]
    mirrored = torch.where(flip.bool()[:, None, None], cut.flip(-1), cut)
    return mirrored.flatten(1).clamp_min(LEAST)


def as_published(maps_Bhw: Tensor, crop: Crop) -> Tensor:
    """Return weights (B, N) as in the authors' code (`crop_mode=original`), bit for bit on a CPU.

    It uses a map's rows from top // H to (top + height) // H + 2: the first two, or three if the crop reaches the lower
    edge; likewise for columns. They are enlarged to 224 pixels and summed within each patch.
    """
    rows, columns = maps_Bhw.shape[1:]
    if PUBLISHED_SIDE % rows or rows != columns:
        raise ValueError(
            f"masking.crop_mode=original needs a square grid that divides {PUBLISHED_SIDE}, not {rows} x {columns}: "
            "use crop_mode=correct"
        )
    where_B7 = torch.stack([torch.as_tensor(value) for value in crop], dim=1).tolist()
    pixels_BHW = torch.stack(
        [_enlarged(map_hw, Crop(*where)) for map_hw, where in zip(maps_Bhw, where_B7, strict=True)]
    )
    patch = PUBLISHED_SIDE // rows
    pixels_Bhwpp = pixels_BHW.unflatten(2, (columns, patch)).unflatten(1, (rows, patch)).transpose(2, 3)
    return pixels_Bhwpp.flatten(3).sum(dim=-1).flatten(1)


def _enlarged(map_hw: Tensor, crop: Crop) -> Tensor:
    rows = slice(crop.top // crop.image_height, (crop.top + crop.height) // crop.image_height + 2)
    columns = slice(crop.left // crop.image_width, (crop.left + crop.width) // crop.image_width + 2)
    size = (PUBLISHED_SIDE, PUBLISHED_SIDE)
    pixels = F.interpolate(map_hw[None, None, rows, columns], size, mode="bilinear", antialias=True)[0, 0]
    clamped = pixels.clamp(0, 1)
    return clamped.flip(-1) if crop.flip else clamped

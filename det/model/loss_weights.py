"""The weight of each region in losses that are means over regions.

image    the regions of an image have a total weight of 1 / images: as on 64 GPUs with one image each, as published.
         The loss does not depend on the division of the batch into processes and micro-batches.
batch    every region of the batch has equal weight: detectron2 on one GPU. Dividing the batch changes the loss.
"""

# R region of interest

from __future__ import annotations

import torch
from torch import Tensor

from mimbench.det.config import LossWeights


def loss_weights(image_R: Tensor, images: int, mode: LossWeights) -> Tensor:
    """Return each region's weight (R,); `image_R` is its image, 0 to `images` - 1; images may have none."""
    if mode == "batch":
        return torch.full_like(image_R, 1 / max(len(image_R), 1), dtype=torch.float32)
    image_R = image_R.long()
    counts = torch.zeros(images, device=image_R.device).index_add_(0, image_R, torch.ones_like(image_R).float())
    return 1 / (counts[image_R] * images)

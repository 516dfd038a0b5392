"""The weight of each region in a loss that is a mean over regions.

image    the regions of an image weigh 1 / images together: what 64 GPUs with one image each compute, as published.
         However a batch is divided among processes and micro-batches, the loss is that of the whole batch.
batch    every region of the batch counts the same: detectron2 on one GPU. A batch that is divided gives another loss.
"""

# R region of interest

from __future__ import annotations

import torch
from torch import Tensor

from mimbench.det.config import LossWeights


def loss_weights(image_R: Tensor, images: int, mode: LossWeights) -> Tensor:
    """The weight (R,) of each region, of which `image_R` is the image, 0 to `images` - 1; an image may have none."""
    if mode == "batch":
        return torch.full_like(image_R, 1 / max(len(image_R), 1), dtype=torch.float32)
    image_R = image_R.long()
    counts = torch.zeros(images, device=image_R.device).index_add_(0, image_R, torch.ones_like(image_R).float())
    return 1 / (counts[image_R] * images)

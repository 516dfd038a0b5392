"""The training step: from a batch of uint8 crops to the loss.

    normalise on the device -> method.compute_context -> masking -> method

The masking's noise comes with each sample (engine/data/images.py draws it with the crop), so the process and the
micro-batch that use a sample make no difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD, Sample
from mimbench.pretrain.masking.strategies import Masked, Masking
from mimbench.pretrain.methods.method import Context, Method

# B image, N patch


class Weighed(NamedTuple):
    """A batch, and the weights of its patches from the maps of the training images."""

    sample: Sample
    weights: Tensor  # (B, N), not negative, of any scale


class Step(nn.Module):
    """A method and its masking.

    Args:
        method: holds the weights and computes the loss.
        masking: chooses the patches; if it needs weights, it uses those of the batch (`Weighed`), or else the method's
            attention.

    Attributes:
        epoch: epochs done; the training updates it.
    """

    def __init__(self, method: Method, masking: Masking) -> None:
        super().__init__()
        self.method, self.masking = method, masking
        self.epoch = 0.0
        self.grid = (method.shape.grid, method.shape.grid)
        self.mean: Tensor
        self.std: Tensor
        # buffers on the device: a tensor created from numbers would synchronise with it at every step
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, batch: Sample | Weighed) -> dict[str, Tensor]:
        """Return the loss of a batch of uint8 crops (B, 3, H, W); labels are ignored."""
        sample, weights_BN = batch if isinstance(batch, Weighed) else (batch, None)
        images = self.normalised(sample.image)
        masked, context = self.choose(images, sample.noise, weights_BN, self.epoch)
        return {"loss": self.method(images, masked, context)}

    def get_extra_state(self) -> dict[str, float]:
        """Return the epoch, for checkpoints: an evaluation at the start of a resumed run needs the same epoch."""
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Restore what `get_extra_state` returned."""
        self.epoch = state["epoch"]

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) as floats, normalised by ImageNet's statistics."""
        return images.float().sub_(self.mean).div_(self.std)

    def choose(
        self, images: Tensor, noise_BN: Tensor, weights_BN: Tensor | None, epoch: float
    ) -> tuple[Masked, Context | None]:
        """Return the patches of normalised images and the method's context; `weights_BN` override its attention."""
        with torch.no_grad():
            context = self.method.compute_context(images)
            if weights_BN is None and self.masking.needs_weights and context is not None:
                weights_BN = context.importance
            return self.masking(noise_BN, weights_BN, self.grid, epoch), context

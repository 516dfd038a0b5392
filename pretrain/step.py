"""What the training loop calls: a batch of uint8 crops to the loss.

    normalise on the device -> method.compute_context -> masking -> method

The noise of the masking comes with each sample (engine/data/images.py draws it with the crop), so that which process
trains on a sample, and in which micro-batch, makes no difference.
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
    """A batch, and weights of its patches from a map kept for each training image."""

    sample: Sample
    weights: Tensor  # (B, N), not negative, of any scale


class Step(nn.Module):
    """A method and the masking that it is trained with.

    Args:
        method: what has the weights and the loss.
        masking: what chooses the patches; if by weights, by those that came with the batch (`Weighed`), or else by what
            the method looks at.

    Attributes:
        epoch: epochs done, which the training keeps up to date.
    """

    def __init__(self, method: Method, masking: Masking) -> None:
        super().__init__()
        self.method, self.masking = method, masking
        self.epoch = 0.0
        self.grid = (method.shape.grid, method.shape.grid)
        self.mean: Tensor
        self.std: Tensor
        # kept on the device: a tensor made from numbers would have to wait for it at every step
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, batch: Sample | Weighed) -> dict[str, Tensor]:
        """The loss of a batch of uint8 crops (B, 3, H, W); their labels are not looked at."""
        sample, weights_BN = batch if isinstance(batch, Weighed) else (batch, None)
        images = self.normalised(sample.image)
        masked, context = self.choose(images, sample.noise, weights_BN, self.epoch)
        return {"loss": self.method(images, masked, context)}

    def get_extra_state(self) -> dict[str, float]:
        """For checkpoints: an evaluation that a restart begins with is of the epoch that it would have been of."""
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """The inverse of `get_extra_state`."""
        self.epoch = state["epoch"]

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) as floats, by ImageNet's statistics."""
        return images.float().sub_(self.mean).div_(self.std)

    def choose(
        self, images: Tensor, noise_BN: Tensor, weights_BN: Tensor | None, epoch: float
    ) -> tuple[Masked, Context | None]:
        """Patches of normalised images, and what the method saw of them; `weights_BN` go before what it looked at."""
        with torch.no_grad():
            context = self.method.compute_context(images)
            if weights_BN is None and self.masking.needs_weights and context is not None:
                weights_BN = context.importance
            return self.masking(noise_BN, weights_BN, self.grid, epoch), context

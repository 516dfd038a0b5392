"""The interface of pretraining methods. A method is an `nn.Module` that is a `Method` and usually a `Trunk`:

    class CrossMAE(Method, Trunk): ...

    context = method.compute_context(images)         # inputs for masking and loss from whole images; often None
    masked = masking(noise, weights, grid, epoch)    # pretrain/masking; the method does not know the masking
    loss = method(images, masked, context)           # pure: equal arguments give an equal loss; can be compiled

Its trainable parameters are those of `parameters()`. A network that it never trains (a teacher) is kept in a `Frozen`,
which is not part of the module: it is not in checkpoints or the optimiser, and `train()` does not affect it.

Shapes: B image, N patch (row-major), V patch shown, Q patch predicted, P value of a patch (rows, columns, colours).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mimbench.backbones.config import Traits, ViT
from mimbench.pretrain.masking.strategies import Masked

M = TypeVar("M", bound=nn.Module)


class Context(NamedTuple):
    """The method's view of whole images before patches are hidden, computed without gradients."""

    importance: Tensor | None = None  # weights of patches (B, N), for a masking that uses the method's attention
    targets: tuple[Tensor, ...] = ()  # inputs of the loss, with B as the first dimension


class Method(nn.Module, ABC):
    """A pretraining method.

    Attributes:
        shape: sizes of the encoder.
        final_norm: whether the encoder has a final norm with learned scale, `norm.*`.
        traits: the encoder's features beyond MAE's ViT.
        positions: the kind of its positions, as in the metadata of its file.
    """

    shape: ViT
    final_norm: bool = False
    traits: Traits = Traits()
    positions: str = "sincos"

    def compute_context(self, images: Tensor) -> Context | None:
        """Return inputs of loss and masking from whole images (B, 3, H, W), normalised by ImageNet's statistics.

        Called once per batch, under `torch.no_grad`.
        """
        return None

    @abstractmethod
    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """Return the loss, a scalar, of normalised images (B, 3, H, W)."""

    def no_decay(self, name: str, parameter: Parameter) -> bool:
        """Return whether a parameter gets no weight decay: biases and norms; tokens decay, as in MAE and CrossMAE."""
        return parameter.ndim <= 1 or name.endswith(".bias")

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the weights for `encoder.safetensors` under a plain ViT's names; other names are ignored."""
        return self.state_dict()

    def rebuild(self, images: Tensor, masked: Masked) -> Tensor | None:
        """Return the method's reconstruction of the patches `masked.predicted` of normalised images, for a picture.

        Returns:
            (B, Q, P) in the units of `images`; None if the method predicts no pixels.
        """
        return None


class Frozen(Generic[M]):
    """A network in eval mode that is never trained and is not part of the module that holds it."""

    def __init__(self, network: M) -> None:
        self.network = network.eval().requires_grad_(False)

    def on(self, device: torch.device) -> M:
        """Move the network to `device` and return it."""
        return self.network.to(device)

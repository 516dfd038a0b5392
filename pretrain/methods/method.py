"""What pretraining asks of a method. A method is an `nn.Module` that is this and (as a rule) a `Trunk`:

    class CrossMAE(Method, Trunk): ...

    context = method.compute_context(images)         # what masking and loss need from elsewhere; None for most
    masked = masking(noise, weights, grid, epoch)    # pretrain/masking; the method does not know which one it is
    loss = method(images, masked, context)           # pure: the same arguments, the same loss; can be compiled

Its trainable parameters are those of `parameters()`. What it uses and never trains (a teacher) it keeps in a `Frozen`,
which is no part of the module: neither in checkpoints nor in the optimiser, and `train()` does not reach it.

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
    """What a method saw of whole images before any patch was hidden, computed without gradients."""

    importance: Tensor | None = None  # weights of patches (B, N), for a masking that draws by what the method looks at
    targets: tuple[Tensor, ...] = ()  # whatever the loss needs, with B in front


class Method(nn.Module, ABC):
    """A pretraining method.

    Attributes:
        shape: sizes of the encoder.
        final_norm: the encoder has a final norm with learned scale, `norm.*`.
        traits: what the encoder has beyond MAE's ViT.
        positions: what kind of positions it has, as the metadata of its file say it.
    """

    shape: ViT
    final_norm: bool = False
    traits: Traits = Traits()
    positions: str = "sincos"

    def compute_context(self, images: Tensor) -> Context | None:
        """Return what loss and masking need of whole images (B, 3, H, W), normalised by ImageNet's statistics.

        Called once for each batch, under `torch.no_grad`.
        """
        return None

    @abstractmethod
    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """The loss, a scalar, of normalised images (B, 3, H, W)."""

    def no_decay(self, name: str, parameter: Parameter) -> bool:
        """Whether a parameter is spared weight decay: biases and norms are; tokens do decay, as in MAE and CrossMAE."""
        return parameter.ndim <= 1 or name.endswith(".bias")

    def encoder_state(self) -> dict[str, Tensor]:
        """Weights for `encoder.safetensors`, under a plain ViT's names; others may be among them, and are left out."""
        return self.state_dict()

    def rebuild(self, images: Tensor, masked: Masked) -> Tensor | None:
        """The patches `masked.predicted` of normalised images as the method would paint them, for a picture.

        Returns:
            (B, Q, P) in the units of `images`; None if the method predicts no pixels.
        """
        return None


class Frozen(Generic[M]):
    """A network in eval mode that is used and never trained, and is no part of the module that holds this."""

    def __init__(self, network: M) -> None:
        self.network = network.eval().requires_grad_(False)

    def on(self, device: torch.device) -> M:
        """The network, on `device`, where it stays."""
        return self.network.to(device)

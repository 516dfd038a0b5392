"""Random numbers of fine-tuning, drawn per image and optimiser step rather than per micro-batch.

    draws = StepDraws(seed, batch, parts=world * accumulate, part=rank, stride=world, paired=True)
    draw_by_image(classifier, draws)       # its drop path
    draws.begin(step)                      # before each optimiser step
    draws.advance()                        # before each micro-batch

The mixing ratio is drawn once per step; erasing and drop path are drawn for each image from its index in the step.
A step is therefore the same, except for rounding, for any number of micro-batches and processes. Mixing pairs image i
of a step with image B - 1 - i, and `engine.data.batches` puts both into the same micro-batch.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mimbench.engine.data.batches import step_places
from mimbench.engine.run.process import derived_seed

# B image of a micro-batch, S image of an optimiser step, M module with drop path

MIXING, PATHS = -1, -2  # used in seeds instead of an image's index


class StepDraws:
    """The random draws of one optimiser step, for the images of the current micro-batch."""

    def __init__(self, seed: int, batch: int, *, parts: int, part: int, stride: int, paired: bool) -> None:
        """Describe a step: `batch` images in `parts` micro-batches; this process has `part`, `part + stride`, ...

        `paired`: whether images that are mixed with each other are in the same micro-batch.
        """
        self.seed, self.batch, self.parts, self.paired = seed, batch, parts, paired
        self.first, self.stride = part, stride
        self.modules = 0  # with drop path
        self.step, self._part = 0, part - stride
        self._places = torch.arange(0)
        self._uniform_SM = torch.zeros(0, 0)

    def begin(self, step: int) -> None:
        """Draw for optimiser step `step` (0-based)."""
        self.step, self._part = step, self.first - self.stride
        generator = torch.Generator().manual_seed(derived_seed(self.seed, step, PATHS))
        self._uniform_SM = torch.rand(self.batch, self.modules, generator=generator)

    def advance(self) -> None:
        """Move to this process's next micro-batch of the step."""
        self._part += self.stride
        self._places = step_places(self._part, self.parts, self.batch // self.parts, self.paired)

    def mixing_seed(self) -> int:
        """Return the seed of the mixing ratio and box of the whole step."""
        return derived_seed(self.seed, self.step, MIXING)

    def image_seeds(self) -> list[int]:
        """Return a seed for each image of the micro-batch."""
        return [derived_seed(self.seed, self.step, place) for place in self._places.tolist()]

    def uniform(self, module: int, device: torch.device) -> Tensor:
        """Return (B,) uniform numbers in [0, 1) for drop path number `module`, one per image of the micro-batch."""
        return self._uniform_SM[self._places, module].to(device, non_blocking=True)


class DropPathByImage(nn.Module):
    """Stochastic depth like timm's DropPath, with random numbers from `StepDraws`."""

    def __init__(self, rate: float, draws: StepDraws) -> None:
        super().__init__()
        self.drop_prob, self.draws, self.number = rate, draws, draws.modules
        draws.modules += 1

    def forward(self, tokens_B: Tensor) -> Tensor:
        """Return tokens (B, ...) with dropped images set to 0 and the others scaled up."""
        if not self.training or not self.drop_prob:
            return tokens_B
        keep = 1 - self.drop_prob
        kept_B = (self.draws.uniform(self.number, tokens_B.device) < keep).to(tokens_B.dtype).div_(keep)
        return tokens_B * kept_B.view(-1, *[1] * (tokens_B.ndim - 1))


def draw_by_image(model: nn.Module, draws: StepDraws) -> None:
    """Replace every DropPath in `model` by a DropPathByImage that draws from `draws`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                setattr(parent, name, DropPathByImage(float(child.drop_prob or 0.0), draws))

"""What is random in an optimiser step of fine-tuning, drawn by image and step rather than by micro-batch.

    draws = StepDraws(seed, batch, parts=world * accumulate, part=rank, stride=world, paired=True)
    draw_by_image(classifier, draws)       # its drop path
    draws.begin(step)                      # before each optimiser step
    draws.advance()                        # before each micro-batch

One share of mixing holds for the whole step, erasing and drop path are drawn for each image by its place in the step:
so a step is the same, beyond rounding, however it is cut into micro-batches and processes. Mixing pairs image i of a
step with image B - 1 - i, and `engine.data.batches` hands both to the same micro-batch.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mimbench.engine.data.batches import step_places
from mimbench.engine.run.process import derived_seed

# B image of a micro-batch, S image of an optimiser step, M module with drop path

MIXING, PATHS = -1, -2  # in place of an image, in seeds


class StepDraws:
    """The draws of one optimiser step, and which of its images the micro-batch at hand holds."""

    def __init__(self, seed: int, batch: int, *, parts: int, part: int, stride: int, paired: bool) -> None:
        """`batch` images in a step of `parts` micro-batches, of which this process has `part`, `part + stride`, ...

        `paired`: whether they are cut so that images which are mixed stay together.
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
        """Go on to this process's next micro-batch of the step."""
        self._part += self.stride
        self._places = step_places(self._part, self.parts, self.batch // self.parts, self.paired)

    def mixing_seed(self) -> int:
        """Of the share and the box of the whole step."""
        return derived_seed(self.seed, self.step, MIXING)

    def image_seeds(self) -> list[int]:
        """Of each image of the micro-batch."""
        return [derived_seed(self.seed, self.step, place) for place in self._places.tolist()]

    def uniform(self, module: int, device: torch.device) -> Tensor:
        """(B,) uniform numbers in [0, 1) for drop path number `module`, one for each image of the micro-batch."""
        return self._uniform_SM[self._places, module].to(device, non_blocking=True)


class DropPathByImage(nn.Module):
    """Stochastic depth as timm's DropPath, with the numbers of `StepDraws`."""

    def __init__(self, rate: float, draws: StepDraws) -> None:
        super().__init__()
        self.drop_prob, self.draws, self.number = rate, draws, draws.modules
        draws.modules += 1

    def forward(self, tokens_B: Tensor) -> Tensor:
        """Tokens (B, ...), those of some images set to 0 and the others scaled up."""
        if not self.training or not self.drop_prob:
            return tokens_B
        keep = 1 - self.drop_prob
        kept_B = (self.draws.uniform(self.number, tokens_B.device) < keep).to(tokens_B.dtype).div_(keep)
        return tokens_B * kept_B.view(-1, *[1] * (tokens_B.ndim - 1))


def draw_by_image(model: nn.Module, draws: StepDraws) -> None:
    """Replace every DropPath in `model` by one that draws from `draws`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                setattr(parent, name, DropPathByImage(float(child.drop_prob or 0.0), draws))

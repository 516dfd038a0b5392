"""Golden values of MAE's linear probe: its LARS and its head, run from the authors' files.

    python tests/cls/golden/linprobe.py /path/to/mae > tests/cls/golden/linprobe.json

`mae` is a checkout of github.com/facebookresearch/mae; of it `util/lars.py` is imported, and the head is put together
as `main_linprobe.py` does it. Features and the first weights are sines, so that nothing depends on a random generator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH, CLASSES, BATCH, STEPS = 6, 4, 10, 5
RATES, DECAYS = (1.6, 6.4), (0.0, 0.05)


def features(step: int) -> Tensor:
    """The features (BATCH, WIDTH) of a step."""
    wave = torch.arange(BATCH * WIDTH, dtype=torch.float64)
    return (2 + 3 * torch.sin(0.37 * wave + step)).view(BATCH, WIDTH).float()


def labels(step: int) -> Tensor:
    """Their labels."""
    return (torch.arange(BATCH) * 3 + step) % CLASSES


def first_weight() -> Tensor:
    """The linear layer's weight (CLASSES, WIDTH) before the first step."""
    return (0.01 * torch.sin(1.3 * torch.arange(CLASSES * WIDTH, dtype=torch.float64))).view(CLASSES, WIDTH).float()


def main(mae: Path) -> None:
    """Print weights after every step of each setting, and the logits in training and in evaluation."""
    sys.path.insert(0, str(mae))
    from util.lars import LARS  # the authors'

    found = []
    for rate, decay in zip(RATES, DECAYS, strict=True):
        linear = nn.Linear(WIDTH, CLASSES)
        head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6), linear)
        with torch.no_grad():
            linear.weight.copy_(first_weight())
            linear.bias.zero_()
        optimizer = LARS(head.parameters(), lr=rate, weight_decay=decay)
        steps = []
        for step in range(STEPS):
            head.train()
            logits = head(features(step))
            loss = nn.functional.cross_entropy(logits, labels(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            head.eval()
            after = {"weight": linear.weight.tolist(), "bias": linear.bias.tolist()}
            outputs = {"training": logits.tolist(), "evaluation": head(features(step)).tolist()}
            steps.append({"loss": loss.item(), **after, **outputs})
        found.append({"rate": rate, "decay": decay, "steps": steps})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

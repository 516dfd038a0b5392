"""Writes golden_training.json: detectron2's losses over 20 training steps from the weights of tiny.py.

    PYTHONPATH=detectron2's checkout:tests/det python tests/det/golden_training.py

detectron2 (02b5c4e2) runs as it is, in float64: its model, parameter groups for ViTDet and schedule, torch's AdamW.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import tiny
import torch
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import MultiStepParamScheduler
from golden_model import detectron2_detector, inputs, same_samples, standard_heads

STEPS, RATE, WARMUP, MILESTONES = 20, 2e-4, 5, (12, 17)


def main() -> None:
    """Train and write the file."""
    same_samples()
    model = detectron2_detector(True, standard_heads())
    tiny.fill(model)
    model.double().train()
    groups = get_default_optimizer_params(
        model,
        base_lr=RATE,
        weight_decay_norm=0.0,
        lr_factor_func=partial(get_vit_lr_decay_rate, lr_decay_rate=0.7, num_layers=4),
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), weight_decay=0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    multiplier = WarmupParamScheduler(
        MultiStepParamScheduler(values=[1.0, 0.1, 0.01], milestones=list(MILESTONES), num_updates=STEPS),
        warmup_factor=0.001,
        warmup_length=WARMUP / STEPS,
    )
    history = []
    with EventStorage():
        for step in range(STEPS):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * multiplier(step / STEPS)
            losses = model(inputs(tiny.SHAPES))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: value.item() for name, value in losses.items()})
    Path(__file__).with_name("golden_training.json").write_text(json.dumps(history, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

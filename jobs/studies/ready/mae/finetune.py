"""MAE, fine-tuning of the released models: B, L and H, 1,600 epochs: 83.664, 85.952, 86.928."""

from __future__ import annotations

from mimbench.jobs.studies.ready import finetuned, pretraining
from mimbench.jobs.studies.study import Run, Study


def study() -> Study:
    """A pretraining and a fine-tuning of each size."""
    runs: list[Run] = []
    for size in "BLH":
        recipe = f"mae_vit{size.lower()}_1600ep"
        runs += finetuned(size, [pretraining(recipe, f"MAE ViT-{size}", hours=100)])
    return Study("mae/finetune", runs)

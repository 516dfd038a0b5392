"""CrossMAE, Table 1: ImageNet fine-tuning of MAE and CrossMAE at S, B, L and H, 800 epochs.

MAE 78.9, 83.3, 85.4, 85.8; CrossMAE with 25 % predicted 79.2, 83.5, 85.4, 86.3; with 75 % 79.3, 83.7, 85.4, 86.4
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import finetuned, pretraining
from mimbench.jobs.studies.study import Run, Study


def study() -> Study:
    """Three pretrainings and three fine-tunings of each size."""
    runs: list[Run] = []
    for size in "SBLH":
        name = f"vit{size.lower()}_800ep"
        pretrainings = (
            pretraining(f"mae_{name}", f"MAE ViT-{size}"),
            pretraining(f"crossmae_{name}", f"CrossMAE ViT-{size}, 25 % predicted"),
            pretraining(f"crossmae_{name}_predict75", f"CrossMAE ViT-{size}"),
        )
        runs += finetuned(size, pretrainings)
    return Study("crossmae/table1", runs)

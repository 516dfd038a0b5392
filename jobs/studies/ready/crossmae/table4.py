"""CrossMAE, Table 4: minutes an epoch, memory and accuracy of MAE and CrossMAE, ViT-B, 400 epochs, 2 GPUs.

    MAE 83.0, 9.35 min, 68,386 MB; CrossMAE 83.3, 8.41 min, 57,987 MB; with 25 % predicted 83.2, 6.32 min, 36,805 MB

On two A100 of 80 GB, in two micro-batches each. `mimbench table crossmae/compute` compares the cost of these runs,
and says which share of the time they waited for data.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.jobs.studies.ready import finetuned, pretraining
from mimbench.jobs.studies.study import Study

ROWS = {
    "MAE": "mae_vitb_400ep",
    "CrossMAE": "crossmae_vitb_400ep_predict75",
    "CrossMAE, 25 % predicted": "crossmae_vitb_400ep",
}


def study() -> Study:
    """Three pretrainings on two GPUs, and their fine-tunings."""
    given = "compute.accumulate=2"
    pretrainings = (pretraining(recipe, label, given, hours=60) for label, recipe in ROWS.items())
    return Study("crossmae/table4", list(finetuned("B", (replace(run, gpus=2) for run in pretrainings))))

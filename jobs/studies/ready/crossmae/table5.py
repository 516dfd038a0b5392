"""CrossMAE, Table 5: from MAE to CrossMAE in steps, ViT-B, 400 epochs: accuracy and minutes an epoch.

    MAE 83.0, 9.35; with cross-attention 82.9, 7.38; a quarter predicted 83.2, 6.32; fused maps 83.3, 8.41

The last two rows are those of Table 4 with 25 % and with 75 % predicted. Both fuse maps, so the steps do not change one
thing at a time.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.jobs.studies.ready import finetuned, pretraining
from mimbench.jobs.studies.study import Study

ROWS = {
    "MAE": "mae_vitb_400ep",
    "with cross-attention": "crossmae_vitb_400ep_one_map",
    "a quarter predicted": "crossmae_vitb_400ep",
    "fused maps": "crossmae_vitb_400ep_predict75",
}


def study() -> Study:
    """Four pretrainings on two GPUs, and their fine-tunings."""
    given = "compute.accumulate=2"
    pretrainings = (pretraining(recipe, label, given, hours=60) for label, recipe in ROWS.items())
    return Study("crossmae/table5", list(finetuned("B", (replace(run, gpus=2) for run in pretrainings))))

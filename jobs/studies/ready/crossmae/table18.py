"""CrossMAE, Table 18: minutes an epoch and memory of MAE and CrossMAE, ViT-B, 800 epochs, 4 GPUs.

    MAE does not fit at 1,024 images a GPU: 83.3, 5.19 min in two parts; CrossMAE 83.5, 3.38 min, 41,177 MB

On four A100 of 80 GB. `mimbench table crossmae/compute` compares the cost of these runs,
and says which share of the time they waited for data.
"""

from __future__ import annotations

from dataclasses import replace

from mimbench.jobs.studies.ready import finetuned, pretraining
from mimbench.jobs.studies.study import Study


def study() -> Study:
    """Two pretrainings on four GPUs, and their fine-tunings."""
    mae = pretraining("mae_vitb_800ep", "MAE", "compute.accumulate=2", hours=70)
    crossmae = pretraining("crossmae_vitb_800ep", "CrossMAE, 25 % predicted", hours=45)
    return Study("crossmae/table18", list(finetuned("B", (replace(run, gpus=4) for run in (mae, crossmae)))))

"""CrossMAE, Table 12: linear probes of MAE and CrossMAE at S and B, 800 epochs.

    S: MAE 49.7, CrossMAE 51.5; B: MAE 65.1, CrossMAE 65.4

The paper does not state the probed feature. The official script only supports the mean of the patch tokens of an
encoder without a final norm, so both use that here.
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, pretraining
from mimbench.jobs.studies.study import Study


def study() -> Study:
    """Two pretrainings of each size, and their probes."""
    runs = []
    for size in "SB":
        letter = size.lower()
        for pretrained in (
            pretraining(f"mae_vit{letter}_800ep", f"MAE ViT-{size}"),
            pretraining(f"crossmae_vit{letter}_800ep_predict75", f"CrossMAE ViT-{size}"),
        ):
            runs += [pretrained, evaluation(f"cls/linear_vit{letter}", pretrained, "linear probe")]
    return Study("crossmae/table12", runs)

"""MAE, linear probes of the released models on the class token: B, L and H, 1,600 epochs: 67.8, 76.0, 77.2."""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, pretraining
from mimbench.jobs.studies.study import Study


def study() -> Study:
    """A pretraining and a probe of each size."""
    runs = []
    for size in "BLH":
        letter = size.lower()
        pretrained = pretraining(f"mae_vit{letter}_1600ep", f"MAE ViT-{size}", hours=100)
        runs += [pretrained, evaluation(f"cls/linear_vit{letter}_cls", pretrained, "linear probe")]
    return Study("mae/linear", runs)

"""MAE, Table 5: segmentation of ADE20K by UperNet, B and L, 1,600 epochs: 48.1 and 53.6 mIoU.

    mimbench submit mae/ade20k --cluster a100 --from "MAE ViT-B=mae_pretrain_vit_base.pth"

The settings for ViT-L are not published; the recipe uses those of another method.
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, pretraining
from mimbench.jobs.studies.study import Run, Study


def study() -> Study:
    """A pretraining and a segmentation of each size."""
    runs: list[Run] = []
    for size, hours in (("B", 27.0), ("L", 60.0)):
        pretrained = pretraining(f"mae_vit{size.lower()}_1600ep", f"MAE ViT-{size}", hours=100)
        runs += [pretrained, evaluation(f"seg/upernet_vit{size.lower()}", pretrained, "ADE20K", hours=hours)]
    return Study("mae/ade20k", runs)

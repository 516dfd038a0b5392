"""CrossMAE, Table 2: COCO detection of MAE and CrossMAE at B and L, with relative positions and without.

    box / mask AP    MAE 51.2 / 45.5 and 54.6 / 48.6; CrossMAE 52.1 / 46.3 and 54.9 / 48.8

The paper states no recipe. Its MAE row is from ViTDet's Table 4, without relative positions, after 1,600 epochs of MAE;
detectron2's configs have relative positions (51.6 / 45.9 and 55.6 / 49.2). So each encoder is evaluated with and
without them: compare rows with the same setting.
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, pretraining
from mimbench.jobs.studies.study import Study

DAYS = {"B": 5.0, "L": 10.0}  # on 8 A100


def study() -> Study:
    """Two pretrainings of each size and four detectors."""
    runs = []
    for size, days in DAYS.items():
        letter = size.lower()
        for pretrained in (
            pretraining(f"mae_vit{letter}_1600ep", f"MAE ViT-{size}", hours=100),
            pretraining(f"crossmae_vit{letter}_800ep_predict75", f"CrossMAE ViT-{size}"),
        ):
            recipe = f"det/mask_rcnn_vitdet_{letter}_100ep"
            runs += [
                pretrained,
                evaluation(recipe, pretrained, "COCO", hours=24 * days),
                evaluation(recipe, pretrained, "COCO without rel-pos", "vitdet.rel_pos=false", hours=24 * days),
            ]
    return Study("crossmae/table2", runs)

"""Perception Encoder, Table 14: eleven encoders on COCO and LVIS under one ViTDet recipe.

    mimbench plan pe/table14 --from "DINOv2-L=dinov2_vitl14_pretrain.pth" --from "OpenAI CLIP-L=ViT-L-14.pt"

The encoders are made elsewhere: `--from` names the files, and only their rows are run. Each is evaluated twice, on COCO
and LVIS; `mimbench table pe` shows the results beside the printed ones.
"""

from __future__ import annotations

from mimbench.engine.run.cost import stated
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.studies.ready import evaluation
from mimbench.jobs.studies.study import Given, Run, Study

ENCODERS = {  # label: name in the recipes
    "OpenAI CLIP-L": "clip_l",
    "MetaCLIP-G": "metaclip_g",
    "SigLIP-so": "siglip_so",
    "MAE-L": "mae_l",
    "EVA02-L": "eva02_l",
    "SigLIP2-so": "siglip2_so",
    "SigLIP2-g-opt": "siglip2_g",
    "DINOv2-L": "dinov2_l",
    "DINOv2-g": "dinov2_g",
    "PE core G": "pe_core_g",
    "PE spatial G": "pe_spatial_g",
}


def study() -> Study:
    """Two detectors of each encoder."""
    runs: list[Run] = []
    for label, name in ENCODERS.items():
        recipes = {"COCO": f"det/vitdet_{name}_pe", "LVIS": f"det/lvis_vitdet_{name}_pe"}
        encoder = Given(recipes["COCO"], label=label)
        runs.append(encoder)
        for what, recipe in recipes.items():
            cost = stated(find(recipe).function)
            hours = cost.cost.hours / cost.gpus if cost else 240.0
            runs.append(evaluation(recipe, encoder, what, hours=hours))
    return Study("pe/table14", runs)

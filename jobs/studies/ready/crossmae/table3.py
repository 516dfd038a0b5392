"""CrossMAE, Table 3: ablations of ViT-B, 400 epochs and fine-tuning.

    (a) MAE 83.0, CrossMAE 83.3, with self-attention 83.3        (b) hidden .65 83.5, .75 83.3, .85 83.3
    (c) predicted .15 83.1, .25 83.2, .75 83.3                   (d) maps fused 1 82.9, 3 83.3, 6 83.5, 12 83.3
    (e) decoder blocks 1 83.0, 4 83.1, 8 83.1, 12 83.3           (f) 224 pixels 83.2, 448 pixels 84.6

The paper does not state which 3 and 6 maps (d) uses; here they are evenly spaced and end with the last.
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, finetuned, pretraining
from mimbench.jobs.studies.study import Study

BASE = "crossmae_vitb_400ep"
ROWS = {  # label -> recipe; "CrossMAE" is a row of (a), (b), (c), (d) and (e)
    "MAE": "mae_vitb_400ep",
    "CrossMAE": f"{BASE}_predict75",
    "self-attention": f"{BASE}_self_attention",
    "hidden .65": f"{BASE}_mask65",
    "hidden .85": f"{BASE}_mask85",
    "predicted .15": f"{BASE}_predict15",
    "predicted .25": BASE,
    "1 map": f"{BASE}_one_map",
    "1 block": f"{BASE}_depth1",
    "4 blocks": f"{BASE}_depth4",
    "8 blocks": f"{BASE}_depth8",
}
MAPS = {"3 maps": "3,7,11", "6 maps": "1,3,5,7,9,11"}


def study() -> Study:
    """A pretraining and a fine-tuning for each row; the 448-pixel one is fine-tuned at 448 pixels."""
    pretrainings = [pretraining(recipe, label, hours=25) for label, recipe in ROWS.items()]
    pretrainings += [
        pretraining(f"{BASE}_predict75", label, f"method.feature_maps={maps}", hours=25) for label, maps in MAPS.items()
    ]
    large = pretraining("crossmae_vitb_448px_400ep", "448 pixels", hours=80)
    tuned = evaluation("cls/finetune_vitb_448", large, "fine-tuned", hours=40)
    return Study("crossmae/table3", [*finetuned("B", pretrainings), large, tuned])

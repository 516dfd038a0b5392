"""MaskAlign, fine-tuning: ViT-B and ViT-L with CLIP-B/16 as teacher, ViT-L with CLIP-L/14: 85.4, 86.5, 87.4.

The teachers' weights must be in timm's cache, or given: `pretrain.checkpoint=FILE`.
"""

from __future__ import annotations

from mimbench.jobs.studies.ready import evaluation, pretraining
from mimbench.jobs.studies.study import Study

ROWS = {
    "ViT-B, teacher CLIP-B": ("maskalign_vitb", "cls/finetune_maskalign_vitb"),
    "ViT-L, teacher CLIP-B": ("maskalign_vitl", "cls/finetune_maskalign_vitl"),
    "ViT-L, teacher CLIP-L": ("maskalign_vitl_clipl", "cls/finetune_maskalign_vitl"),
}


def study() -> Study:
    """A pretraining and a fine-tuning for each row."""
    runs = []
    for label, (recipe, finetune) in ROWS.items():
        pretrained = pretraining(recipe, f"MaskAlign {label}", hours=30)
        runs += [pretrained, evaluation(finetune, pretrained, "fine-tuned")]
    return Study("maskalign/finetune", runs)

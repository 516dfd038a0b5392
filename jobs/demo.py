"""The demo: pretrain one encoder here and evaluate it in five ways, beside the same encoder from scratch.

    mimbench demo                 minutes on two cores; finished runs are not repeated
    mimbench demo --method mae    the same with another pretraining method
    mimbench demo --seeds 3       the same with three seeds, for the standard deviation

Ends with the table and the report of all runs under the runs root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mimbench.jobs.studies.study import Run, Study

Method = Literal["crossmae", "mae", "maskalign", "famt"]
EVALUATIONS = (  # recipe, label, minutes on one core
    ("det/mask_rcnn_handwritten", "COCO", 1.0),
    ("cls/finetune_handwritten", "fine-tune", 0.7),
    ("seg/linear_handwritten", "segmentation", 0.4),
    ("cls/linear_handwritten", "linear", 0.3),
    ("cls/knn_handwritten", "k-NN", 0.3),
)
NOTES: dict[Method, str] = {
    "maskalign": "in this demo, MaskAlign's teacher is not CLIP but a CrossMAE encoder, pretrained first",
    "famt": "the frequency branch of FAMT is an unverified reconstruction: its authors published no code for it",
}


def demo(seeds: int = 1, method: Method = "crossmae") -> Study:
    """Return the study of the demo."""
    return Study(f"demo-{method}", [run for seed in range(seeds) for run in _chain(seed, seeds, method)])


def _chain(seed: int, seeds: int, method: Method) -> Iterator[Run]:
    mark = f", seed {seed}" if seeds > 1 else ""
    given = (f"seed={seed}",)
    teacher = None
    if method == "maskalign":
        teacher = Run("pretrain/crossmae_handwritten", given, label=f"teacher, CrossMAE{mark}", minutes=1.3)
        yield teacher
    minutes = 4.0 if method == "famt" else 1.3  # its recipe has more and larger steps
    pretrained = Run(f"pretrain/{method}_handwritten", given, teacher, f"pretrain{mark}", minutes)
    yield pretrained
    for recipe, name, minutes in EVALUATIONS:
        yield Run(recipe, given, pretrained, f"{name}, pretrained{mark}", minutes)
        yield Run(recipe, given, None, f"{name}, from scratch{mark}", minutes)

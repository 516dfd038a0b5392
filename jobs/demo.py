"""The demo: one encoder pretrained on this machine and evaluated in four ways, beside the same encoder from scratch.

    mimbench demo                 minutes on two cores; asked again, nothing that is done is repeated
    mimbench demo --method mae    the same with another way of pretraining
    mimbench demo --seeds 3       the same three times over, for the spread

Ends with the table and the report of everything under the runs root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mimbench.jobs.studies.study import Run, Study

Method = Literal["crossmae", "mae", "maskalign", "famt"]
EVALUATIONS = (  # recipe, what to call it, minutes on one core
    ("det/mask_rcnn_handwritten", "COCO", 2.5),
    ("cls/finetune_handwritten", "fine-tune", 1.3),
    ("cls/linear_handwritten", "linear", 0.3),
    ("cls/knn_handwritten", "k-NN", 0.2),
)
NOTES: dict[Method, str] = {
    "maskalign": "MaskAlign's teacher is not CLIP here: it is the CrossMAE encoder that this demo pretrains first",
    "famt": "FAMT's frequency branch is a reconstruction, unverified: its authors published no code for it",
}


def demo(seeds: int = 1, method: Method = "crossmae") -> Study:
    """The study of the demo."""
    return Study(f"demo-{method}", [run for seed in range(seeds) for run in _chain(seed, seeds, method)])


def _chain(seed: int, seeds: int, method: Method) -> Iterator[Run]:
    mark = f", seed {seed}" if seeds > 1 else ""
    given = (f"seed={seed}",)
    teacher = None
    if method == "maskalign":
        teacher = Run("pretrain/crossmae_handwritten", given, label=f"teacher, CrossMAE{mark}", minutes=3.0)
        yield teacher
    pretrained = Run(f"pretrain/{method}_handwritten", given, teacher, f"pretrain{mark}", 3.0)
    yield pretrained
    for recipe, name, minutes in EVALUATIONS:
        yield Run(recipe, given, pretrained, f"{name}, pretrained{mark}", minutes)
        yield Run(recipe, given, None, f"{name}, from scratch{mark}", minutes)

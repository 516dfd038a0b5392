"""The demo: one encoder pretrained on this machine and evaluated in four ways, beside the same encoder from scratch.

    mimbench demo            minutes on two cores; asked again, nothing that is done is repeated
    mimbench demo --seeds 3  the same three times over, for the spread

Ends with the table and the report of everything under the runs root.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.study import Run, Study

PRETRAIN = "pretrain/crossmae_handwritten"
EVALUATIONS = (  # recipe, what to call it, minutes on one core
    ("det/mask_rcnn_handwritten", "COCO", 1.5),
    ("cls/finetune_handwritten", "fine-tune", 1.3),
    ("cls/linear_handwritten", "linear", 0.3),
    ("cls/knn_handwritten", "k-NN", 0.2),
)


def demo(seeds: int = 1) -> Study:
    """The study of the demo."""
    return Study("demo", [run for seed in range(seeds) for run in _chain(seed, seeds)])


def _chain(seed: int, seeds: int) -> Iterator[Run]:
    mark = f", seed {seed}" if seeds > 1 else ""
    given = (f"seed={seed}",)
    pretrained = Run(PRETRAIN, given, label=f"pretrain{mark}", minutes=3.0)
    yield pretrained
    for recipe, name, minutes in EVALUATIONS:
        yield Run(recipe, given, pretrained, f"{name}, pretrained{mark}", minutes)
        yield Run(recipe, given, None, f"{name}, from scratch{mark}", minutes)

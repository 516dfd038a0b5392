"""Ready studies: a paper's table in a file, each from pretraining to evaluation. `mimbench studies` lists them.

    mimbench plan crossmae/table2
    mimbench submit crossmae/table2 --cluster a100
    mimbench submit crossmae/table2 --cluster a100 --from "CrossMAE ViT-B=crossmae_vitb.pth"    starts in the middle

Batches are those of the papers, over all GPUs: on smaller ones, `pretrain.compute.accumulate=4` and the like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mimbench.jobs.studies.study import Run

GPUS = 8  # of one node; what the papers' own runs had, or fewer


def pretraining(recipe: str, label: str, *overrides: str, hours: float = 50.0) -> Run:
    """A pretraining called `label`; `hours` are a guess, for the order of runs."""
    return Run(f"pretrain/{recipe}", overrides, label=label, minutes=60 * hours, gpus=GPUS)


def evaluation(recipe: str, pretrained: Run | None, what: str, *overrides: str, hours: float = 12.0) -> Run:
    """An evaluation of what `pretrained` makes, called `<its label>, <what>`; of random weights without one."""
    label = f"{pretrained.name}, {what}" if pretrained else what
    gpus = 1 if "knn" in recipe else GPUS
    return Run(recipe, overrides, pretrained, label, 60 * hours, gpus=gpus)


def finetuned(size: str, pretrainings: Iterable[Run]) -> Iterator[Run]:
    """Each pretraining of ViT-`size`, and its fine-tuning on ImageNet."""
    for pretrained in pretrainings:
        yield pretrained
        yield evaluation(f"cls/finetune_vit{size.lower()}", pretrained, "fine-tuned")

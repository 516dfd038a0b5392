"""Ready studies: one file for each table of a paper, from pretraining to evaluation. `mimbench studies` lists them.

    mimbench plan crossmae/table2
    mimbench submit crossmae/table2 --cluster a100
    mimbench submit crossmae/table2 --cluster a100 --from "CrossMAE ViT-B=crossmae_vitb.pth"    skips that pretraining

Batches are those of the papers, over all GPUs. On smaller GPUs, set for example `pretrain.compute.accumulate=4`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mimbench.jobs.studies.study import Run

GPUS = 8  # of one node; at most as many as in the papers' runs


def pretraining(recipe: str, label: str, *overrides: str, hours: float = 50.0) -> Run:
    """Return a pretraining called `label`; `hours` is a guess that decides the order of runs."""
    return Run(f"pretrain/{recipe}", overrides, label=label, minutes=60 * hours, gpus=GPUS)


def evaluation(recipe: str, pretrained: Run | None, what: str, *overrides: str, hours: float = 12.0) -> Run:
    """Return an evaluation of the encoder of `pretrained` (None: random weights), called `<its label>, <what>`."""
    label = f"{pretrained.name}, {what}" if pretrained else what
    gpus = 1 if "knn" in recipe else GPUS
    return Run(recipe, overrides, pretrained, label, 60 * hours, gpus=gpus)


def finetuned(size: str, pretrainings: Iterable[Run]) -> Iterator[Run]:
    """Yield each pretraining of ViT-`size` and its fine-tuning on ImageNet."""
    for pretrained in pretrainings:
        yield pretrained
        yield evaluation(f"cls/finetune_vit{size.lower()}", pretrained, "fine-tuned")

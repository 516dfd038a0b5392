"""Finished runs of published recipes, as full-size trainings on ImageNet and COCO would leave them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.config import to_text, with_overrides
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.tables.paper import Reference
from tests.jobs.encoder_file import encoder_bytes
from tests.jobs.runs import Runs

IMAGENET = {"classes": 1000, "train_images": 1_281_167, "val_images": 50_000}
COCO = {"classes": 80, "train_images": 117_266, "val_images": 5_000}
ADE20K = {"classes": 150, "train_images": 20_210, "val_images": 2_000}
LVIS = {"classes": 1203, "train_images": 99_388, "val_images": 19_809}


class Published(Runs):
    """A runs root with runs of full size in it; only their numbers are made up."""

    def pretraining(self, recipe: str, *overrides: str, seed: int = 0, facts: dict[str, Any] | None = None) -> RunDir:
        """A finished pretraining."""
        config = with_overrides(find(recipe).build(), [*overrides, f"seed={seed}"])
        run = self.new(recipe, config)
        run.encoder.write_bytes(encoder_bytes(to_text(config)))
        self.finish(run, {"loss": 0.4}, {"train_images": IMAGENET["train_images"], **(facts or {})}, 3600.0 * 45)
        return run

    def evaluation(
        self,
        recipe: str,
        metrics: dict[str, float],
        encoder: RunDir | Path | None,
        *overrides: str,
        seed: int = 0,
        facts: dict[str, Any] | None = None,
        family: str = "crossmae",
    ) -> RunDir:
        """A finished evaluation; `facts` beyond, or in place of, those of ImageNet or COCO."""
        if "finetune_top1" in metrics:
            metrics = {"finetune_best_top1": metrics["finetune_top1"], **metrics}
        file = encoder.encoder if isinstance(encoder, RunDir) else encoder
        config = with_overrides(find(recipe).build(), [*overrides, f"seed={seed}"])
        config = replace(config, checkpoint=str(file) if file else None)
        run = self.new(recipe, config, file)
        side = config.image if config.image > 224 else round(config.image * 256 / 224)
        own: dict[str, Any] = {"eval_resize": side, "final_norm": True}
        data = IMAGENET
        if recipe.startswith("det/"):
            data, own = LVIS if "lvis" in recipe else COCO, {"patch": 16}
        elif recipe.startswith("seg/"):
            data, own = ADE20K, {}
        self.finish(
            run, metrics, {**data, **own, "encoder": asdict(config.encoder), **(facts or {})}, 3600.0 * 8, family
        )
        return run

    def of(self, reference: Reference, value: float, seed: int = 0) -> RunDir:
        """A run of the recipes that are said to fill the cell of `reference`."""
        assert reference.recipe
        encoder: RunDir | Path | None = None
        family = str(reference.select.get("pretrain.method.kind", "none"))
        if reference.pretraining:
            encoder = self.pretraining(reference.pretraining, *reference.pretrain_overrides, seed=seed)
        elif family != "none":  # made elsewhere
            encoder = self.root.parent / f"{family}.safetensors"
            encoder.write_bytes(encoder_bytes(family, find(reference.recipe).build().encoder))
        number = {reference.metric: value}
        return self.evaluation(reference.recipe, number, encoder, *reference.overrides, seed=seed, family=family)

"""Run directories as the stages leave them, with numbers that a test chooses and without any training."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hash
from mimbench.cls.recipes.published import finetune_handwritten, knn_handwritten, linear_handwritten
from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten
from mimbench.engine.run.config import identity, to_text
from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.pretrain.recipes.crossmae import crossmae_handwritten
from tests.jobs.encoder_file import encoder_bytes

RECIPES = {
    "cls/knn_handwritten": knn_handwritten,
    "cls/linear_handwritten": linear_handwritten,
    "cls/finetune_handwritten": finetune_handwritten,
    "det/mask_rcnn_handwritten": mask_rcnn_handwritten,
}


class Runs:
    """A runs root that is filled by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def pretrain(self, recipe: str = "pretrain/crossmae_handwritten", **changes: Any) -> RunDir:
        """A finished pretraining; its encoder's content depends on its config alone."""
        config = replace(crossmae_handwritten(), **changes)
        run = self.new(recipe, config)
        run.encoder.write_bytes(encoder_bytes(to_text(config)))
        self.finish(run, {"loss": 0.25}, seconds=181.0)
        return run

    def evaluate(
        self,
        recipe: str,
        metrics: dict[str, float],
        checkpoint: RunDir | Path | None = None,
        shape: ViT | None = None,
        **changes: Any,
    ) -> RunDir:
        """A finished evaluation of what a pretraining made, of a file with an encoder of `shape`, or from scratch."""
        file = checkpoint.encoder if isinstance(checkpoint, RunDir) else checkpoint
        config = replace(RECIPES[recipe](), checkpoint=str(file) if file else None, **changes)
        run = self.new(recipe, config, file)
        self.finish(run, metrics, {"encoder": asdict(shape)} if shape else {})
        return run

    def new(self, recipe: str, config: Any, checkpoint: Path | None = None) -> RunDir:
        """A run that was never started."""
        stage, _, function = recipe.partition("/")
        source = {"path": str(checkpoint), "hash": content_hash(checkpoint)} if checkpoint else None
        digest = identity(config, stage, source["hash"] if source else None)
        about = {"recipe": recipe, "stage": stage, "identity": digest, "checkpoint": source}
        return RunDir.create(self.root / stage / f"{function}-{digest}", to_text(config), about)

    def finish(
        self,
        run: RunDir,
        metrics: dict[str, float],
        facts: dict[str, Any] | None = None,
        seconds: float = 12.0,
        family: str = "crossmae",
    ) -> None:
        """Start `run` and end it with a result, again if it has one."""
        run.result.unlink(missing_ok=True)
        number = run.begin_attempt()
        outcome = Outcome(metrics, {"pool": "avg", **(facts or {})}, 1234.5, 512 * 2**20, "a CPU", family)
        write_result(run, outcome, seconds)
        run.end_attempt(number, "done")

    @staticmethod
    def log_metrics(run: RunDir, lines: list[dict[str, float]]) -> None:
        """Write `metrics.jsonl`."""
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

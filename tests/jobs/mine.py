"""The study `mine`, some of whose runs are done: a pretraining and three evaluations of it."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.study_registry import add_members
from tests.jobs.encoder_file import encoder_bytes

PRETRAIN = Run("pretrain/crossmae_handwritten", label="pretrain")
STUDY = Study(
    "mine",
    [PRETRAIN, *(Run("cls/knn_handwritten", (f"seed={seed}",), PRETRAIN, f"knn {seed}") for seed in range(3))],
)


def mimbench(*arguments: str) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="mimbench")


def make() -> list[RunDir]:
    """Make the study's runs: a pretraining that is done, and three evaluations: done, failed, new."""
    root = runs_root()
    runs = list(STUDY.prepare(root).values())
    add_members(root, "mine", {path: run.name for run, path in zip(STUDY.runs, runs, strict=True)})
    runs[0].encoder.write_bytes(encoder_bytes("weights"))
    finish(runs[0], {"loss": 0.25})
    finish(runs[1], {"knn_top1": 41.5})
    runs[2].end_attempt(runs[2].begin_attempt(), "failed", "the data are no good")
    return runs


def finish(run: RunDir, metrics: dict[str, float]) -> None:
    """Let the run be done, with these metrics."""
    number = run.begin_attempt()
    write_result(run, Outcome(metrics), 1.0)
    run.end_attempt(number, "done")

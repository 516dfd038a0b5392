"""What an encoder is called, where its pretraining had a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.encoders import Encoder, encoders_of
from mimbench.jobs.runs.records import read
from mimbench.pretrain.recipes.maskalign import maskalign_handwritten
from tests.jobs.runs import Runs

STUDENT = "pretrain/maskalign_handwritten"


def taught(runs: Runs, teacher: RunDir, **changes: Any) -> RunDir:
    """A MaskAlign pretraining that was asked for."""
    config = replace(maskalign_handwritten(), checkpoint=str(teacher.encoder), **changes)
    return runs.new(STUDENT, config, teacher.encoder)


def called(root: Path, run: RunDir) -> Encoder:
    return encoders_of(read(root))[run.path]


def test_seeds_with_teachers_of_their_own_are_one_encoder(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    students = [taught(runs, runs.pretrain(seed=seed), seed=seed) for seed in (0, 1)]
    first, second = (called(tmp_path, student) for student in students)
    assert first == second
    assert (first.architecture, first.name) == ("ViT 96x4/8", "maskalign_handwritten")


def test_students_of_different_teachers_are_not(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    students = [taught(runs, runs.pretrain(epochs=epochs)) for epochs in (15, 16)]
    found = {called(tmp_path, student) for student in students}
    assert len({encoder.origin for encoder in found}) == 2
    assert any("checkpoint=crossmae_handwritten " in encoder.name for encoder in found)

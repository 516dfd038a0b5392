"""Studies: lists of runs that can be checked before any of them starts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import pytest

from jobs import cli
from jobs.demo import EVALUATIONS, Method, demo
from jobs.store import config_of, runs_root
from jobs.study import Run, Study
from tests.jobs.encoder_file import encoder_bytes


def test_a_need_must_be_listed() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    probe = Run("cls/knn_handwritten", checkpoint=pretrain)
    assert probe.need == pretrain
    with pytest.raises(ValueError, match="needs pretrain/crossmae_handwritten, which is not listed"):
        Study("s", [probe])
    Study("s", [probe, pretrain]).check()


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        Study("s", [Run("cls/knn"), Run("cls/knn")])


def test_a_mistake_in_the_last_run_shows_at_once() -> None:
    with pytest.raises(ValueError, match="unknown key 'sed'"):
        Study("s", [Run("cls/knn"), Run("cls/knn", ("sed=3",))]).check()
    with pytest.raises(ValueError, match="a checkpoint is MaskAlign's teacher"):
        first = Run("pretrain/crossmae_handwritten")
        Study("s", [first, Run("pretrain/crossmae_handwritten", ("seed=1",), checkpoint=first)]).check()


def test_a_run_starts_from_what_the_run_before_it_made() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    probe = Run("cls/knn_handwritten", checkpoint=pretrain)
    made = pretrain.directory(runs_root())
    with pytest.raises(FileNotFoundError):
        probe.directory(runs_root())
    made.encoder.write_bytes(encoder_bytes("weights"))
    first = probe.directory(runs_root())
    assert config_of(first).checkpoint == str(made.encoder.absolute())
    made.encoder.write_bytes(encoder_bytes("other weights"))
    assert probe.directory(runs_root()).path != first.path


def test_a_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    file = tmp_path / "an encoder = none.pth"
    file.write_bytes(encoder_bytes("weights"))
    run = Run("cls/knn_handwritten", checkpoint=file)
    assert run.need is None
    assert config_of(run.directory(runs_root())).checkpoint == str(file)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_demo_evaluates_pretrained_and_scratch_alike(method: Method) -> None:
    study = demo(method=method)
    study.check()
    teachers = int(method == "maskalign")
    assert len(study.runs) == teachers + 1 + 2 * len(EVALUATIONS)
    for recipe, *_ in EVALUATIONS:
        starts = {run.need.recipe if run.need else None for run in study.runs if run.recipe == recipe}
        assert starts == {None, f"pretrain/{method}_handwritten"}
    assert len({run.name for run in demo(3, method).runs}) == 3 * len(study.runs)


def test_maskalign_is_taught_by_the_encoder_pretrained_before_it() -> None:
    teacher, student, *_ = demo(method="maskalign").runs
    assert (student.need, teacher.recipe) == (teacher, "pretrain/crossmae_handwritten")


def test_the_command_knows_every_method_of_the_demo() -> None:
    """The command line repeats them, so as not to import the demo for its help."""
    hint = inspect.signature(cli.demo).parameters["method"].annotation
    assert all(f"'{method}'" in hint for method in get_args(Method))

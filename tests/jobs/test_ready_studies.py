"""The ready studies: every config builds, every row is there, and a small one runs from pretraining to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimbench.jobs.runs.store import resolve, runs_root
from mimbench.jobs.studies.plan import plan
from mimbench.jobs.studies.study import Given, Study, at_epochs, start_from
from mimbench.jobs.studies.study_files import load_study, ready_studies
from tests.jobs.encoder_file import encoder_bytes

ROWS = {  # pretrainings and evaluations of each
    "amt/probe": (5, 10),
    "crossmae/table1": (12, 12),
    "crossmae/table12": (4, 4),
    "crossmae/table18": (2, 2),
    "crossmae/table2": (4, 8),
    "crossmae/table3": (14, 14),
    "crossmae/table4": (3, 3),
    "crossmae/table5": (4, 4),
    "mae/ade20k": (2, 2),
    "mae/finetune": (3, 3),
    "mae/linear": (3, 3),
    "maskalign/finetune": (3, 3),
    "pe/table14": (0, 22),
}
ELSEWHERE = {"pe/table14"}  # its encoders are files


def _given(study: Study, folder: Path) -> list[str]:
    """LABEL=FILE of every encoder that is made elsewhere: small files that pass for encoders of the right sizes."""
    given = []
    for run in study.runs:
        if isinstance(run, Given):
            file = folder / f"{run.name}.safetensors"
            file.write_bytes(encoder_bytes(run.name, resolve(run.recipe, ())[1].encoder))
            given.append(f"{run.name}={file}")
    return given


def _study(name: str, folder: Path) -> Study:
    """The study, with a file for every encoder that is made elsewhere."""
    study = load_study(name, runs_root())
    given = _given(study, folder)
    assert bool(given) == (name in ELSEWHERE)
    return start_from(study, given) if given else study


def test_all_are_listed_with_what_they_are() -> None:
    assert list(ready_studies()) == list(ROWS)
    assert all(ready_studies().values())


@pytest.mark.parametrize("name", ROWS)
def test_every_config_builds_and_every_row_has_a_directory(name: str, tmp_path: Path) -> None:
    study = _study(name, tmp_path)
    assert study.name == name
    study.check()
    stages = [run.recipe.partition("/")[0] for run in study.runs]
    assert (stages.count("pretrain"), len(stages) - stages.count("pretrain")) == ROWS[name]
    found = plan(study, runs_root())
    assert found.counts == {"new": len(study.runs)}
    assert len({line.directory.path for line in found.lines}) == len(study.runs), "two rows are one run"
    assert len({run.name for run in study.runs}) == len(study.runs), "two rows have one name"


@pytest.mark.parametrize("name", ROWS)
def test_each_encoder_is_evaluated_at_its_own_size(name: str) -> None:
    for run in load_study(name, runs_root()).runs:
        if run.need is not None and not isinstance(run.need, Given):
            _, made = resolve(run.need.recipe, run.need.overrides)
            _, config = resolve(run.recipe, run.overrides)
            assert (config.encoder.width, config.encoder.depth) == (made.encoder.width, made.encoder.depth), run.name
            if run.recipe.startswith("cls/"):
                assert config.image == made.encoder.image, run.name


def test_only_the_encoders_that_are_given_are_evaluated(tmp_path: Path) -> None:
    study = load_study("pe/table14", runs_root())
    with pytest.raises(ValueError, match="OpenAI CLIP-L is made elsewhere; name its file with --from 'OpenAI CLIP-L="):
        plan(study, runs_root())
    [given] = [text for text in _given(study, tmp_path) if text.startswith("DINOv2-L=")]
    some = start_from(study, [given])
    assert [run.name for run in some.runs] == ["DINOv2-L, COCO", "DINOv2-L, LVIS"]
    assert {run.checkpoint for run in some.runs} == {tmp_path / "DINOv2-L.safetensors"}
    assert plan(some, runs_root()).counts == {"new": 2}
    with pytest.raises(ValueError, match="the file holds a ViT-L, but the recipes of this study are for an encoder of"):
        start_from(study, [f"DINOv2-g={tmp_path / 'DINOv2-L.safetensors'}"])


def _encoders(study: Study) -> list[str]:
    return [run.name for run in study.runs if run.recipe.startswith("pretrain/")]


def test_any_of_them_starts_in_the_middle() -> None:
    study = load_study("crossmae/table2", runs_root())
    given = start_from(study, [f"{name}=/x/{index}.pth" for index, name in enumerate(_encoders(study))])
    given.check()
    assert _encoders(given) == []
    assert {run.checkpoint for run in given.runs} == {Path(f"/x/{index}.pth") for index in range(4)}


def test_any_of_them_evaluates_on_the_way() -> None:
    study = at_epochs(load_study("crossmae/table12", runs_root()), 200)
    study.check()
    assert [run.epoch for run in study.runs if run.name.startswith("MAE ViT-S, ")] == [None, 200, 400, 600]
    assert plan(study, runs_root()).counts == {"new": 4 + 4 * 4}

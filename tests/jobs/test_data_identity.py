"""Other files behind a name are another run: the identity knows the content of the data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mimbench.engine.data.datasets import add
from mimbench.engine.run.config import identity
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs import records
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.explain import explain_run
from mimbench.jobs.runs.store import config_of, create_or_find, place, resolve, runs_root
from mimbench.jobs.studies.plan import known_by, plan
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.tables import compare, table
from tests.jobs.conftest import Stage


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders that are named `photos`."""
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.jpg").write_bytes(f"{split} {name}".encode())
    add("photos", root)
    return root


def _run(data: str | Path = "photos", recipe: str = "cls/knn", *overrides: str) -> RunDir:
    found, config = resolve(recipe, [f"data={data}", *overrides])
    return create_or_find(found.name, config, runs_root())


def _relabel(root: Path) -> None:
    (root / "train/a/0.jpg").rename(root / "train/b/1.jpg")


def _as_of_an_earlier_release(run: RunDir) -> RunDir:
    """Return `run` as a release with schema 1 would have left it."""
    about = run.read_about()
    former = identity(config_of(run), about["stage"], None, schema=1)
    old = RunDir(run.path.rename(run.path.with_name(f"knn-{former}")))
    kept = {key: value for key, value in about.items() if key not in ("schema", "data")}
    old.about.write_text(json.dumps({**kept, "identity": former}))
    return old


def test_corrected_labels_are_another_run_and_a_moved_data_set_is_not(photos: Path, tmp_path: Path) -> None:
    first = _run()
    assert _run(photos).path == first.path, "a name and a path of the same files"
    pretraining = _run("photos", "pretrain/mae_vitb_800ep")
    _relabel(photos)
    corrected = _run()
    assert corrected.path != first.path
    assert _run("photos", "pretrain/mae_vitb_800ep").path != pretraining.path
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(photos, elsewhere)
    add("photos", elsewhere)
    assert _run().path == corrected.path, "the same files at another place"
    assert corrected.read_about()["data"] == {
        "fingerprint": corrected.read_about()["data"]["fingerprint"], "reads": "train and val images", "form": "folders"
    }  # fmt: skip


def test_the_list_of_a_subset_counts_by_its_content(photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a/0.jpg\n")
    two.write_text("a/0.jpg\n")
    run = _run("photos", "cls/knn", f"subset={one}")
    assert _run().path != run.path
    shutil.move(two, one)
    assert _run("photos", "cls/knn", f"subset={one}").path == run.path
    one.write_text("b/0.jpg\n")
    assert _run("photos", "cls/knn", f"subset={one}").path != run.path


def test_annotations_and_label_maps_count(tmp_path: Path) -> None:
    coco, labels = tmp_path / "coco", tmp_path / "labels"
    for split in ("train", "val"):
        for name in (f"coco/{split}2017/0.jpg", f"labels/images/{split}/0.jpg", f"labels/labels/{split}/0.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"content")
        for kind in ("instances", "lvis_v1"):
            file = (
                coco / "annotations" / (f"{kind}_{split}2017.json" if kind == "instances" else f"{kind}_{split}.json")
            )
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}")
    (labels / "classes.txt").write_text("sky\nground\n")
    asked = {
        "coco": lambda: _run(coco, "det/mask_rcnn_vitdet_b_100ep").path,
        "lvis": lambda: _run(coco, "det/mask_rcnn_vitdet_b_100ep", "benchmark=lvis").path,
        "seg": lambda: _run(labels, "seg/upernet_vitb").path,
    }
    seen = {name: {ask()} for name, ask in asked.items()}
    for file, noticed in (
        (coco / "annotations/instances_val2017.json", {"coco"}),
        (coco / "annotations/lvis_v1_train.json", {"lvis"}),
        (labels / "labels/val/0.png", {"seg"}),
        (labels / "classes.txt", {"seg"}),
        (coco / "train2017/0.jpg", {"coco", "lvis"}),
    ):
        file.write_bytes(b"CONTENT" if file.suffix != ".txt" else b"sky\nsea\n")
        new = {name: ask() for name, ask in asked.items()}
        assert {name for name in new if new[name] not in seen[name]} == noticed, file
        seen = {name: {*seen[name], new[name]} for name in new}


def test_data_that_are_not_here_count_as_last_seen(photos: Path) -> None:
    study = Study("s", [Run("cls/knn", ("data=photos",)), Run("cls/knn", ("data=photos", "seed=1"))])
    never = plan(study, runs_root())
    runs_root().mkdir(parents=True)
    run = _run()
    away = photos.rename(photos.with_name("away"))
    found = plan(study, runs_root())
    assert [line.directory.path == run.path for line in found.lines] == [True, False]
    (seen,) = found.remembered_data.values()
    assert "taken as they were on 20" in known_by(seen)
    shown = mimbench("plan", "crossmae/table2", "data=nowhere")
    assert "note: data=nowhere is not on this machine; its files were never read under this runs root" in shown.stderr
    assert never.remembered_data == {}
    away.rename(photos)
    assert plan(study, runs_root()).remembered_data == {}


def test_a_run_refuses_data_that_changed_since_it_was_created(
    photos: Path, stage: Callable[[Stage], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stage(lambda config, run: Outcome({"knn_top1": 50.0}))
    run = _run()
    _relabel(photos)
    assert execute(run) == 1
    told = capsys.readouterr().err
    assert f"the files of data=photos (train and val images) have changed since {run.path} was created" in told
    assert f"`mimbench run {run.path} data=photos` makes a run of the new data" in told
    again = _run()
    assert execute(again) == 0
    _relabel_back(photos)
    assert execute(again) == 0, "it is done, and its number stays"
    assert f"warning: the files of data=photos (train and val images) have changed since {again.path}" in (
        capsys.readouterr().err
    )
    assert execute(run) == 0, "the data are what they were"


def _relabel_back(root: Path) -> None:
    (root / "train/b/1.jpg").rename(root / "train/a/0.jpg")


def test_runs_of_earlier_releases_go_on_and_say_why_they_are_others(
    photos: Path, stage: Callable[[Stage], None]
) -> None:
    stage(lambda config, run: Outcome({"knn_top1": 50.0}))
    old = _as_of_an_earlier_release(_run())
    _relabel(photos)
    assert execute(old) == 0, "nobody can tell whether its data are the same"
    assert "did not record its data" in old.log.read_text()
    assert [record.metrics for record in records.read(runs_root())] == [{"knn_top1": 50.0}]
    study = Study("s", [Run("cls/knn", ("data=photos",))])
    (line,) = plan(study, runs_root()).lines
    assert (line.state, line.directory.path == old.path) == ("new", False)
    assert line.why == f"cls/{old.path.name} of an older version has the same settings, see `mimbench explain`"
    why = explain_run(_run(), runs_root())
    assert why.nearest == old
    assert [one.key for one in why.differences] == ["content of the data", "schema of the identity"]
    assert f"has the same settings as cls/{old.path.name}, a run of an older version" in why.text
    assert "identified a run by the name of its data" in why.text
    config = resolve("cls/knn", ["data=photos"])[1]
    assert place("cls/knn", config, runs_root()).former_run == old


def test_numbers_of_other_data_are_not_averaged(photos: Path, stage: Callable[[Stage], None]) -> None:
    values = iter((50.0, 90.0, 70.0))
    stage(lambda config, run: Outcome({"knn_top1": next(values)}))
    first = _run()
    execute(first)
    _relabel(photos)
    second = _run()
    execute(second)
    execute(_run("photos", "cls/knn", "seed=1"))
    cells = [row.cells["knn_top1"] for row in table.rows(runs_root()) if row.cells]
    assert sorted(cell.values for cell in cells) == [(50.0,), (90.0, 70.0)]
    content = second.read_about()["data"]["fingerprint"]
    assert {cell.data for cell in cells} == {"photos", f"photos (files {content[:6]})"}
    two = compare.compare(first.path, second.path, runs_root())
    assert "content of the data" in [setting.key for setting in two.protocol]


def test_status_has_the_metrics_of_finished_runs(photos: Path, stage: Callable[[Stage], None]) -> None:
    stage(lambda config, run: Outcome({"knn_top1": 50.0}, {"validation": "2 of 4 are training images"}))
    run = _run()
    (new,) = json.loads(mimbench("status", "--json").stdout)
    assert (new["metrics"], new["measured_on"]) == ({}, None)
    execute(run)
    (done,) = json.loads(mimbench("status", "--json").stdout)
    assert done["metrics"] == {"knn_top1": 50.0}
    assert done["measured_on"] == "2 of 4 validation images are training images"
    assert done["text"] == "knn_top1 50  (2 of 4 validation images are training images)"
    assert "warning: 2 of 4 validation images are training images" in mimbench("run", run.path).stderr

"""`mimbench predict` and `mimbench memory`, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten
from mimbench.engine.run.config import to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.commands import encoder_to_evaluate
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.memory import must_fit
from mimbench.jobs.slurm.cluster import Cluster
from mimbench.jobs.studies.evaluate import Request
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.submit import submit_cluster


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


@pytest.fixture
def trained(tmp_path: Path) -> RunDir:
    """A detection run that left a detector, as if it had finished."""
    import torch

    from mimbench.det.model.build import build_detector
    from mimbench.det.model.detector_file import save_detector

    config = replace(mask_rcnn_handwritten(), heads=replace(mask_rcnn_handwritten().heads, score_threshold=0.0))
    run = RunDir.create(
        tmp_path / "run",
        to_text(config),
        {"recipe": "det/mask_rcnn_handwritten", "stage": "det", "identity": "0", "checkpoint": None},
    )
    torch.manual_seed(0)
    model, _ = build_detector(config, 1)
    save_detector(run.detector, model, config, (1,), ("object",))
    return run


def _image(file: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def test_predict_draws_and_writes(trained: RunDir, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        _image(tmp_path / "images" / f"{number}.png", number)
    alone, out = _image(tmp_path / "0.png", 7), tmp_path / "out"
    done = mimbench("predict", trained.path, tmp_path / "images", alone, "--output", out, "--score", "0", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [Path(one["picture"]).name for one in told["images"]] == ["0.png", "1.png", "0-2.png"]
    results = json.loads((out / "results.json").read_text())
    assert results == told["results"]
    assert {result["image_id"] for result in results} == {0, 1, 2}
    assert Image.open(out / "0-2.png").size == (120, 90)
    assert np.abs(
        np.asarray(Image.open(out / "0-2.png").convert("RGB"), int) - np.asarray(Image.open(alone), int)
    ).any()


def test_no_picture_is_written_over_another(trained: RunDir, tmp_path: Path) -> None:
    """Numbering the second `a` must not take the name of `a-2`."""
    (tmp_path / "more").mkdir()
    files = [_image(tmp_path / name, 0) for name in ("a.png", "more/a.png", "a-2.png")]
    done = mimbench("predict", trained.path, *files, "--output", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    names = [Path(one["picture"]).name for one in json.loads(done.stdout)["images"]]
    assert names == ["a.png", "a-2.png", "a-2-2.png"]
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == set(names)


def test_nothing_but_its_own_is_written_over(trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the images looked at, not a picture beside them, however the folder is named; its own pictures are."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.PNG", "c.jpg"):
        _image(tmp_path / name, 0)
    _image(tmp_path / "c.png", 1)  # not asked for, and where the picture of c.jpg would go
    (tmp_path / "link").symlink_to(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    for out in (".", "link"):
        done = mimbench("predict", trained.path, "a.png", "b.PNG", "c.jpg", "--out", out, "--json")
        assert done.exit_code == 0, done.output
        names = [Path(one["picture"]).name for one in json.loads(done.stdout)["images"]]
        assert names == ["a-2.png", "b.png", "c-2.png"]
        assert {file: file.read_bytes() for file in before} == before
    (tmp_path / "results.json").write_text('{"mine": 1}')
    done = mimbench("predict", trained.path, "a.png", "--out", ".")
    assert done.exit_code == 1
    assert "results.json exists and was not written by `mimbench predict`; choose another directory" in done.output
    assert json.loads((tmp_path / "results.json").read_text()) == {"mine": 1}


def test_a_file_that_is_no_image_keeps_no_other_from_its_turn(trained: RunDir, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in (0, 2):
        _image(tmp_path / "images" / f"{number}.png", number)
    (tmp_path / "images" / "1.jpg").write_bytes(b"no image")
    done = mimbench(
        "predict", trained.path, tmp_path / "images", "--output", tmp_path / "out", "--score", "0", "--json"
    )
    assert done.exit_code == 1
    assert "1.jpg: is not an image that can be read" in done.stderr
    told = json.loads(done.stdout)
    assert [(one["image_id"], Path(one["picture"]).name) for one in told["images"]] == [(0, "0.png"), (2, "2.png")]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["image_id"] for result in results} == {0, 2}


def test_predict_says_what_is_missing(trained: RunDir, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ((trained.path, tmp_path / "nowhere.jpg"), "nowhere.jpg does not exist"),
        ((trained.path, tmp_path / "empty"), "no images in"),
        (("mask_rcnn_handwritten-99", _image(tmp_path / "a.png", 0)), "-99 does not exist, and no run under"),
        ((tmp_path / "nothing.pth", _image(tmp_path / "a.png", 0)), "nothing.pth does not exist"),
    ):
        done = mimbench("predict", *arguments, "--output", tmp_path / "none")
        assert done.exit_code == 1
        assert said in done.output
    assert not (tmp_path / "none" / "results.json").exists()


def test_memory() -> None:
    small = ("det/mask_rcnn_handwritten", "batch=32", "compute.precision=fp32")
    done = mimbench("memory", *small, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["images"] == 32
    assert told["total"] > told["activations"] > told["parameters"] > 1e6
    short = mimbench("memory", *small, "--free", told["total"] / 2**30 - 0.05)
    assert short.exit_code == 1
    assert "it fits with compute.accumulate=2" in short.output
    for free in ("nan", "inf", "0"):
        never = mimbench("memory", *small, "--free", free)
        assert never.exit_code == 1
        assert f"error: --free {free} must be positive" in never.output
    wrong = mimbench("memory", "cls/knn")
    assert wrong.exit_code == 1
    assert "det/..." in wrong.output


def test_what_does_not_fit_is_not_submitted(tmp_path: Path) -> None:
    runs = Run("cls/knn_handwritten", label="knn"), Run("det/mask_rcnn_handwritten", ("batch=32",), label="coco")
    study = Study("small", list(runs))
    cluster = Cluster(name="small", gpu_memory_gb=0.85)
    with pytest.raises(ValueError, match=r"coco: the GPUs of cluster small are too small: about .*; it fits with"):
        submit_cluster(study, tmp_path / "runs", cluster, dry=True)
    assert not (tmp_path / "runs" / "det").exists()


def test_a_detector_evaluated_as_it_is_fits_small_gpus() -> None:
    as_it_is = Run("det/mask_rcnn_handwritten", ("steps=0",), Path("detector.pth"), label="coco")
    must_fit([as_it_is], Cluster(name="small", gpu_memory_gb=0.85))


def test_a_whole_detector_is_evaluated_on_coco(trained: RunDir) -> None:
    """Its relative positions, trained here, and heads 24 wide, which weights do not tell, are no obstacle."""
    import torch

    tree = torch.load(trained.detector, weights_only=True)
    tree["model"]["backbone.net.blocks.1.attn.rel_pos_h"].add_(1)
    torch.save(tree, trained.detector)
    assert encoder_to_evaluate(trained.detector, Request(["coco"]))[0] == mask_rcnn_handwritten().encoder
    with pytest.raises(ValueError, match=r"detector\.pth"):
        encoder_to_evaluate(trained.detector, Request(["coco", "knn"]))

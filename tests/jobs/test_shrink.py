"""`mimbench data shrink`: from the command line to a run's result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mimbench.jobs.cli.main import app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for index in range(3):
            path = tmp_path / "in" / split / "class" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40 + index), (50 * index, 90, 20)).save(path)
    return tmp_path / "in"


def test_it_packs_says_what_it_did_and_is_checked_like_any_data_set(source: Path, tmp_path: Path) -> None:
    (source / "train" / "class" / "1.jpg").write_bytes(b"no image")
    arguments = ["data", "shrink", str(source), str(tmp_path / "out"), "--short", "32", "--workers", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "train: 2 images, 0.0 MiB" in done.stdout
    assert f"left out: {source}/train/class/1.jpg: is not an image" in done.stderr
    assert CliRunner().invoke(app, ["data", "check", "images", str(tmp_path / "out")]).exit_code == 0
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert [split["images"] for split in json.loads(again.stdout)] == [2, 3]


def test_faults_are_one_line(source: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["nowhere", str(tmp_path / "out")], "error: data=nowhere "),
        (
            [str(source), str(source)],
            f"error: {source} already exists and holds other files",
        ),
    ):
        done = CliRunner().invoke(app, ["data", "shrink", *arguments])
        assert done.exit_code == 1
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1

"""A run that fails at an image says which, and what was being done; that it failed there before, it says as well."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.store import create_or_find, resolve, runs_root
from mimbench.jobs.slurm import commands as slurm
from mimbench.jobs.slurm import job as slurm_job
from tests.command import mimbench

TIMMS_POSTERIZE = (  # what timm calls, which Pillow 13 refuses
    "import mimbench.cls.data.augment as ours, timm.data.auto_augment as timms; del ours.OURS[timms.posterize]; "
)
FAST = ("image=16", "encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.image=16", "encoder.patch=8")
FINETUNE = ("run", "cls/finetune_handwritten", *FAST, "batch=8", "epochs=1", "compute.workers=2")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """16 training and 4 validation images of two classes, of unequal sizes."""
    generator = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "photographs" / ("train" if number < 16 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (24 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photographs"


def _error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 takes what timm asks for")
def test_a_failing_augmentation_is_named_and_that_it_failed_twice(photographs: Path) -> None:
    asked = (*FINETUNE, f"data={photographs}", "randaugment=rand-m10-n15-p1-inc1")
    first = _error(mimbench(*asked, first=TIMMS_POSTERIZE))
    assert f"error: LoadingError: {photographs}/train/" in first
    assert ".jpg: PosterizeIncreasing at magnitude 10 failed: bits must be" in first
    assert "unexpected error; the traceback is in" in first
    assert "as well" not in first
    second = _error(mimbench(*asked, first=TIMMS_POSTERIZE))
    image = second.removeprefix("error: LoadingError: ").partition(": Poster")[0]
    assert image in first
    assert second.endswith("; attempt 1 failed at this image as well, so retrying the run will not help")
    [about] = runs_root().glob("cls/*/run.json")
    assert [attempt["image"] for attempt in RunDir(about.parent).attempts()] == [image, image]
    assert "in posterize" in (about.parent / "log.txt").read_text(), "the traceback of the loading process"
    assert execute(RunDir(about.parent)) == 0, "with ours it runs"


def test_a_damaged_image_is_named_and_that_it_failed_before(photographs: Path) -> None:
    damaged = photographs / "train" / "a" / "4.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    recipe, config = resolve("cls/finetune_handwritten", [*FINETUNE[2:], f"data={photographs}"])
    run = create_or_find(recipe.name, config, runs_root())
    assert [execute(run) for _ in range(3)] == [1, 1, 1]
    first, second, third = (attempt["why"] for attempt in run.attempts())
    assert first == f"{damaged}: the image is cut short; replace or delete this file"
    assert second.startswith(first + "; attempt 1 failed at this image as well")
    assert third == first + "; attempts 1, 2 failed at this image as well, so retrying the run will not help"


def test_another_image_is_another_matter(photographs: Path) -> None:
    recipe, config = resolve("cls/finetune_handwritten", [*FINETUNE[2:-1], "compute.workers=0", f"data={photographs}"])
    files = [photographs / "train" / "a" / f"{number}.jpg" for number in (4, 6)]
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][:300])
    run = create_or_find(recipe.name, config, runs_root())
    assert execute(run) == 1
    files[0].write_bytes(whole[0])  # repaired, as the message asks: the same run goes on
    files[1].write_bytes(whole[1][:300])
    assert execute(run) == 1
    assert [attempt["image"] for attempt in run.attempts()] == [str(file) for file in files]
    assert not any("as well" in attempt["why"] for attempt in run.attempts())


def test_the_image_of_another_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "run", "", {"recipe": "cls/knn", "stage": "cls", "identity": "0"})
    monkeypatch.setattr(slurm, "state_of", lambda job: "RUNNING")
    monkeypatch.setenv("RANK", "1")
    said = []
    for _ in range(2):
        run.end_attempt(run.begin_attempt(step=0, job="12"), "interrupted")
        slurm_job.note_rank_error(run, "x.png: Invert failed", "x.png")
        said.append(slurm_job.verdict(run, "12", 0))
    assert said[0] == "process 1: x.png: Invert failed"
    assert said[1] == said[0] + "; attempt 1 failed at this image as well, so retrying the run will not help"

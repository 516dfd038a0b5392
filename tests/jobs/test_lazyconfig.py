"""`mimbench lazyconfig`: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench.jobs.cli.main import app
from tests.det.conftest import write_coco

SMALL = (
    "det/mask_rcnn_handwritten", "single_class=false", "grad_clip=none", "heads.cascade=true", "compute.device=cpu",
)  # fmt: skip


def mimbench(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    done = CliRunner().invoke(app, ["lazyconfig", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_it_writes_a_config_and_its_start(tmp_path: Path) -> None:
    data, out = write_coco(tmp_path / "data", 2), tmp_path / "there.py"
    code, said, wrong = mimbench(*SMALL, f"data={data}", "-o", str(out))
    assert code == 0, wrong
    assert f"--config-file {out}" in said
    text = out.read_text()
    compile(text, str(out), "exec")
    assert "CascadeROIHeads)(" in text
    assert str(data / "annotations" / "instances_train2017.json") in text
    assert out.with_suffix(".pth").stat().st_size > 1000
    code, _, wrong = mimbench(*SMALL, f"data={data}", "-o", str(out))
    assert (code, "exists; remove it" in wrong) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("cls/knn_handwritten", "-o", "a.py"), "begins with det/"),
        ((*SMALL, "-o", "a.yaml"), "does not end in .py"),
        ((*SMALL, "data=nowhere", "-o", "a.py"), "nowhere"),
    ],
)
def test_what_it_refuses_in_one_line(arguments: tuple[str, ...], why: str) -> None:
    import re

    code, _, wrong = mimbench(*arguments)
    assert code == 1
    assert wrong.startswith("error: ")
    assert wrong.count("\n") == 1
    assert re.search(why, wrong)


def test_a_recipe_that_detectron2_cannot_train_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out" / "there.py"
    out.parent.mkdir()
    code, _, wrong = mimbench("det/mask_rcnn_handwritten", f"data={write_coco(tmp_path / 'data', 2)}", "-o", str(out))
    assert (code, "cannot train this recipe: grad_clip=1.0" in wrong) == (1, True), wrong
    assert not list(out.parent.iterdir())

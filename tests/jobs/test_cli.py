"""The `mimbench` command as people and scripts meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mimbench.engine.data.datasets import HANDWRITTEN
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli import commands
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.store import runs_root

if TYPE_CHECKING:
    from tests.jobs.conftest import Bench

ROOT = Path(__file__).parents[2]
Install = Callable[[Callable[[Any, RunDir], Outcome]], None]


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


def test_help_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys; from mimbench.jobs.cli.main import main; sys.argv = ['mimbench', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'submitit', 'jinja2', 'psutil', 'mimbench.jobs.runs.store'}\n"
        "print(*sorted(set(sys.modules) & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "", f"--help imports {done.stdout.splitlines()[-1]}"


def test_version() -> None:
    assert mimbench("--version").stdout.startswith("mimbench 0.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "cls/kn"), "unknown recipe 'cls/kn'; did you mean cls/knn"),
        (("run", "cls/knn_handwritten", "kk=3"), "unknown key 'kk'"),
        (("run", "cls/knn_handwritten", "k"), "'k' is not of the form key=value"),
        (("run", "cls/knn_handwritten", "k=many"), "k='many': input should be a valid integer"),
        (("run", "cls/knn_handwritten", "compute.precision=fp8"), "compute.precision='fp8': input should be 'auto'"),
        (("run", "cls/knn", "data=/no/such"), "data=/no/such"),
        (("run", "cls/knn", "data=handwriten"), "did you mean handwritten?"),
        (("run", "cls/knn_handwritten", "checkpoint=/no/such.pth"), "checkpoint /no/such.pth does not exist"),
        (("run", "tests"), "is not a run directory"),
        (("evaluate", "/no/such.pth", "--on", "knn"), "checkpoint /no/such.pth does not exist"),
        (("recipes", "cls/kn"), "unknown recipe 'cls/kn'"),
        (("data", "add", "x", "/no/such"), "/no/such is not a directory"),
        (("data", "add", "a b", "/"), "'a b' cannot name a data set"),
        (("data", "check", "coco", "/no/such"), "neither a directory nor a known data set"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = mimbench(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not runs_root().exists()


def test_wrong_usage_says_how() -> None:
    for arguments in (
        ("run",),
        ("evaluate", "x.pth"),
        ("data", "check", "video", "x"),
        ("demo", "--seeds", "0"),
        ("nope",),
    ):
        done = mimbench(*arguments)
        assert done.exit_code == 2
        assert "Usage: mimbench" in done.stderr


def test_run_prints_what_came_out_and_does_not_repeat_it(images: Path, stage: Install) -> None:
    stage(lambda config, run: Outcome({"knn_top1": 12.3456789}))
    first = mimbench("run", "cls/knn", f"data={images}")
    assert first.exit_code == 0
    metric, path = first.stdout.splitlines()
    assert metric.split() == ["knn_top1", "12.3457"]
    again = mimbench("run", "cls/knn", f"data={images}", "--json")
    assert "is not repeated" in again.stderr
    assert json.loads(again.stdout)["metrics"] == {"knn_top1": 12.3456789}
    assert json.loads(again.stdout)["run"] == path
    for target in (path, f"{path}/config.txt"):
        assert mimbench("run", target).stdout == first.stdout


def test_a_run_directory_with_overrides_is_another_run(images: Path, stage: Install) -> None:
    stage(lambda config, run: Outcome({"knn_top1": float(config.k)}))
    path = mimbench("run", "cls/knn", f"data={images}", "temperature=0.5").stdout.splitlines()[-1]
    other = mimbench("run", path, "k=10").stdout.splitlines()[-1]
    assert other != path
    assert "temperature = 0.5" in (Path(other) / "config.txt").read_text()
    assert mimbench("run", path, "compute.workers=0").stdout.splitlines()[-1] == path


def test_a_failing_run_exits_with_1_and_can_be_asked_again(images: Path, stage: Install) -> None:
    def fail(config: Any, run: RunDir) -> Outcome:
        raise ValueError(f"{config.data} holds no images")

    stage(fail)
    done = mimbench("run", "cls/knn", f"data={images}")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"error: {images} holds no images"
    stage(lambda config, run: Outcome({"knn_top1": 1.0}))
    assert mimbench("run", "cls/knn", f"data={images}").exit_code == 0


def test_ctrl_c_exits_with_130(images: Path, stage: Install) -> None:
    def interrupted(config: Any, run: RunDir) -> Outcome:
        raise KeyboardInterrupt

    stage(interrupted)
    done = mimbench("run", "cls/knn", f"data={images}")
    assert done.exit_code == 130
    assert "resumes from the last checkpoint" in done.stderr


def test_recipes() -> None:
    lines = mimbench("recipes").stdout.splitlines()
    assert any(line.startswith("cls/knn ") for line in lines)
    listed = json.loads(mimbench("recipes", "--json").stdout)
    assert [line.split()[0] for line in lines] == [recipe["name"] for recipe in listed]
    shown = mimbench("recipes", "cls/finetune_vitb").stdout
    assert "epochs = 100" in shown
    assert "# Fine-tune ViT-B/16" in shown


def test_data_sets_are_named_once(images: Path, stage: Install) -> None:
    assert mimbench("data", "add", "mine", images).exit_code == 0
    assert f"mine             {images}" in mimbench("data", "list").stdout
    listed = json.loads(mimbench("data", "list", "--json").stdout)
    assert listed["mine"] == {"path": str(images), "exists": True}
    assert HANDWRITTEN in listed
    stage(lambda config, run: Outcome({"knn_top1": 1.0}))
    assert mimbench("run", "cls/knn", "data=mine").exit_code == 0


def test_data_check(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "good" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(split), ord(label), 0)).save(folder / "1.png")
    good = mimbench("data", "check", "images", tmp_path / "good")
    assert (good.exit_code, good.stdout.splitlines()[-1]) == (0, "ok")
    (tmp_path / "good" / "val" / "a" / "1.png").write_bytes(b"no image")
    bad = mimbench("data", "check", "images", tmp_path / "good", "--json")
    assert bad.exit_code == 1
    report = json.loads(bad.stdout)
    assert not report["ok"]
    assert any("1.png" in finding["file"] for finding in report["findings"])
    (tmp_path / "empty").mkdir()
    assert mimbench("data", "check", "coco", tmp_path / "empty").exit_code == 1


def test_table_and_report(images: Path, stage: Install, tmp_path: Path) -> None:
    empty = mimbench("table")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "no finished runs under" in empty.stderr
    assert json.loads(mimbench("table", "--json").stdout) == []
    stage(lambda config, run: Outcome({"knn_top1": 12.3}))
    mimbench("run", "cls/knn", f"data={images}")
    assert "12.3" in mimbench("table").stdout
    assert json.loads(mimbench("table", "--json").stdout)[0]["metrics"]["knn_top1"]["mean"] == 12.3
    page = tmp_path / "page.html"
    assert mimbench("report", "-o", page).stdout == f"report: {page}\n"
    assert page.read_text().lstrip().startswith("<!")
    mimbench("report")
    assert (runs_root() / "report.html").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "page.pth"
    file.write_text("<!DOCTYPE html>")
    done = mimbench("evaluate", file, "--on", "knn", "--data", "handwritten")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {file} is a web page")
    assert not runs_root().exists()


def test_the_demo_ends_with_table_and_report(bench: Bench, monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(images))
    done = mimbench("demo", "--slots", "4")
    assert done.exit_code == 0, done.output
    assert len(bench.submitted) == 11
    assert "crossmae_handwritten" in done.stdout
    assert f"report: {runs_root() / 'report.html'}" in done.stdout
    assert " GiB" in done.stdout
    mimbench("demo")
    assert len(bench.submitted) == 11


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("mimbench ru", ["run"]),
        ("mimbench run cls/knn", ["cls/knn", "cls/knn_handwritten"]),
        ("mimbench run cls/knn compute.w", ["compute.workers=", "compute.wandb="]),
        ("mimbench data ", ["add", "list", "make", "shrink", "check"]),
    ],
)
def test_the_shell_completes(words: str, offered: list[str]) -> None:
    environment = {"_MIMBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = CliRunner().invoke(app, [], prog_name="mimbench", env=environment)
    assert done.stdout.split() == offered


def test_keys_of_what_is_no_recipe() -> None:
    assert commands.keys_of("nope") == []

"""A task is one folder: one that lies in a temporary directory is known to every command, without another file."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.task import Metric, Protocol, Quantity, Task
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs import tasks
from mimbench.jobs.runs.recipes import recipes

ROOT = Path(__file__).parents[2]
FILES = {
    "config.py": '''
"""What a run of the toy task depends on."""
from dataclasses import dataclass, field
from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.config import Compute, plumbing, science, speed

@dataclass(frozen=True)
class Descent:
    """Steps down a parabola."""
    data: str = science("handwritten")
    checkpoint: str | None = science(None)
    encoder: ViT = SIZES["S"]
    start: float = science(4.0)
    rate: float = science(0.25)
    steps: int = science(2)
    seed: int = science(0)
    chunk: int = speed(1)
    note: str = plumbing("")
    compute: Compute = field(default_factory=Compute)
''',
    "recipes.py": '''
"""Recipes of the toy task."""
from dataclasses import replace
from toy_task.config import Descent

def tiny() -> Descent:
    """Two steps of a descent."""
    return Descent()

def tiny_fast() -> Descent:
    """Two longer steps."""
    return replace(tiny(), rate=0.4)
''',
    "run.py": '''
"""A run of the toy task."""
import json
from mimbench.engine.run.result import Outcome

def run(config, run):
    """Descend; the score is how far down it came, in percent."""
    place = config.start
    for step in range(1, config.steps + 1):
        place -= config.rate * 2 * place
        line = {"step": step, "loss": place**2, "lr": config.rate, "toy_height": place}
        with run.metrics.open("a") as file:
            file.write(json.dumps(line) + "\\n")
    run.plots.mkdir()
    (run.plots / "descent.png").write_bytes(bytes.fromhex(PIXEL))
    score = 100 * (1 - (place / config.start) ** 2)
    return Outcome({"toy_score": score, "toy_height": place}, {"patience": 1}, family="ours")

PIXEL = (
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
)
''',
    "task.py": '''
"""The toy task."""
from mimbench.engine.run.cost import Cost
from mimbench.engine.run.task import (
    CardEntry, Metric, Operations, Picture, Predicted, Protocol, Quantity, Task,
)

def _predict(source):
    from toy_task.run import PIXEL
    def predict(files, device, score):
        for number, file in enumerate(files):
            found = [{"image_id": number, "source": source.name}]
            yield Predicted(file, found, "a height", 1, lambda out: out.write_bytes(bytes.fromhex(PIXEL)))
    return predict

def _flops():
    return Operations("steps down", ("toy", "all"), (("descent", "2.00"),), 1, [{"toy": "descent", "all": 2}])

def _configs():
    from toy_task.config import Descent
    return {"Descent": Descent}

def _run(config, run):
    from toy_task.run import run as descend
    return descend(config, run)

def _recipes():
    from toy_task import recipes
    return (recipes,)

TASK = Task(
    name="toy", title="toy descent", order=90, configs=_configs, run=_run, recipes=_recipes,
    protocols=(Protocol("toy", "toy/tiny"),),
    metrics=(
        Metric("toy_score", "descent", Quantity("depth"), column="measured"),
        Metric("toy_height", "height", Quantity("height", unit="m", digits=3, better="lower"), column="measured",
               headline=False, curve="height (m)"),
    ),
    counts="steps",
    glossary=(("descent", "How far down the toy came."),),
    pictures=(Picture("descent", "Descents", "The way down."),),
    card=(CardEntry("toy_score", "other", "Toy descent"),),
    settings=("rate", "steps"),
    cost=lambda config: Cost(config.steps * 3.0, "the toy's rule"),
    predict=_predict, flops=_flops,
)
''',
}
STUDY = """
from mimbench.jobs.studies.study import Run, Study
study = Study("toys", [Run("toy/tiny"), Run("toy/tiny_fast")])
"""
SITE = ("cluster", "add", "site", "partition=cpu", "gpus_per_node=0", "cpus_per_task=1", "minutes=5")


class Shell:
    """The command line, with the toy task installed or not; its runs and settings are in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = directory / "from elsewhere" / "toy_task"
        self.folder.mkdir(parents=True)
        for name, text in FILES.items():
            (self.folder / name).write_text(text)

    def __call__(self, *arguments: str | Path, installed: bool = True, **environment: str) -> str:
        """What a command prints that goes well."""
        done = self.process(*arguments, installed=installed, **environment)
        assert done.exit_code == 0, done.stderr
        return str(done.stdout)

    def process(self, *arguments: str | Path, installed: bool = True, **environment: str) -> Any:
        """How a command ends."""
        given = self.environment(installed) | environment
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench", env=given)

    def environment(self, installed: bool = True) -> dict[str, str]:
        """Where everything is."""
        return {
            "MIMBENCH_RUNS": str(self.directory / "runs"),
            "MIMBENCH_HOME": str(self.directory / "home"),
            "COLUMNS": "160",
            "MIMBENCH_TASKS": str(self.folder) if installed else "",
        }

    def json(self, *arguments: str | Path, installed: bool = True) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*arguments, "--json", installed=installed))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The command line with an evaluated encoder and a run from scratch of the toy task."""
    shell = Shell(tmp_path_factory.mktemp("toys"))
    torch.manual_seed(0)
    shape = ViT(32, 1, 2, patch=8, image=16)
    weights = VisionTransformer(shape).state_dict()
    save_encoder(shell.directory / "encoder.safetensors", weights, EncoderInfo("mae", shape, False))
    out = shell("evaluate", shell.directory / "encoder.safetensors", "--on", "toy", "toy.rate=0.3")
    assert "toy_score" in out
    yield shell
    sys.path.remove(str(shell.folder.parent))
    for name in [name for name in sys.modules if name.split(".")[0] == shell.folder.name]:
        del sys.modules[name]


def test_in_a_process_of_its_own(shell: Shell) -> None:
    command = [sys.executable, "-m", "mimbench", "run", "toy/tiny", "rate=0.5", "--json"]
    given = os.environ | shell.environment()
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"] == {"toy_score": 100.0, "toy_height": 0.0}


def test_commands_on_single_runs_and_files(shell: Shell, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    run = next((shell.directory / "runs" / "toy").iterdir())
    for source in (run, shell.directory / "encoder.safetensors"):  # detection comes first, and does not read this file
        out = tmp_path / f"of {source.name}"
        told = shell.json("predict", source, tmp_path / "a.png", "--output", out)
        assert told["results"] == [{"image_id": 0, "source": source.name}]
        assert (out / "a.png").is_file()
    assert "steps down" in shell("flops", "toy")
    assert shell.json("flops", "toy") == [{"toy": "descent", "all": 2}]
    refused = shell.process("lazyconfig", "toy/tiny", "--output", tmp_path / "toy.py")
    assert refused.exit_code == 1
    assert "toy/tiny does not train a detector; choose a recipe that begins with det/" in refused.stderr


def test_recipes_and_completion(shell: Shell) -> None:
    assert "toy/tiny_fast" in shell("recipes")
    assert shell.json("recipes", "toy/tiny")[0]["about"] == "Two steps of a descent."
    assert "toy" in shell("evaluate", "--help")
    for words, offered in (
        ("mimbench run toy/", ["toy/tiny", "toy/tiny_fast"]),
        ("mimbench run toy/tiny st", ["start=", "steps="]),
        ("mimbench evaluate x --on knn,to", ["knn,toy"]),
    ):
        asked = {"_MIMBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert shell("x", **asked).split() == offered
    assert "toy" not in shell("recipes", installed=False)


def test_run_makes_a_run_directory_like_any_other(shell: Shell) -> None:
    result = shell.json("run", "toy/tiny", "note=hello")
    assert result["stage"] == "toy"
    assert result["metrics"]["toy_score"] == pytest.approx(93.75)  # (1 - 2/4)^2 of the start, squared
    about = json.loads((Path(result["run"]) / "run.json").read_text())
    assert about["config"] == "Descent"
    assert "note" in about["groups"]["plumbing"]
    assert shell.json("run", "toy/tiny", "note=other", "chunk=2")["run"] == result["run"], "neither is science"


def test_every_view_shows_the_metric(shell: Shell) -> None:
    shell("run", "toy/tiny", "rate=0.3")
    shell("run", "toy/tiny", "rate=0.3", "encoder.width=32", "encoder.depth=1", "encoder.heads=2")
    text = shell("table")
    assert "descent" in text
    assert "97.4" in text
    rows = shell.json("table")
    cells = [row["metrics"]["toy_score"] for row in rows if row["metrics"]["toy_score"]]
    assert any(cell["mean"] == pytest.approx(100 * (1 - 0.4**4)) for cell in cells)
    page = shell.directory / "report.html"
    shell("report", "-o", page)
    html = page.read_text()
    for words in (
        "How far down the toy came.",
        "Descents",
        "The way down.",
        "height (m)",
        "average precision and depth in %. Height in m.",
    ):
        assert words in html, words
    shown = [row for row in shell.json("status") if row["recipe"] == "toy/tiny"]
    assert shown
    assert all(row["text"].startswith("toy_score ") and "height" not in row["text"] for row in shown)
    card = shell("card", shell.directory / "encoder.safetensors")
    assert "| Toy descent | 97.44 | one seed | rate 0.3, steps 2 |" in card


def test_what_is_not_installed_still_shows_by_its_key(shell: Shell) -> None:
    assert "toy_score" in shell("table", installed=False)
    assert "toy_height" in {key for row in shell.json("table", installed=False) for key in row["metrics"]}
    assert any("toy_score " in row["text"] for row in shell.json("status", installed=False))
    assert "toy_score" in shell("card", shell.directory / "encoder.safetensors", installed=False)
    page = shell.directory / "without.html"
    shell("report", "-o", page, installed=False)
    assert "toy_score" in page.read_text()
    refused = shell.process("run", "toy/tiny", installed=False)
    assert (refused.exit_code, "unknown recipe 'toy/tiny'" in refused.stderr) == (1, True)
    place = next(run for run in (shell.directory / "runs" / "toy").iterdir())
    refused = shell.process("run", place, "rate=0.1", installed=False)
    assert "its task is not installed" in refused.stderr


def test_studies_cost_and_clusters(shell: Shell) -> None:
    file = shell.directory / "toys.py"
    file.write_text(STUDY)
    lines = shell.json("plan", file)["runs"]
    assert {line["recipe"] for line in lines} == {"toy/tiny", "toy/tiny_fast"}
    assert shell.json("plan", file, "toy.seed=1")["counts"] == {"new": 2}
    shell(*SITE)
    written = shell("submit", file, "toy.seed=2", "--cluster", "site", "--dry-run")
    assert f"export MIMBENCH_TASKS='{shell.folder}'" in written
    assert "toy/tiny" in written


def test_a_folder_that_is_no_task_is_named(shell: Shell, tmp_path: Path) -> None:
    for environment, complaint in (
        (str(tmp_path), f"MIMBENCH_TASKS names {tmp_path}, which has no task.py"),
        (os.pathsep.join([str(shell.folder)] * 2), "a task 'toy' already exists"),
    ):
        refused = shell.process("recipes", MIMBENCH_TASKS=environment)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("error: ")
        assert complaint in refused.stderr


def test_an_installed_package_may_bring_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, about = tmp_path / "brought_along", tmp_path / "brought_along-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-along\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mimbench.tasks]\nbrought = brought_along.task:TASK\n")
    (package / "task.py").write_text(FILES["task.py"].replace('name="toy"', 'name="brought"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    [(where, task)] = [found for found in tasks._entry_points() if found[1].name == "brought"]
    assert where == "entry point brought = brought_along.task:TASK"
    assert task.title == "toy descent"
    (package / "other.py").write_text("TASK = 3\n")
    (about / "entry_points.txt").write_text("[mimbench.tasks]\nbrought = brought_along.other:TASK\n")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"brought = brought_along\.other:TASK of mimbench\.tasks is not a Task"):
        list(tasks._entry_points())


# ----------------------------------------------------------------------------------------------- the tasks that ship


def test_folders_that_hold_a_task_are_found() -> None:
    folders = {file.parent.name for file in ROOT.glob("*/task.py")}
    assert folders >= {"pretrain", "cls", "det"}
    assert folders <= {task.name for task in tasks.tasks().values()}, "each is linked to in mimbench/"


@pytest.mark.parametrize("task", tasks.tasks().values(), ids=lambda task: task.name)
def test_what_a_task_names_exists(task: Task) -> None:
    known = {recipe.name for recipe in recipes()}
    for protocol in task.protocols:
        named = [protocol.recipes] if isinstance(protocol.recipes, str) else list(protocol.recipes.values())
        assert {*named, protocol.handwritten or named[0]} <= known
    assert set(task.seedless) <= set(task.configs())
    kinds = {type(recipe.build()) for recipe in recipes() if recipe.stage == task.name}
    assert kinds <= set(task.configs().values())
    assert set(task.settings) <= _keys_of(task) | {"method.kind"}


def _keys_of(task: Task) -> set[str]:
    from mimbench.engine.run.config import leaves

    return {leaf.key for recipe in recipes() if recipe.stage == task.name for leaf in leaves(recipe.build())}


@pytest.mark.parametrize("task", tasks.tasks().values(), ids=lambda task: task.name)
def test_no_module_of_recipes_is_forgotten(task: Task) -> None:
    modules = list(task.recipes())
    packages = {module.__package__ for module in modules if module.__package__}
    there = {
        file.name
        for package in packages
        for file in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
        if package.endswith(".recipes")
    }
    assert {module.__name__ for module in modules} == there
    assert all(inspect.ismodule(module) for module in modules)


def test_a_task_is_checked_when_it_is_made() -> None:
    def make(**fields: Any) -> Task:
        return Task(name="x", title="x", configs=dict, run=lambda c, r: None, recipes=list, **fields)  # type: ignore[arg-type,return-value]

    score = Metric("a", "a", Quantity("a"))
    with pytest.raises(ValueError, match="metrics must have different names"):
        make(metrics=(score, score))
    with pytest.raises(ValueError, match="protocols must have different names"):
        make(protocols=(Protocol("p", "x/y"), Protocol("p", "x/z")))
    with pytest.raises(ValueError, match="main=b"):
        make(metrics=(score,), main="b")
    assert make(metrics=(score,)).main_metric == "a"

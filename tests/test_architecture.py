"""The shape of the project, checked: which way imports point, what starts without torch, how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("backbones", "pretrain", "cls", "det", "seg", "engine", "jobs")
MAY_IMPORT = {
    "engine": set(),
    "backbones": {"engine"},
    "pretrain": {"engine", "backbones"},
    "cls": {"engine", "backbones"},
    "det": {"engine", "backbones"},
    "seg": {"engine", "backbones"},
    "jobs": {"engine", "backbones", "pretrain", "cls", "det", "seg"},
}
LIGHT = (  # what must answer at once
    "jobs.cli.main", "jobs.runs.recipes", "jobs.runs.store", "jobs.studies.study", "jobs.demo", "jobs.tables.table",
    "jobs.tables.report", "jobs.cli.studies", "jobs.studies.study_files", "jobs.studies.plan", "jobs.studies.submit",
    "jobs.studies.sweep", "jobs.studies.search", "jobs.runs.status", "jobs.runs.control", "jobs.runs.explain",
    "jobs.runs.gpu_hours", "jobs.runs.gc", "jobs.runs.lock", "engine.run.config", "engine.run.rundir",
    "engine.data.datasets", "backbones.config", "backbones.content", "pretrain.recipes.crossmae",
    "cls.recipes.published", "det.recipes.mask_rcnn",
)  # fmt: skip


def _files() -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute here"
            yield node.module


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    for file in (ROOT / folder).rglob("*.py"):
        names = [name.split(".") for name in _imports(file)]
        bare = {name[0] for name in names} & set(FOLDERS)
        assert not bare, f"{file.relative_to(ROOT)} imports {sorted(bare)}, without `mimbench.` in front"
        ours = {name[1] for name in names if name[0] == "mimbench" and len(name) > 1}
        assert ours <= allowed, f"{file.relative_to(ROOT)} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("module", LIGHT)
def test_starts_without_the_heavy_libraries(module: str) -> None:
    heavy = {"torch", "torchvision", "timm", "mmengine", "matplotlib", "sklearn", "pycocotools", "cv2"}
    code = f"import sys, mimbench.{module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"{module} imports {done.stdout.strip()}"


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_a_sitting(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{file} has no module docstring"
    assert len(file.read_text().splitlines()) <= 400, f"{file} is longer than 400 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{file}: {node.name} is longer than 80 lines"


def test_no_drawers() -> None:
    names = {part for file in _files() for part in (file.stem, file.parent.name)}
    assert not names & {"utils", "util", "misc", "helpers", "common"}

"""The shape of the project, checked: which way imports point, what starts without torch, how long files are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mimbench

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
    "cls.recipes.published", "det.recipes.mask_rcnn", "engine.run.task", "pretrain.task", "cls.task", "det.task",
    "pretrain.cost", "cls.cost", "det.cost", "jobs.runs.tasks",
)  # fmt: skip


def _files() -> list[Path]:
    api = sorted((ROOT / "mimbench").glob("*.py"))
    return api + sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


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


def _module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[: -1 if parts[-1] == "__init__" else None]
    return ".".join(parts if parts[0] == "mimbench" else ("mimbench", *parts))


def _graph() -> dict[str, set[str]]:
    """Each module and the modules it imports: at the top, within functions, and for the type checker alone."""
    modules = {_module(file): file for file in (*_files(), *(ROOT / "mimbench").glob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                graph[module] |= inner or ({node.module} & modules.keys())
    return graph


def _circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules of which each leads to every other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = list(graph[start])
        while left:
            if (module := left.pop()) not in found:
                found.add(module)
                left += graph[module]
        return found

    leads_to = {module: reached(module) for module in graph}
    inside = {module for module in graph if module in leads_to[module]}
    circles = {
        frozenset(other for other in inside & leads_to[module] if module in leads_to[other]) for module in inside
    }
    return sorted(map(set, circles), key=sorted)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert [sorted(circle) for circle in _circles(_graph())] == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}
    assert _circles(graph) == [{"b", "c"}, {"d"}]
    assert {"mimbench.engine.training.session", "mimbench.engine.run.rundir"} <= _graph()[
        "mimbench.engine.training.train"
    ]
    assert "mimbench.engine.training.loop" in _graph()["mimbench.engine.training.train"]  # within a function
    assert "mimbench.jobs.local.display" in _graph()["mimbench.jobs.local.scheduler"]  # for the type checker alone


def test_the_public_api_stands_above_everything() -> None:
    modules = {f"mimbench.{file.stem}" for file in (ROOT / "mimbench").glob("*.py")}
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                taken = {alias.name for alias in node.names} if node.module == "mimbench" else set()
                assert not taken & set(mimbench.__all__), f"{file.relative_to(ROOT)} imports the public API"
                assert node.module not in modules, f"{file.relative_to(ROOT)} imports {node.module}, of the public API"


@pytest.mark.parametrize("module", LIGHT)
def test_starts_without_the_heavy_libraries(module: str) -> None:
    heavy = {"torch", "torchvision", "timm", "mmengine", "matplotlib", "sklearn", "pycocotools", "cv2"}
    code = f"import sys, mimbench.{module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"{module} imports {done.stdout.strip()}"


def test_checkpoints_are_inspected_without_timm_and_torchvision() -> None:
    """They, and torch._dynamo which torchvision imports, take twice as long as torch."""
    heavy = {"torchvision", "timm", "mmengine", "torch._dynamo", "mimbench.backbones.vit"}
    modules = "mimbench.backbones.weights, mimbench.backbones.checkpoints.report_text"
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_a_sitting(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{file} has no module docstring"
    assert len(file.read_text().splitlines()) <= 400, f"{file} is longer than 400 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{file}: {node.name} is longer than 80 lines"


def test_jobs_names_no_task() -> None:
    """Not in code, comments, docstrings or templates: what `jobs` knows of a task is in its `task.py`."""
    named = re.compile(
        r"""['"](pretrain|cls|det|seg)['"]|mimbench\.(pretrain|cls|det|seg)\b|coco|knn|finetune|box_ap"""
    )
    allowed = (ROOT / "jobs" / "papers", ROOT / "jobs" / "studies" / "ready", ROOT / "jobs" / "demo.py")
    files = [file for file in (ROOT / "jobs").rglob("*") if file.suffix in (".py", ".jinja", ".toml")]
    files = [file for file in files if not any(file.is_relative_to(place) for place in allowed)]
    assert len(files) > 70
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if named.search(line)
    ]
    assert found == []


def test_tasks_do_not_wait_for_their_configs() -> None:
    """Every command imports every `task.py`."""
    code = "import sys, mimbench.jobs.runs.tasks as t; t.tasks(); print(*[m for m in sys.modules if 'config' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("mimbench.")]


def test_no_drawers() -> None:
    names = {part for file in _files() for part in (file.stem, file.parent.name)}
    assert not names & {"utils", "util", "misc", "helpers", "common"}

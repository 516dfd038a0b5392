"""The public Python API: its names, and that importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import mimbench

ROOT = Path(__file__).parents[2]
NAMES = [
    "Backbone", "Features", "ImageEncoder", "Record", "Results", "Run", "Study", "Table", "evaluate_coco", "inspect",
    "load_backbone", "load_encoder", "results", "run", "table",
]  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "mmengine", "numpy", "pydantic", "pandas", "matplotlib", "sklearn", "typer"}


def test_the_names_are_these() -> None:
    assert mimbench.__all__ == NAMES
    assert set(NAMES) <= set(dir(mimbench))
    assert mimbench._MODULES.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_says_what_it_is(name: str) -> None:
    assert getattr(mimbench, name).__doc__
    assert getattr(mimbench, name) is getattr(mimbench, name)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "mimbench" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imports == mimbench._MODULES
    assert (files("mimbench") / "py.typed").is_file()


@pytest.mark.parametrize(
    "code",
    ["import mimbench", "import mimbench; mimbench.__version__", "from mimbench import Run, Study; Study('s', [])"],
)
def test_import_loads_nothing_heavy(code: str) -> None:
    allowed = {"pydantic"} if "Study" in code else set()
    watched = f"{code}\nimport sys; print(*sorted(set(sys.modules) & {HEAVY - allowed!r}))"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_tables_and_results_need_no_torch(tmp_path: Path) -> None:
    code = "import mimbench, sys; mimbench.table('crossmae/table2'); mimbench.results(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_version_and_unknown_names() -> None:
    assert mimbench.__version__ == version("mimbench")
    with pytest.raises(AttributeError, match="module 'mimbench' has no attribute 'load_encodr'"):
        _ = mimbench.load_encodr  # type: ignore[attr-defined]
    code = "import mimbench; mimbench.load_encodr"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Did you mean: 'load_encoder'?" in done.stderr.splitlines()[-1]

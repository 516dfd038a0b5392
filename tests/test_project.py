"""The project's own files agree with one another."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NEEDS = ("nargs", "required")  # of an argument: whether it may be left out
PINS = (ROOT / "requirements.txt").read_text()


def _pinned() -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for line in PINS.splitlines():
        requirement = Requirement(line)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", line
        versions.setdefault(_normal(requirement.name), []).append(specifier.version)
    return versions


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_range_holds_its_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = _pinned()
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        versions = pinned.get(_normal(wanted.name))
        assert versions, f"{wanted.name} is in pyproject.toml but not in requirements.txt: run `make requirements`"
        assert all(version in wanted.specifier for version in versions), f"{text} but {versions}"


def test_conda_installs_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert "-r requirements.txt" in pip
    python = next(item for item in environment["dependencies"] if str(item).startswith("python"))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert python == f"python{wanted}"


def test_torch_and_torchvision_are_a_matching_pair() -> None:
    assert _pinned()["torch"] == ["2.15.0"]
    assert _pinned()["torchvision"] == ["0.29.2"]


def test_make_bench_runs_scripts_that_need_no_argument() -> None:
    left_out = re.search(r"^NOT_ALONE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert left_out
    scripts = {file.stem: file.read_text() for file in (ROOT / "benchmarks").glob("*.py")}
    assert set(left_out[1].split()) < set(scripts)
    for name in set(scripts) - set(left_out[1].split()):
        assert "__main__" in scripts[name], f"{name} does nothing: add it to NOT_ALONE"
        calls = (node for node in ast.walk(ast.parse(scripts[name])) if isinstance(node, ast.Call))
        for call in calls:
            if not (isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"):
                continue
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg in NEEDS}
            named = ast.literal_eval(call.args[0])
            optional = named.startswith("-") or given.get("nargs") in ("*", "?")
            assert optional and not given.get("required"), f"{name} needs {named}: add it to NOT_ALONE"


def test_no_file_names_a_registry() -> None:
    hosts = re.compile(r"://[\w.-]*(?:py" + r"pi|pythonhosted|npmjs|deb" + r"ian)\.org")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_symlink():
            continue
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        assert not hosts.search(text), f"{name} names a registry's host"


def test_the_container_holds_all_folders_of_the_code() -> None:
    recipe = (ROOT / "containers" / "mimbench.def").read_text()
    folders = ["mimbench", *(link.name for link in (ROOT / "mimbench").iterdir() if link.is_symlink())]
    assert len(folders) > 7
    for name in folders:
        assert f"    {name} /opt/mimbench/{name}\n" in recipe, name


def _required(name: str) -> Iterator[str]:
    """The requirements of an installed package here, without extras."""
    for text in importlib.metadata.requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            yield _normal(wanted.name)


def test_all_that_mimbench_needs_is_pinned_and_no_development_tool_is_needed() -> None:
    """`make cpu` and the container install mimbench's requirements and take requirements.txt as constraints."""
    waiting, needed = ["mimbench"], set[str]()
    while waiting:
        names = set(_required(waiting.pop())) - needed
        needed |= names
        waiting += names
    assert needed - _pinned().keys() <= {"setuptools"}
    assert {"torch", "numpy", "rich"} <= needed
    assert not needed & {"pytest", "mypy", "ruff", "pandas", "transformers", "mkdocs"}
    for file in ("Makefile", "containers/mimbench.def"):
        assert "--constraint requirements.txt" in (ROOT / file).read_text(), file


def test_every_line_of_the_conda_environment_is_one_that_pip_takes() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [lines] = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    options = {line.split()[0] for line in lines if line.startswith("-")}
    assert options <= {"-r", "-e", "-c"}, "pip takes no other option in a file of requirements"


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()

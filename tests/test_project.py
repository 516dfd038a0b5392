"""The project's own files agree with one another."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
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


def test_the_environment_without_a_gpu_has_what_mimbench_needs() -> None:
    left_out = re.findall(r"grep -vE '(.*?)' requirements\.txt", (ROOT / "Makefile").read_text())[0]
    kept = [line for line in PINS.splitlines() if not re.match(left_out, line)]
    names = {_normal(Requirement(line).name) for line in kept}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {_normal(Requirement(text).name) for text in project["dependencies"]} <= names
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()

"""`make soak`: the soak on the lowest and on the newest allowed versions of what decides pixels and arithmetic.

    python tests/soak/versions.py [lowest] [newest]

Makes an environment of each kind in build/soak with uv, runs the soak and the golden values of the augmentation there,
and prints a table: versions, recipes, draws, minutes, outcome. What is allowed stands in pyproject.toml: widen a range
only with this table in hand. Takes about ten minutes an environment on one core, and some gigabytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "soak"
SOAKED = ("torch", "torchvision", "timm", "pillow", "numpy")
TESTS = ("tests/soak", "tests/cls/test_augment.py", "tests/cls/test_data.py", "tests/engine/test_images.py")
ENVIRONMENTS = ("lowest", "newest")
VERSIONS = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {SOAKED}}}))"


def allowed() -> dict[str, Requirement]:
    """What pyproject.toml allows of each package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {wanted.name: wanted for wanted in map(Requirement, project["dependencies"])}
    return {name: found[name] for name in SOAKED}


def floor(wanted: Requirement) -> str:
    """The lowest version that a requirement allows.

    Raises:
        ValueError: if it has no lower or no upper bound.
    """
    bounds = {bound.operator: bound.version for bound in wanted.specifier}
    if not {">=", "<"} <= set(bounds):
        raise ValueError(f"pyproject.toml: {wanted} needs a lower and an upper bound, >= and <")
    return bounds[">="]


def make(environment: str) -> Path:
    """The Python of the environment, made anew."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise SystemExit("there is no uv, which makes the environments: `make soak` installs it")
    python = HOME / environment / "bin" / "python"
    install: list[Path | str] = [uv, "pip", "install", "--quiet", "--python", python]
    ranges = allowed()
    exact = [f"{name}=={floor(wanted)}" for name, wanted in ranges.items()] if environment == "lowest" else []
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, HOME / environment])
    _run([*install, "--requirement", ROOT / "pyproject.toml", "--extra", "dev", *exact])
    _run([*install, "--no-deps", "--editable", ROOT])
    return python


def _run(command: list[Path | str]) -> None:
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT)


def soak(environment: str, table: Table) -> bool:
    """Make the environment, run the tests there, add a line to the table; whether all went well."""
    python, report = make(environment), HOME / f"{environment}.xml"
    versions = json.loads(subprocess.check_output([python, "-c", VERSIONS], text=True))
    began = time.monotonic()
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "junit_family=legacy",
        f"--junitxml={report}",
        *TESTS,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MIMBENCH_SOAK": "1"}
    passed = subprocess.run(list(map(str, tests)), cwd=ROOT, env=env, check=False).returncode == 0
    minutes = (time.monotonic() - began) / 60
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    counted = {name: _sum(suite, name) for name in ("recipes", "draws")}
    outcome = f"{counts['tests']} tests passed" if passed else f"{counts['failures'] + counts['errors']} FAILED"
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    cells = [environment, *versions.values(), counted["recipes"], f"{counted['draws']:,}", f"{minutes:.1f}"]
    table.add_row(*map(str, cells), outcome + skipped)
    return passed


def _sum(suite: ElementTree.Element, name: str) -> int:
    return sum(int(given.get("value", "0")) for given in suite.iter("property") if given.get("name") == name)


def main(environments: list[str]) -> int:
    """The exit code: 1 if anything failed."""
    table = Table("environment", *SOAKED, "recipes", "draws", "minutes", "outcome", title="soak")
    passed = [soak(environment, table) for environment in environments or ENVIRONMENTS]
    Console(width=140).print(table)
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

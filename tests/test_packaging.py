"""What `pip install mimbench` gives: one import name that works outside the repository, beside a stranger's modules.

The wheel and the source distribution are built by the build backend as any frontend calls it, from the files that git
knows, and installed by pip into empty environments. Their dependencies are those of the environment that runs the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from mimbench.engine.data.handwritten import Sizes, make_handwritten

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
FIVE_STEPS = ("epochs=1", "warmup_epochs=0.5", "batch=20", "compute.workers=0", "compute.log_every=1")
FOREIGN = ("engine.py", "jobs.py", "cls.py", "pretrain.py", "backbones/__init__.py", "det/__init__.py")
SCRIPT = """
import sys
import backbones, cls, det, engine, jobs, pretrain
import mimbench
import mimbench.det.config
assert {module.OWNER for module in (backbones, cls, det, engine, jobs, pretrain)} == {"a stranger"}
settings = dict(epochs=1, warmup_epochs=0.5, batch=20)
record = mimbench.run("pretrain/crossmae_handwritten", ["compute.workers=0"], **settings)
features = mimbench.load_encoder(record.run.path).features(sys.argv[1])
print(mimbench.__file__, record.state, tuple(features.pooled.shape))
"""


def _run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git knows, or would add; symbolic links stay links."""
    place = tmp_path_factory.mktemp("sources") / "mimbench"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():  # not one that was removed and not committed yet
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


@pytest.fixture(scope="module")
def wheels(sources: Path) -> dict[str, Path]:
    """The wheel built from the repository, and the wheel built from the source distribution, by how they were built."""
    dist = sources.parent / "dist"
    for hook in ("build_sdist", "build_wheel"):
        (dist / hook).mkdir(parents=True)
        _run(sys.executable, "-c", BACKEND, hook, dist / hook, cwd=sources)
    [sdist] = dist.glob("build_sdist/*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(dist, filter="data")
    (dist / "from_sdist").mkdir()
    _run(
        sys.executable, "-c", BACKEND, "build_wheel", dist / "from_sdist", cwd=dist / sdist.name.removesuffix(".tar.gz")
    )
    [wheel], [second] = dist.glob("build_wheel/*.whl"), dist.glob("from_sdist/*.whl")
    return {"wheel": wheel, "sdist": second}


@pytest.fixture(scope="module")
def environments(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The `bin` directory of an environment for each, with nothing of ours but what pip installed."""
    folders = {}
    for name, wheel in wheels.items():
        place = tmp_path_factory.mktemp(name) / "env"
        _run(sys.executable, "-m", "venv", place, cwd=place.parent)
        _run(place / "bin" / "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=place.parent)
        [site] = place.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        folders[name] = place / "bin"
    return folders


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set: 100 images, five steps of 20."""
    return make_handwritten(tmp_path_factory.mktemp("data") / "digits", 0, Sizes(100, 20, coco_train=8, coco_val=8))


def test_both_hold_every_file_once_under_one_name(sources: Path, wheels: dict[str, Path]) -> None:
    contents = {}
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            contents[name] = {one: archive.read(one) for one in names if not one.endswith("/RECORD")}
            [top_level] = [archive.read(one) for one in names if one.endswith("/top_level.txt")]
        assert top_level.decode().split() == ["mimbench"]
        assert len(names) == len(set(names))
        info = {one.partition("/")[0] for one in names}
        assert info == {"mimbench", f"mimbench-{wheel.name.split('-')[1]}.dist-info"}
    assert contents["wheel"] == contents["sdist"]
    packages = [link.name for link in (sources / "mimbench").iterdir() if link.is_symlink()]
    wanted = {
        f"mimbench/{file.relative_to(sources / 'mimbench' if folder == 'mimbench' else sources).as_posix()}"
        for folder in ("mimbench", *packages)
        for file in (sources / folder).rglob("*")
        if file.is_file() and not any(part.is_symlink() for part in (file, *file.parents))
    }
    assert "mimbench/py.typed" in wanted
    assert "mimbench/jobs/papers/crossmae.toml" in wanted
    assert {name for name in contents["wheel"] if ".dist-info/" not in name} == wanted


@pytest.mark.parametrize("built", ["wheel", "sdist"])
def test_the_command_works_outside_the_repository(
    built: str, environments: dict[str, Path], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(digits))
    program = environments[built] / "mimbench"
    where = _run(environments[built] / "python", "-c", "import mimbench; print(mimbench.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(environments[built].parent))
    assert "--method" in _run(program, "demo", "--help", cwd=tmp_path).stdout
    assert "crossmae/table2" in _run(program, "papers", "list", cwd=tmp_path).stdout
    assert "crossmae/table2" in _run(program, "studies", cwd=tmp_path).stdout
    assert "52.1" in _run(program, "table", "crossmae/table2", cwd=tmp_path).stdout
    assert _run(program, "--version", cwd=tmp_path).stdout.startswith("mimbench 0.")
    done = _run(program, "run", "pretrain/crossmae_handwritten", *FIVE_STEPS, cwd=tmp_path)
    run = Path(done.stdout.splitlines()[-1])
    steps = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert len(steps) == 5
    assert (run / "encoder.safetensors").is_file()


def test_a_strangers_modules_are_not_in_the_way(
    environments: dict[str, Path], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(digits))
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('OWNER = "a stranger"\n')
    (tmp_path / "script.py").write_text(SCRIPT)
    python, image = environments["wheel"] / "python", next(digits.rglob("val/*/*"))
    file, state, shape = _run(python, "script.py", image, cwd=tmp_path).stdout.splitlines()[-1].split(" ", 2)
    assert file.startswith(str(environments["wheel"].parent))
    assert (state, shape) == ("done", "(1, 96)")
    [run] = Path(os.environ["MIMBENCH_RUNS"]).glob("pretrain/*/run.json")
    words = (
        "evaluate",
        run.parent,
        "--on",
        "knn",
        "--data",
        digits,
        "k=10",
        "neighbours=10",
    )  # in processes of its own
    done = _run(python, "-m", "mimbench", *words, cwd=tmp_path)
    assert "knn_top1" in done.stdout

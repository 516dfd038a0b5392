"""What README.md and docs/ tell people to type does what they say.

Every command is read by the command line's own parser, so that its name, options and values exist; recipes, their keys,
studies, tables and protocols are looked up. Then the commands of a page are run, in its order, in a directory with runs
of published recipes in it (their numbers made up), as far as they need no cluster, no data set that is not here, and no
minutes: `ELSEWHERE` says of each that is not run which test runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

from mimbench.engine.run import result
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.recipes import find, recipes
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import protocols
from mimbench.jobs.studies.study_files import load_study, ready_studies
from mimbench.jobs.tables import paper, paper_check
from tests.jobs.published import Published
from tests.jobs.test_formats import fill

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {  # what is not run here, by how it begins, and what runs it
    "run ": "tests/jobs/test_end_to_end.py; published recipes need their data and GPUs",
    "evaluate ": "tests/jobs/test_evaluate.py",
    "doctor --data": "tests/jobs/test_doctor.py",
    "doctor --cluster": "tests/slurm",
    "cluster check": "tests/slurm",
    "data check": "tests/cls, tests/det: of ImageNet and COCO",
    "data shrink": "tests/jobs/test_shrink.py",
    "data make": "tests/jobs/test_end_to_end.py, by its name",
    "submit lr ": "tests/slurm",
    "submit halved": "tests/engine/test_rungs.py stops runs at rungs, tests/jobs/test_budget.py holds them",
    "submit short.py --cluster a100$": "tests/slurm",
    "submit short.py --cluster local": "tests/jobs/test_local.py",
    "submit crossmae": "tests/slurm",
    "serve": "tests/jobs/test_serve.py",
    "embed": "tests/jobs/test_embed.py",
    "retry": "tests/jobs/test_steer.py",
    "watch": "tests/jobs/test_watch.py",
    "cancel --study": "tests/jobs/test_steer.py, of studies that were submitted",
    "cost --study": "tests/jobs/test_seeing_runs.py, of studies that were submitted",
    "report --study": "tests/jobs/test_report.py, of studies that were submitted",
    "status --study": "tests/jobs/test_seeing_runs.py, of studies that were submitted",
    "sweep cls/finetune_vitb base_lr=1e-4..1e-2:log layer_decay=0.5..0.9 --optuna": "tests/jobs/test_sweep.py",
    "compare-predictions": "tests/jobs/test_predictions.py",
    "intervals": "tests/jobs/test_predictions.py",
    "predict": "tests/jobs/test_detection.py",
    "memory": "tests/jobs/test_detection.py",
    "lazyconfig": "tests/jobs/test_lazyconfig.py",
    "flops": "tests/pretrain/test_flops.py",
    "table crossmae/compute": "tests/jobs/test_compute.py",
    "--install-completion": "it writes into the shell's settings",
    "--help": "tests/jobs/test_cli.py",
}


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def _lines(page: Path) -> list[str]:
    """What a page says to type; of a recorded session what was typed."""
    shell = [line for block in _blocks(page, "bash") for line in block.splitlines()]
    typed = [line[2:] for block in _blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    lines = (re.sub(r"^\w+=\$\((.*?) \| tail -n 1\)", r"\1", line.strip()) for line in shell + typed)
    return [line for line in lines if line and not line.startswith("#")]


def _words(line: str) -> list[str]:
    """Of a `mimbench` command, without its name."""
    return shlex.split(line, comments=True)[1:]


RECIPES = {recipe.name for recipe in recipes()}
COMMANDS = sorted({
    shlex.join(_words(line)) for page in PAGES for line in _lines(page) if line.startswith("mimbench ")
})  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str) -> None:
    words, found = shlex.split(command), typer.main.get_command(app)
    if words[0].startswith("--"):
        assert words[0] in {"--install-completion", *(name for one in found.params for name in one.opts), "--help"}
        return
    while getattr(found, "commands", None):
        assert words[0] in found.commands  # type: ignore[attr-defined]
        found, words = found.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    found.make_context("mimbench", words)  # raises for what it does not know


@pytest.mark.parametrize("command", COMMANDS)
def test_what_it_names_is_there(command: str) -> None:
    name, *words = shlex.split(command)
    plain = [word for word in words if not word.startswith("-")]
    if name == "run" and "/" in plain[0]:
        resolve(plain[0], [word for word in plain[1:] if "=" in word])
    elif name in ("memory", "lazyconfig", "recipes", "sweep") and plain:
        find(plain[0])
    elif name == "evaluate":
        assert set(words[words.index("--on") + 1].split(",")) <= set(protocols())
    elif name == "table" and plain and words[0] == plain[0]:
        assert plain[0] == "crossmae/compute" or paper.find(plain[0])
    elif name in ("plan", "submit") and "/" in plain[0]:
        assert plain[0] in ready_studies()


def test_names_in_prose_are_there() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`mimbench ([a-z]\S*?)[ `]", text)) <= known, page
        for file in re.findall(r"`((?:tests|jobs|pretrain|backbones|engine|cls|det|docs|benchmarks)/[\w/.]*)`", text):
            assert (ROOT / file).exists() or file in RECIPES or "your" in file, f"{page.name}: {file}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pictures_are_small() -> None:
    sizes = [file.stat().st_size for file in (ROOT / "docs" / "images").glob("*")]
    assert max(sizes) < 300_000
    assert sum(sizes) < 1_000_000


def test_everything_else_it_says_to_type_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for line in _lines(page):
            if line.startswith("make ") and "/" not in line:
                assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
            for file in re.findall(r"\b(?:requirements\.txt|environment\.yml)\b", line):
                assert (ROOT / file).exists()


# ----------------------------------------------------------------------------------------------------- and it works


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with runs, a checkpoint and a study in it, as a reader who has done all of this has."""
    place = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "commit", lambda: None)
        runs = fill(place / "runs")
        runs.pretrain()
        _give_categories(runs)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0)
    for name in ("checkpoint.pth", "encoder.safetensors"):
        torch.save(model.state_dict(), place / name)
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224", num_classes=0)
    zeros = {key: torch.zeros(1).expand(value.shape) for key, value in base.state_dict().items()}  # a small file
    torch.save(zeros, place / "crossmae_vitb.pth")
    (place / "short.py").write_text(next(b for b in _blocks(ROOT / "docs" / "clusters.md", "python")))
    (place / "my_encoder.py").write_text(next(b for b in _blocks(ROOT / "docs" / "evaluate.md", "python")))
    for folder in ("imagenet/train/n01440764", "imagenet/val/n01440764", "birds/train/wren", "birds/val/wren"):
        (place / "datasets" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), (len(folder), 90, 40)).save(place / "datasets" / folder / "a.png")
    for folder in ("annotations", "train2017", "val2017"):
        (place / "datasets" / "coco" / folder).mkdir(parents=True)
    yield place


def test_no_command_depends_on_how_many_runs_match() -> None:
    for command in COMMANDS:
        assert not re.search(r"(?:^|[ /])\S*\*", command), f"{command}: a pattern of the shell may match several runs"


def _give_categories(runs: Published) -> None:
    """And a log."""
    for file in (runs.root / "det").glob("*/result.json"):
        (file.parent / "log.txt").write_text("done\n")
        (file.parent / "categories.json").write_text('[{"id": 1, "name": "person", "box_ap": 50.0}]')


def _is_elsewhere(command: str) -> bool:
    return any(re.match(how, command) for how in ELSEWHERE) and not command.startswith("data check images")


def _given(words: list[str], place: Path) -> list[str]:
    """Paths of this machine and names of runs for those that stand for them."""
    names = iter(sorted(file.parent.name for file in (place / "runs" / "det").glob("*/result.json")))
    return [next(names) if word == "RUN" else word.replace("/datasets/", f"{place}/datasets/") for word in words]


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "slurm-session"], ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(
    page: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    shutil.copytree(workplace, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("MIMBENCH_RUNS")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("imagenet", "coco"):
        _mimbench(["data", "add", name, str(place / "datasets" / name)])
    _mimbench(["cluster", "add", "a100", "partition=gpu", "gpus_per_node=8"])
    for line in _lines(page):
        words = _words(line) if line.startswith("mimbench ") else []
        if words and not _is_elsewhere(" ".join(words)):
            _mimbench(_given(words, place))


def _mimbench(words: list[str]) -> None:
    done: Any = CliRunner().invoke(app, words, prog_name="mimbench")
    assert done.exit_code == 0, f"mimbench {shlex.join(words)}\n{done.output}\n{done.exception!r}"


def test_the_encoder_in_prose_is_evaluated(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    small = ["data=datasets/birds", "neighbours=1", "k=1", "compute.workers=0", "compute.precision=fp32"]
    _mimbench(["run", "cls/knn", "checkpoint=my_encoder.py:build", *small])


def test_every_reason_for_not_running_is_needed() -> None:
    for how in ELSEWHERE:
        assert any(re.match(how, command) for command in COMMANDS), f"no page says `mimbench {how}`"


def test_studies_in_prose_are_studies(workplace: Path) -> None:
    study = load_study(str(workplace / "short.py"), workplace / "runs")
    study.check()
    assert len(study.runs) == 6


def test_the_paper_in_prose_is_a_paper(tmp_path: Path) -> None:
    shutil.copytree(paper.PAPERS, tmp_path / "papers")
    [text] = _blocks(ROOT / "docs" / "adding.md", "toml")
    (tmp_path / "papers" / "mimx.toml").write_text(text)
    assert paper_check.problems(tmp_path / "papers") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_in_prose_compiles(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, str(page), "exec")


def test_the_site_is_built_without_a_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # whatever asks gets no answer
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **proxies}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    index = (tmp_path / "site" / "site" / "search_index.js").read_text()
    assert index.startswith("window.searchIndex = {")
    assert "preemption" in index
    for page in PAGES[1:]:
        html = (tmp_path / "site" / page.with_suffix(".html").name).read_text()
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.https?://", html), (
            f"{page.name} loads from elsewhere"
        )
        assert "site/search.js" in html
        assert 'data-bs-theme-value="dark"' in html or "darkmode" in html
        assert "```bash" not in page.read_text() or 'class="codehilite"' in html


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_on_the_site_can_be_read() -> None:
    """Every colour of text has a contrast of at least 4.5 on its ground, in light and in dark (WCAG 2, AA)."""
    style = (ROOT / "docs" / "site" / "style.css").read_text()
    schemes = re.findall(r"(?::root|\[data-bs-theme=\"dark\"\]) \{ (--.*?) \}", style)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        ground = _luminance(colours.pop("ground"))
        for name, colour in colours.items():
            bright, dark = sorted((_luminance(colour), ground), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, colour)

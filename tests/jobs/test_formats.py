"""Papers' tables in every format over fixed runs: the files in `golden/tables/`, once read by a person, stay so.

python -m tests.jobs.test_formats     writes them anew; look at what `git diff` then shows
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.engine.run import result
from mimbench.jobs.cli.main import main
from mimbench.jobs.runs import records
from mimbench.jobs.tables import formats, paper, paper_table
from tests.jobs.browser import Browser
from tests.jobs.published import Published
from tests.jobs.test_report import FAINT_TEXT

GOLDEN = Path(__file__).with_name("golden") / "tables"
SUFFIX = {"terminal": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "json": "json", "html": "html"}
NAMES = ("crossmae/table1", "crossmae/table2", "crossmae/table14")
FINETUNE, DETECT = "cls/finetune_vitb", "det/mask_rcnn_vitdet_b_100ep"


def fill(root: Path) -> Published:
    """Same protocol with and without seeds, another protocol, an unknown one, and runs that cannot be used."""
    runs = Published(root)
    made = runs.pretraining("pretrain/crossmae_vitb_800ep")
    runs.evaluation(FINETUNE, {"finetune_top1": 83.4321}, made)
    runs.evaluation(FINETUNE, {"finetune_top1": 82.9}, made, "epochs=50")
    large = runs.pretraining("pretrain/crossmae_vitl_800ep")
    runs.evaluation("cls/finetune_vitl", {"finetune_top1": 85.1}, large, "drop_path=0.1")
    released = runs.pretraining("pretrain/crossmae_vitb_800ep_predict75")
    runs.evaluation(DETECT, {"box_ap": 52.01, "mask_ap": 46.2}, released)
    mae = runs.pretraining("pretrain/mae_vitb_1600ep")
    runs.evaluation(DETECT, {"box_ap": 51.55, "mask_ap": 45.85}, mae)
    runs.evaluation(DETECT, {"box_ap": 51.22, "mask_ap": 45.5}, mae, "vitdet.rel_pos=false")
    for seed, value in enumerate((83.10, 83.35, 83.28)):
        encoder = runs.pretraining("pretrain/crossmae_vitb_400ep", seed=seed)
        runs.evaluation(FINETUNE, {"finetune_top1": value}, encoder, seed=seed)
    return runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "commit", lambda: None)
        yield fill(tmp_path_factory.mktemp("published") / "runs").root


def written(root: Path, name: str, how: str) -> str:
    """Less the identities of runs, which change with every new field of a config."""
    text = formats.write(paper_table.build(name, records.read(root)), formats.checked(how), width=100)
    return re.sub(r"-[0-9a-f]{10}\b", "-IDENTITY", text)


@pytest.mark.parametrize("how", SUFFIX)
@pytest.mark.parametrize("name", NAMES)
def test_golden(root: Path, name: str, how: str) -> None:
    file = GOLDEN / f"{name.replace('/', '-')}.{SUFFIX[how]}"
    assert written(root, name, how) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["crossmae", "vitdet", "mae", "maskalign", "famt"])
@pytest.mark.parametrize("how", SUFFIX)
def test_every_table_without_any_run(tmp_path: Path, name: str, how: str) -> None:
    text = formats.write(paper_table.build(name, records.read(tmp_path / "none")), formats.checked(how), width=100)
    for table in paper.find(name):
        for one in paper.references(table):
            assert str(one.value) in text
    if how in ("terminal", "markdown", "latex", "html") and name != "famt":
        assert "A100 hours" in text
        assert "mimbench run " in text


def test_csv_keeps_what_cannot_be_compared_apart(root: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(written(root, "crossmae/table2", "csv"))))
    mae = next(line for line in lines if (line["row"], line["column"]) == ("MAE", "box_b"))
    assert float(mae["difference"]) == pytest.approx(51.22 - 51.2)
    assert mae["difference_not_comparable"] == ""
    cross = next(line for line in lines if (line["row"], line["column"]) == ("CrossMAE .75", "box_b"))
    assert cross["difference"] == ""
    assert float(cross["difference_not_comparable"]) == pytest.approx(-0.09)
    assert cross["verdict"].startswith("reference protocol unknown")


@pytest.mark.parametrize("how", ["terminal", "markdown", "latex", "html"])
def test_a_difference_across_protocols_stands_in_brackets(root: Path, how: str) -> None:
    """Ours 85.1 with another drop path, the paper's 85.4."""
    text = written(root, "crossmae/table1", how).replace("−", "-")
    assert "(-0.3)" in text
    assert not re.search(r"(?<!\()-0\.3", text)
    assert "drop path (0.1, paper 0.2)" in text


def test_json_says_everything(root: Path) -> None:
    [table] = json.loads(written(root, "crossmae/table14", "json"))
    cell = table["rows"][0]["cells"]["top1"]
    assert cell["paper"]["seeds"] == [83.20, 83.29, 83.24, 83.21]
    assert cell["ours"]["values"] == [83.10, 83.35, 83.28]
    assert cell["verdict"]["status"] == "same"
    assert cell["interval"]["low"] < 0 < cell["interval"]["high"]
    assert len(cell["ours"]["runs"]) == 3


def test_latex_is_balanced_and_escaped(root: Path) -> None:
    for name in paper.tables():
        text = "\n".join(line for line in written(root, name, "latex").splitlines() if not line.startswith("%"))
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        opened = re.findall(r"\\begin\{(\w+)\}", text)
        assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        columns = len(re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)[1])  # type: ignore[index]
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == columns, line
        assert not re.search(r"(?<!\\)[%#_]", re.sub(r"\\label\{.*?\}", "", text))
        assert text.isascii(), [character for character in text if not character.isascii()]


@pytest.mark.skipif(not (shutil.which("tectonic") or shutil.which("pdflatex")), reason="no LaTeX on this machine")
def test_latex_compiles(root: Path, tmp_path: Path) -> None:
    body = "\n".join(written(root, name, "latex") + "\\clearpage\n" for name in paper.tables())
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "tables.tex").write_text(document, encoding="utf-8")
    command = ["tectonic"] if shutil.which("tectonic") else ["pdflatex", "-halt-on-error", "-interaction=batchmode"]
    subprocess.run([*command, "tables.tex"], cwd=tmp_path, check=True, timeout=300, capture_output=True)
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000


def test_hostile_names_are_text(tmp_path: Path) -> None:
    runs = Published(tmp_path / "runs")
    made = runs.pretraining("pretrain/crossmae_vitb_800ep")
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, made, facts={"partial": ["<script>|`_{}&%$\\"]})
    assert run.result.exists()
    assert "<script>" not in written(runs.root, "crossmae/table1", "html")
    assert r"\<script\>\|\`\_\{\}" in written(runs.root, "crossmae/table1", "markdown")
    assert r"\textless{}script\textgreater{}" in written(runs.root, "crossmae/table1", "latex")


# --------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(browser: Browser, root: Path, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "table.html"
    file.write_text(written(root, "crossmae/table2", "html"), encoding="utf-8")
    page = browser.open(file, dark=dark)
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    rows = page.value("[...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))")
    assert [row[0] for row in rows] == ["Supervised", "MoCo v3", "BEiT", "MixedAE", "MAE", "CrossMAE .75"]
    assert rows[4][1].startswith("51.2")
    assert page.value("[...document.querySelectorAll('tbody tr')].every(r => r.cells.length == 7)")
    assert page.value("[...document.querySelectorAll('sup a')].every(a => document.querySelector(a.hash))")
    assert page.value(FAINT_TEXT) == []
    narrow = browser.open(file, width=390)
    assert narrow.value("document.documentElement.scrollWidth") == 390


# ------------------------------------------------------------------------------------------------ on the command line


def _run(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> int:
    monkeypatch.setenv("MIMBENCH_RUNS", str(root))
    monkeypatch.setattr(sys, "argv", ["mimbench", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    assert _run(monkeypatch, root, "table", "crossmae/table14", "--format", "markdown", "-o", str(out)) == 0
    assert "83.24 ± 0.040" in out.read_text(encoding="utf-8")
    assert _run(monkeypatch, root, "table", "crossmae/table14", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["table"] == "crossmae/table14"
    assert _run(monkeypatch, root, "table", "crossmae/tabel2") == 1
    assert "did you mean crossmae/table2" in capsys.readouterr().err
    assert _run(monkeypatch, root, "table", "--format", "csv") == 0
    ours = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["metric"] for row in ours} >= {"finetune_top1", "box_ap"}
    assert all(float(row["mean"]) and (row["kind"] == "gain" or row["runs"]) for row in ours)
    for form, begins in (("markdown", "### "), ("latex", r"\begin{table}"), ("html", "\n<!doctype html>")):
        assert _run(monkeypatch, root, "table", "--format", form, "-o", str(out)) == 0
        assert out.read_text(encoding="utf-8").lstrip().startswith(begins.lstrip()), form
    assert _run(monkeypatch, tmp_path / "nothing", "table", "--format", "latex") == 1
    assert "no finished runs" in capsys.readouterr().err
    assert _run(monkeypatch, root, "papers", "check") == 0
    assert "numbers: ok" in capsys.readouterr().out
    assert _run(monkeypatch, root, "papers", "list", "--json") == 0
    assert {entry["table"] for entry in json.loads(capsys.readouterr().out)} == {
        *paper.tables(), "crossmae/compute"
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        filled = fill(Path(directory) / "runs").root
        for table_name in NAMES:
            for form, suffix in SUFFIX.items():
                target = GOLDEN / f"{table_name.replace('/', '-')}.{suffix}"
                target.write_text(written(filled, table_name, form), encoding="utf-8")

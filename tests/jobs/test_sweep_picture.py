"""The report's part on a sweep: ranked settings with their seeds, where runs stopped, and its pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.cls.recipes.published import finetune_handwritten
from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rungs import Rungs
from mimbench.jobs.runs import records
from mimbench.jobs.studies.study_registry import add_members
from mimbench.jobs.studies.sweep import Sweep
from mimbench.jobs.tables import report
from mimbench.jobs.tables.sweep_picture import LOWER, UPPER, picture
from mimbench.jobs.tables.sweep_results import SweepResult, sweeps
from tests.jobs.browser import Browser
from tests.jobs.runs import Runs

RULE = Rungs("lr", "finetune_top1", "higher", (1, 3), 3)
ENDS = {  # base_lr, layer_decay -> top-1 of each seed, and the rung at which it stopped
    ("0.0001", "0.65"): ((21.0, 1), (22.0, 1)),
    ("0.001", "0.65"): ((60.0, None), (64.0, None)),
    ("0.01", "0.65"): ((70.0, None), (66.0, 3)),
    ("0.1", "0.65"): ((40.0, 3), (30.0, 1)),
    ("0.001", "0.75"): ((61.0, None), (62.0, None)),
    ("0.01", "0.75"): ((99.0, 1), (20.0, 1)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six settings with two seeds; some stopped at rungs. Not to be changed."""
    runs = Runs(tmp_path_factory.mktemp("sweep") / "runs")
    values, made = [], {}
    for (rate, decay), seeds in ENDS.items():
        for seed, (score, rung) in enumerate(seeds):
            own = [f"base_lr={rate}", f"layer_decay={decay}", f"seed={seed}"]
            config = replace(finetune_handwritten(), base_lr=float(rate), layer_decay=float(decay), seed=seed)
            run = runs.new("cls/finetune_handwritten", config)
            values.append(own)
            made[run] = " ".join(own)
            RULE.write(run.path)
            if rung is None:
                runs.finish(run, {"finetune_top1": score})
                continue
            write_json(
                runs.root / ".mimbench" / "rungs" / "lr" / str(rung) / f"cls+{run.path.name}.json", {"value": score}
            )
            run.end_attempt(run.begin_attempt(), "stopped", f"stopped early after {rung} epochs")
    Sweep("lr", "cls/finetune_handwritten", values, rungs=RULE.__dict__).keep(runs.root)
    add_members(runs.root, "lr", made)
    return runs.root


@pytest.fixture(scope="module")
def found(root: Path) -> SweepResult:
    """What the sweep found."""
    [result] = sweeps(root, records.read(root))
    return result


def test_settings_are_ranked_by_what_is_comparable(found: SweepResult) -> None:
    """Runs that went to the end first, then those that stopped later; 99 % after one epoch is not the best."""
    ranked = [(*one.values, one.text, one.seeds, one.where) for one in found.settings]
    assert ranked == [
        ("0.01", "0.65", "70.0", 1, "1 of 2 seeds stopped early"),
        ("0.001", "0.65", "62.0 ± 2.8", 2, ""),
        ("0.001", "0.75", "61.5 ± 0.7", 2, ""),
        ("0.1", "0.65", "40.0", 1, "stopped after 3 epochs"),
        ("0.01", "0.75", "59.5 ± 55.9", 2, "stopped after 1 epoch"),
        ("0.0001", "0.65", "21.5 ± 0.7", 2, "stopped after 1 epoch"),
    ]
    assert found.summary == (
        "Best: base_lr=0.01, layer_decay=0.65, fine-tune 70.0 (1 seed). "
        "3 of 6 settings went to the end; the others stopped early, when too many were better."
    )


def test_lines_cross_each_axis_at_their_value(found: SweepResult) -> None:
    drawn = picture(found)
    rate, decay, top1 = drawn.axes
    assert [(tick.text, tick.at) for tick in rate.ticks] == [
        ("0.0001", LOWER), ("0.001", round(LOWER - (LOWER - UPPER) / 3, 1)),
        ("0.01", round(LOWER - (LOWER - UPPER) * 2 / 3, 1)), ("0.1", UPPER),
    ], "even steps by ratio"  # fmt: skip
    assert [tick.text for tick in decay.ticks] == ["0.65", "0.75"]
    best = drawn.lines[-1]
    assert (best.css, best.d.split("C")[0]) == ("best", f"M{rate.x:.1f} {rate.ticks[2].at:.1f}")
    heights = {tick.text: tick.at for tick in top1.ticks}
    assert best.end == (top1.x, heights["70"])
    assert [line.css.endswith(" early") for line in drawn.lines] == [True] * 3 + [False] * 3
    assert [panel.key for panel in drawn.panels] == ["base_lr", "layer_decay"]
    assert (
        drawn.panels[0].dots[-1].text == "1. base_lr=0.01, layer_decay=0.65: 70.0, 1 seed; 1 of 2 seeds stopped early"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_it(root: Path, browser: Browser, dark: bool, tmp_path: Path) -> None:
    page = browser.open(report.write_report(root, tmp_path / "report.html"), dark=dark)
    assert page.complaints == []
    assert page.value("document.querySelectorAll('#sweeps .wide-chart path').length") == 6
    assert page.value("[...document.querySelectorAll('.sweep-table tbody tr')].map(r => r.cells[1].innerText)") == [
        "0.01", "0.001", "0.001", "0.1", "0.01", "0.0001",
    ]  # fmt: skip
    link = "document.querySelector('.sweep-table td a').getAttribute('href')"
    assert page.value(f"document.querySelector({link}) !== null")
    colours = "[...document.querySelectorAll('#sweeps .wide-chart g')].map(g => getComputedStyle(g).color)"
    assert page.value(colours)[-1] == ("rgb(108, 176, 255)" if dark else "rgb(20, 89, 199)")
    within = """[...document.querySelectorAll('#sweeps svg text')].every(text => {
        const svg = text.closest('svg'), [a, b] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
        return a.left >= b.left && a.right <= b.right + 1 && a.bottom <= b.bottom + 1 && a.top >= b.top - 1; })"""
    assert page.value(within), "all labels lie within their picture"


def test_pictures_that_do_not_fit_are_counted(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path)
    for seed in range(3):
        run = runs.evaluate("cls/finetune_handwritten", {"finetune_top1": 50.0}, seed=seed)
        run.plots.mkdir()
        (run.plots / "confusion.webp").write_bytes(b"x" * 1000)
    monkeypatch.setattr(report, "PICTURES", 2500)
    text = report.write_report(tmp_path, tmp_path / "report.html").read_text()
    assert text.count("<img ") == 2
    assert "1 more pictures are in <code>plots/</code> of their runs" in text

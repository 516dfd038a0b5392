"""What the report says beside papers, of cost and of categories, and what a browser makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimbench.jobs.tables import report
from tests.jobs.browser import Browser
from tests.jobs.published import Published
from tests.jobs.test_report import FAINT_TEXT

FINETUNE, DETECT = "cls/finetune_vitb", "det/mask_rcnn_vitdet_b_100ep"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimbench.engine.run.result.commit", lambda: None)
        runs = Published(tmp_path_factory.mktemp("published") / "runs")
        made = runs.pretraining("pretrain/crossmae_vitb_800ep_predict75")
        finetuned = runs.evaluation(FINETUNE, {"finetune_top1": 83.6}, made)
        Published.log_metrics(
            finetuned, [{"step": n, "epoch": n, "loss": 2 / n, "finetune_top1": 80 + n} for n in (1, 2, 3)]
        )
        other = runs.evaluation(FINETUNE, {"finetune_top1": 80.0}, None)
        Published.log_metrics(other, [{"step": n, "epoch": n, "loss": 3 / n, "finetune_top1": 70 + n} for n in (1, 2)])
        for encoder, aps in ((None, (48.0, 40.0, 20.0)), (made, (52.0, 39.0, 25.5))):
            run = runs.evaluation(DETECT, {"box_ap": aps[0], "mask_ap": 44.0}, encoder)
            entries = [{"id": n, "name": f"kind {n}", "box_ap": ap} for n, ap in enumerate(aps)]
            (run.path / "categories.json").write_text(json.dumps(entries))
        return report.write_report(runs.root, runs.root / "report.html")


def test_the_tables_of_papers_that_runs_touch(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "ImageNet-1k fine-tuning, top-1 (%), 800 epochs of pretraining" in text
    assert "COCO, Mask R-CNN: box and mask AP" in text
    assert "reference protocol unknown" in text
    assert "Linear probe, ImageNet-1k" not in text


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(browser: Browser, written: Path, dark: bool) -> None:
    page = browser.open(written, dark=dark)
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    assert page.value("document.scripts.length") == 0
    assert page.value("document.querySelectorAll('#papers table.paper').length") >= 2
    assert page.value("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.value(
        "document.querySelectorAll('[id]').length"
    )
    assert page.value("[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.querySelector(a.hash))")
    changes = page.value("[...document.querySelectorAll('#by-category tbody tr')].map(r => r.cells[3].innerText)")
    assert changes == ["+5.5", "+4.0", "−1.0"]
    hours = page.value("document.querySelector('svg[aria-label^=\"Box AP by hours\"]').getAttribute('aria-label')")
    assert "from scratch: 0 h, box AP 48.0" in hours
    assert "crossmae_vitb_800ep_predict75: 45 h, box AP 52.0" in hours
    assert page.value(FAINT_TEXT) == []


def test_a_legend_hides_a_line_and_shows_it_again(browser: Browser, written: Path) -> None:
    page = browser.open(written)
    paths = "[...document.querySelector('#curves .chart').querySelectorAll('g path')]"
    lines = f"{paths}.map(p => getComputedStyle(p).display)"
    before = page.value(lines)
    assert "none" not in before
    assert len(before) == 2
    box = "document.querySelector('#curves .chart input')"
    page.value(f"{box}.click()")
    assert page.value(lines).count("none") == 1
    page.value(f"{box}.click()")
    assert page.value(lines) == before
    assert page.value(f"{box}.tabIndex") == 0


def test_it_fits_a_telephone(browser: Browser, written: Path) -> None:
    page = browser.open(written, width=390)
    assert page.value("document.documentElement.scrollWidth") == 390
    scrolled = "[...document.querySelectorAll('body *')].filter(e => getComputedStyle(e).overflowX == 'auto')"
    assert page.value(f"{scrolled}.every(e => e.tabIndex == 0 && e.getAttribute('role') == 'region')")

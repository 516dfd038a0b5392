"""The report over runs made as the real ones are: what it says, and what a real browser makes of it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mimbench.backbones.config import SIZES
from mimbench.cls.recipes.published import finetune_handwritten
from mimbench.jobs.runs.encoders import Encoder
from mimbench.jobs.studies.study_registry import add_members
from mimbench.jobs.tables import curves, drawing, report, table
from mimbench.jobs.tables.curves import Point
from mimbench.jobs.tables.drawing import Scale, Style
from mimbench.pretrain.recipes.crossmae import crossmae_handwritten
from tests.jobs.browser import Browser
from tests.jobs.encoder_file import encoder_bytes
from tests.jobs.runs import Runs

LINEAR, FINETUNE, DETECTION = "cls/linear_handwritten", "cls/finetune_handwritten", "det/mask_rcnn_handwritten"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a demo's worth of runs: everything finished but one fine-tuning. Not to be changed."""
    runs = Runs(tmp_path_factory.mktemp("demo") / "runs")
    made = runs.pretrain()
    runs.log_metrics(made, [{"step": 20 * n, "epoch": n / 4, "loss": 1 / n} for n in range(1, 61)])
    _draw(made.plots / "reconstructions.png", 300, 120)
    for checkpoint, top1, ap in ((made, 75.64, 21.0), (None, 40.7, 9.5)):
        linear = runs.evaluate(LINEAR, {"linear_top1": top1}, checkpoint)
        runs.log_metrics(linear, [{"step": n, "epoch": n, "loss": 2 / n, "linear_top1": top1 / n} for n in (1, 2, 3)])
        detection = runs.evaluate(DETECTION, {"box_ap": ap, "mask_ap": ap - 1}, checkpoint)
        runs.log_metrics(detection, [{"step": n, "epoch": n / 75, "loss": 4 / n, "loss_mask": 1 / n} for n in (10, 20)])
        _draw(detection.plots / "detections.png", 640, 320)
    failed = runs.new(FINETUNE, replace(finetune_handwritten(), checkpoint=str(made.encoder)), made.encoder)
    number = failed.begin_attempt()
    failed.log.write_text("".join(f"line {n}\n" for n in range(40)) + f"{HOSTILE}</pre>\n")
    failed.end_attempt(number, "failed", f"the loss became nan at iteration 7 {HOSTILE}")
    return report.write_report(runs.root, runs.root / "report.html")


def _draw(file: Path, width: int, height: int) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (width, height), "teal").save(file)


def test_no_runs_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs under"):
        report.write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_one_file_replaced_whole(tmp_path: Path) -> None:
    runs, file = Runs(tmp_path), tmp_path / "report.html"
    runs.evaluate(LINEAR, {"linear_top1": 50.0})
    file.write_text("an older report")
    assert report.write_report(runs.root, file) == file
    assert "50.0" in file.read_text()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["report.html"]


def test_nothing_in_it_is_fetched_or_run(written: Path) -> None:
    assert not re.search(r"https?://|<script|@import|url\((?!#)", written.read_text())


def test_it_says_what_is_compared_and_what_came_out(written: Path) -> None:
    text = written.read_text()
    assert "Here crossmae_handwritten is measured against that baseline on handwritten." in text
    assert "in points: linear +34.9, box AP +11.5 and mask AP +11.5. The noise is unknown:" in text
    assert "1 run did not finish." in text
    assert "3 min 01 s" in text
    assert "1,234" in text  # images per second
    assert "512 MiB" in text


def test_of_one_study(tmp_path: Path) -> None:
    """Its runs and what made their encoders; all others are left out."""
    runs = Runs(tmp_path)
    mine, other = runs.pretrain(), runs.pretrain(seed=1)
    probe = runs.evaluate("cls/knn_handwritten", {"knn_top1": 61.0}, mine)
    runs.evaluate("cls/linear_handwritten", {"linear_top1": 77.0}, other)
    add_members(tmp_path, "just <one>", {probe: "k-NN"})
    text = report.write_report(tmp_path, tmp_path / "one.html", "just <one>").read_text()
    assert "<h1>mimbench report: just &lt;one&gt;</h1>" in text
    assert mine.path.name in text
    assert probe.path.name in text
    assert other.path.name not in text
    assert "77.0" not in text
    with pytest.raises(ValueError, match=r"'another'.*just <one>"):
        report.write_report(tmp_path, tmp_path / "none.html", "another")
    assert not (tmp_path / "none.html").exists()


def test_seeds_are_weighed(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for seed, (pretrained, scratch, ap) in enumerate([(70.0, 40.0, 10.0), (71.0, 41.0, 12.0)]):
        made = runs.pretrain(seed=seed)
        runs.evaluate(LINEAR, {"linear_top1": pretrained}, made, seed=seed)
        runs.evaluate(LINEAR, {"linear_top1": scratch}, seed=seed)
        runs.evaluate(DETECTION, {"box_ap": ap + 1}, made, seed=seed)
        runs.evaluate(DETECTION, {"box_ap": ap}, seed=seed)
    text = report.write_report(runs.root, tmp_path / "report.html").read_text()
    assert "linear +30.0 ± 1.0 and box AP +1.0 ± 2.0. Within the noise over seeds (95 % interval): box AP." in text
    assert re.findall(r'<td class="number( up| down|)">([+−][^<]*)', text) == [
        (" up", "+30.0 ± 1.0"),
        ("", "+1.0 ± 2.0"),
    ]


def test_data_sets_and_encoders_are_not_mixed(browser: Browser, tmp_path: Path) -> None:
    """Nine encoders and two architectures from scratch on two data sets; one encoder has a baseline on one of them."""
    runs = Runs(tmp_path / "runs")
    made = runs.pretrain()
    runs.evaluate(LINEAR, {"linear_top1": 40.0})
    runs.evaluate(LINEAR, {"linear_top1": 20.0}, encoder=replace(crossmae_handwritten().encoder, width=48))
    runs.evaluate(LINEAR, {"linear_top1": 70.0}, made)
    for number in range(8):
        file = tmp_path / f"{number}.pth"
        file.write_bytes(encoder_bytes(str(number)))
        runs.evaluate(LINEAR, {"linear_top1": 10.0 + number}, file, SIZES["B"], data="imagenet")
    text = report.write_report(runs.root, tmp_path / "report.html").read_text()
    assert (
        "Here crossmae_handwritten is measured against that baseline on handwritten; "
        "8 encoders are measured on imagenet (the baseline has not been run)."
    ) in text
    page = browser.open(tmp_path / "report.html")
    shown = "[...document.querySelectorAll('.results')].map(t => t.querySelectorAll('tbody tr').length)"
    assert page.value(shown) == [4, 8]
    dots = page.value(
        "[...document.querySelectorAll('#results figure')].map(f => [...f.querySelectorAll('.legend .dot')]"
        ".map(d => getComputedStyle(d).color + d.firstElementChild.outerHTML.slice(0, 5)))"
    )
    assert [len(figure) for figure in dots] == [3, 8]
    assert len({mark for figure in dots for mark in figure}) == 11
    assert len({mark.partition(")")[0] for figure in dots for mark in figure}) == 11


def test_part_of_the_encoders_has_a_baseline() -> None:
    scratch, one, two = Encoder("A", "from scratch", ""), Encoder("A", "one", "1"), Encoder("B", "two", "2")
    rows = [
        table.Row("scratch", scratch, data="x"),
        table.Row("pretrained", one, data="x"),
        table.Row("gain", one, data="x"),
        table.Row("pretrained", two, data="x"),
    ]
    assert report.lead(rows).endswith("Here one and two are measured on x, 1 of them against that baseline.")


def test_small_differences_in_percent_look_small() -> None:
    assert Scale.over([83.1, 83.3], 0, 1, rounded=True, percent=True).ticks()[0].text == "78"
    wide = Scale.over([83.1, 83.3], 0, 1, rounded=True, percent=True)
    assert wide.high - wide.low >= 10
    top = Scale.over([99.8, 100.0], 0, 1, rounded=True, percent=True)
    assert (top.low, top.high) == (90, 100)
    assert Scale.over([0.0, 0.1], 0, 1, rounded=True, percent=True).low == 0


def test_failures_with_their_reason_and_the_end_of_their_log(written: Path) -> None:
    text = written.read_text()
    problems = text[text.index('id="problems"') :]
    assert "the loss became nan at iteration 7" in problems
    assert "line 39" in problems
    assert "line 20\n" not in problems


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_never_wrote_a_log(tmp_path: Path, state: str) -> None:
    runs = Runs(tmp_path)
    run = runs.new("pretrain/crossmae_handwritten", crossmae_handwritten())
    run.end_attempt(run.begin_attempt(), state, "Ctrl-C")  # type: ignore[arg-type]
    text = report.write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "Ctrl-C" in text
    assert "No evaluation has finished yet" in text


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.evaluate(LINEAR, {"linear_top1": 75.64})
    broken = runs.evaluate("cls/knn_handwritten", {"knn_top1": 50.0})
    broken.about.write_text("{")
    text = report.write_report(runs.root, tmp_path / "report.html").read_text()
    assert f"cls/{broken.path.name} is damaged" in text
    assert "75.6" in text


def test_pictures_tell_two_pretrainings_apart(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    for epochs in (20, 30):
        _draw(runs.pretrain(epochs=epochs).plots / "reconstructions.png", 10, 10)
    text = report.write_report(runs.root, tmp_path / "report.html").read_text()
    assert "crossmae_handwritten on handwritten. Validation" in text
    assert "crossmae_handwritten (epochs=30) on handwritten. Validation" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    made = runs.pretrain("pretrain/<img src=x onerror=alert(1)>")
    runs.log_metrics(made, [{"step": 1, "epoch": 1, "loss": 2}, {"step": 2, "epoch": 2, "loss": 1}])
    file = tmp_path / '"><b>weights.pth'
    file.write_bytes(encoder_bytes("weights"))
    runs.evaluate(LINEAR, {"linear_top1": 1.0}, file)
    runs.evaluate(LINEAR, {"linear_top1": 1.0}, made)
    _draw(made.plots / "<i>reconstructions.png", 10, 10)
    text = report.write_report(runs.root, tmp_path / "report.html").read_text()
    assert not re.search("<img src=x|<b>|<i>", text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_asking_for_anything(browser: Browser, written: Path, dark: bool) -> None:
    page = browser.open(written, dark=dark)
    assert {url.partition(":")[0] for url in page.requests} == {"file", "data"}
    assert [url for url in page.requests if url.startswith("file:")] == [written.as_uri()]
    assert page.complaints == []
    assert page.value("document.scripts.length") == 0
    widths = page.value("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert widths == [300, 640, 640]
    assert page.value("[...document.images].every(i => i.alt.length > 20)")
    rows = page.value(
        "[...document.querySelectorAll('.results tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert rows == [
        ["from scratch", "ViT 96x4/8", "–", "40.7", "–", "9.5", "8.5"],
        ["crossmae_handwritten", "ViT 96x4/8", "–", "75.6", "–", "21.0", "20.0"],
        ["gain over scratch", "–", "+34.9", "–", "+11.5", "+11.5"],
    ]
    assert page.value(FAINT_TEXT) == []
    light = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark


FAINT_TEXT = """
(() => {
  const channel = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
  document.querySelectorAll('details').forEach(d => d.open = true);
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.getClientRects().length)
    .filter(e => !e.closest('title') && e.className != 'skip')
    .map(e => { const style = getComputedStyle(e), svg = e.ownerSVGElement;
      const [a, b] = [luminance(numbers(svg ? style.fill : style.color)), luminance(behind(e))];
      return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]; })
    .filter(([, contrast]) => contrast < 4.5);
})()
"""  # every text whose contrast with what is behind it is less than WCAG's AA asks for


def test_charts_lay_pretrained_and_scratch_together(browser: Browser, written: Path) -> None:
    page = browser.open(written)
    page.value("document.querySelectorAll('details').forEach(details => details.open = true)")
    charts = page.value(
        "[...document.querySelectorAll('#curves .chart')].map(c => [c.querySelector('figcaption').innerText,"
        " [...c.querySelectorAll('.legend li')].map(l => l.textContent.trim())])"
    )
    both = ["from scratch", "crossmae_handwritten"]
    assert [(title.split("\n"), [label.rpartition(" ")[0] for label in labels]) for title, labels in charts] == [
        (["training loss", "crossmae_handwritten on handwritten"], both[1:]),
        (["training loss", "linear_handwritten on handwritten"], both),
        (["linear probe top-1 (%)", "linear_handwritten on handwritten"], both),
        (["training loss", "mask_rcnn_handwritten on handwritten"], both),
        (["loss_mask", "mask_rcnn_handwritten on handwritten"], both),
    ]
    assert page.value("[...document.querySelectorAll('svg[role=img]')].every(s => s.getAttribute('aria-label'))")
    drawn = "[...document.querySelectorAll('#curves .chart:first-child path.line')].map(p => p.getTotalLength() > 20)"
    assert page.value(drawn) == page.value(f"{drawn}.map(() => true)")


def test_it_fits_a_telephone_and_a_keyboard_reaches_all_of_it(browser: Browser, written: Path) -> None:
    page = browser.open(written, width=390)
    assert page.value("document.documentElement.scrollWidth") == 390
    scrolled = "[...document.querySelectorAll('body *')].filter(e => getComputedStyle(e).overflowX == 'auto')"
    assert page.value(f"{scrolled}.every(e => e.tabIndex == 0 && e.getAttribute('role') == 'region')")
    assert page.value("[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.querySelector(a.hash))")
    levels = page.value("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0, 1, 0.2), (0, 100, 20), (0.31, 0.33, 0.005), (-3, 4, 2), (0, 184_375, 50_000)]
)
def test_ticks_are_round(low: float, high: float, step: float) -> None:
    assert drawing.tick_step(low, high) == pytest.approx(step)


def test_a_moving_average_keeps_ends_and_straight_lines() -> None:
    line = tuple(Point(float(n), 3.0 * n) for n in range(200))
    assert [point.y for point in curves.moving_average(line)] == pytest.approx([point.y for point in line])
    spike = [*line[:100], Point(100.0, 1e6), *line[101:]]
    assert max(point.y for point in curves.moving_average(spike)) < 1e5 * 1.2
    assert curves.moving_average(line[:5]) == line[:5]


def test_a_chart_stays_inside_its_frame() -> None:
    noisy = tuple(Point(float(n), 5.0 + (n % 2)) for n in range(1, 5001))
    chart = curves.draw(
        "t",
        "step",
        "loss",
        [curves.Series("a", Style(1), (noisy, noisy[:7])), curves.Series("b", Style(0, True), (noisy[:1],))],
    )
    assert [line.faint for line in chart.lines] == [True, False, False, False]
    numbers = [float(n) for line in chart.lines if not line.faint for n in re.findall(r"[\d.]+", line.d)]
    assert len(numbers) < 2 * (2 * curves.MOST)
    assert max(numbers[::2]) <= drawing.RIGHT
    assert min(numbers[1::2]) >= drawing.TOP
    assert max(numbers[1::2]) <= drawing.BOTTOM
    assert [tick.text for tick in chart.x_ticks] == ["0", "1000", "2000", "3000", "4000", "5000"]


def test_metrics_cut_short_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert curves.measurements(file) == []
    file.write_text('{"step": 1, "loss": 2.0, "rate": null}\n{"step": 2, "loss": NaN}\n7\n{"step": 3, "lo')
    assert curves.measurements(file) == [{"step": 1, "loss": 2.0}, {"step": 2}]


def test_durations() -> None:
    assert [report.duration(seconds) for seconds in (0.4, 59.6, 200, 18420)] == [
        "0 s", "1 min 00 s", "3 min 20 s", "5 h 07 min",
    ]  # fmt: skip

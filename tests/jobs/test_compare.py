"""Two runs side by side, and model cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import HANDWRITTEN
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.main import main
from mimbench.jobs.runs import records
from mimbench.jobs.runs.records import record_of
from mimbench.jobs.tables import card, compare, matching, paper, table
from mimbench.pretrain.recipes.crossmae import crossmae_vitb_400ep
from tests.jobs.browser import Browser
from tests.jobs.published import Published
from tests.jobs.test_report import FAINT_TEXT

FINETUNE, DETECT = "cls/finetune_vitb", "det/mask_rcnn_vitdet_b_100ep"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    monkeypatch.setattr("mimbench.engine.run.result.commit", lambda: None)
    return Published(tmp_path / "runs")


def _detectors(runs: Published, *overrides: str) -> tuple[Path, Path]:
    paths = []
    for recipe, aps in (("mae_vitb_800ep", (50.0, 60.0, 40.0)), ("crossmae_vitb_800ep", (52.0, 57.0, 40.5))):
        encoder = runs.pretraining(f"pretrain/{recipe}")
        run = runs.evaluation(DETECT, {"box_ap": aps[0], "mask_ap": 45.0}, encoder, *(overrides if paths else ()))
        entries = [{"id": n, "name": name, "box_ap": ap} for n, (name, ap) in enumerate(zip("abc", aps, strict=True))]
        (run.path / "categories.json").write_text(json.dumps([*entries, {"id": 9, "name": "none here"}]))
        paths.append(run.path)
    return paths[0], paths[1]


def test_one_protocol(runs: Published) -> None:
    two = compare.compare(*_detectors(runs), runs.root)
    assert two.comparable
    assert two.encoders == ("mae_vitb_800ep", "crossmae_vitb_800ep")
    assert [(one.name, one.difference) for one in two.metrics] == [("box_ap", 2.0), ("mask_ap", 0.0)]
    assert [(one.name, one.difference) for one in two.categories] == [("b", -3.0), ("a", 2.0), ("c", 0.5)]
    text = compare.text(two, width=120)
    assert "protocols are the same" in text
    assert "+2.00" in text
    assert "(+2.00)" not in text


def test_two_protocols_are_never_subtracted_plainly(runs: Published) -> None:
    two = compare.compare(*_detectors(runs, "vitdet.rel_pos=false"), runs.root)
    assert [(one.key, one.first, one.second) for one in two.protocol] == [("vitdet.rel_pos", "on", "off")]
    text = compare.text(two, width=120)
    assert "protocols differ" in text
    assert "(+2.00)" in text
    assert json.loads(json.dumps(compare.to_json(two)))["metrics"][0]["difference"] is None


def test_a_fact_that_differs_counts_too(runs: Published) -> None:
    encoder = runs.pretraining("pretrain/mae_vitb_800ep")
    one = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, encoder)
    other = runs.evaluation(FINETUNE, {"finetune_top1": 84.0}, encoder, seed=1, facts={"classes": 100})
    two = compare.compare(one.path, other.path, runs.root)
    assert [(one.key, one.second) for one in two.protocol] == [("classes", "100")]


def test_facts_of_an_earlier_release_have_todays_names(runs: Published) -> None:
    first, second = _detectors(runs)
    for path, name in ((first, "interpolation"), (second, "image_resize")):
        result = json.loads((path / "result.json").read_text())
        result["facts"][name] = "bicubic, antialiased"
        (path / "result.json").write_text(json.dumps(result))
    assert compare.compare(first, second, runs.root).comparable
    facts = record_of(RunDir(first)).result["facts"]  # type: ignore[index]
    assert facts["image_resize"] == "bicubic, antialiased"
    assert "interpolation" not in facts


def test_pretrainings(runs: Published) -> None:
    one, other = runs.pretraining("pretrain/mae_vitb_800ep"), runs.pretraining("pretrain/mae_vitb_400ep")
    two = compare.compare(one.path, other.path, runs.root)
    assert {setting.key for setting in two.pretraining} == {"epochs", "warmup_epochs"}


def test_what_cannot_be_compared(runs: Published) -> None:
    made = runs.pretraining("pretrain/mae_vitb_800ep")
    done = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, made)
    with pytest.raises(ValueError, match="compare runs of the same stage"):
        compare.compare(made.path, done.path, runs.root)
    with pytest.raises(ValueError, match="is not a run directory"):
        compare.compare(runs.root / "cls" / "nothing", done.path, runs.root)
    new = runs.new("pretrain/x", crossmae_vitb_400ep())
    with pytest.raises(ValueError, match="only finished runs"):
        compare.compare(new.path, made.path, runs.root)
    one, other = _detectors(runs)
    (one / "categories.json").write_text('[{"name": 3')
    with pytest.raises(ValueError, match=r"categories\.json is damaged"):
        compare.compare(one, other, runs.root)
    done.result.write_text("{")
    with pytest.raises(ValueError, match=r"damaged result\.json"):
        compare.compare(done.path, other, runs.root)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page(runs: Published, browser: Browser, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "compare.html"
    file.write_text(compare.page(compare.compare(*_detectors(runs, "vitdet.rel_pos=false"), runs.root)))
    page = browser.open(file, dark=dark, width=800)
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    widths = page.value("[...document.querySelectorAll('.bar')].map(b => b.getBoundingClientRect().width)")
    assert widths[0] > widths[1] > widths[2] > 0
    assert page.value(FAINT_TEXT) == []
    assert browser.open(file, width=390).value("document.documentElement.scrollWidth") == 390


def _run(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> int:
    monkeypatch.setenv("MIMBENCH_RUNS", str(root))
    monkeypatch.setattr("sys.argv", ["mimbench", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_commands(
    runs: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = _detectors(runs)
    assert _run(monkeypatch, runs.root, "compare", str(one), f"det/{other.name}") == 0
    assert "box_ap" in capsys.readouterr().out
    assert _run(monkeypatch, runs.root, "compare", str(one), str(other), "--output", str(tmp_path / "c.html")) == 0
    assert "Two runs compared" in (tmp_path / "c.html").read_text()
    assert _run(monkeypatch, runs.root, "compare", str(one), "nothing") == 1
    assert "no run under" in capsys.readouterr().err
    assert _run(monkeypatch, runs.root, "card", "mae_vitb", "-o", str(tmp_path / "README.md")) == 0
    assert "library_name: mimbench" in (tmp_path / "README.md").read_text()


# ----------------------------------------------------------------------------------------------------- model cards


def _metadata(text: str) -> dict[str, object]:
    _, block, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(block)
    return found


def test_a_card_says_what_it_is_and_what_it_can(runs: Published) -> None:
    made = runs.pretraining("pretrain/crossmae_vitb_800ep")
    runs.evaluation(FINETUNE, {"finetune_top1": 83.42, "finetune_best_top1": 83.5}, made)
    runs.evaluation(FINETUNE, {"finetune_top1": 11.0}, runs.pretraining("pretrain/mae_vitb_800ep"))
    text = card.card(str(made.path), runs.root)
    [index] = _metadata(text)["model-index"]  # type: ignore[misc]
    values = {result["metrics"][0]["type"]: result["metrics"][0]["value"] for result in index["results"]}
    assert values == {"finetune_top1": 83.42, "finetune_best_top1": 83.5}
    assert "license" not in _metadata(text)
    assert "11.00" not in text
    assert "12 blocks of width 768 with 12 heads" in text
    assert "crossmae/table1, CrossMAE .25: 83.5 printed, 83.5 here, 0.0: same protocol" in text


@pytest.mark.parametrize("recipe", [FINETUNE, "cls/knn", "det/mask_rcnn_vitdet_b_100ep", "seg/upernet_vitb"])
def test_numbers_measured_on_training_images_are_marked_everywhere(runs: Published, recipe: str) -> None:
    metric = {"cls/knn": "knn_top1", "det": "box_ap", "seg": "miou"}
    key = metric.get(recipe) or metric.get(recipe.partition("/")[0]) or "finetune_top1"
    made = runs.pretraining("pretrain/crossmae_vitb_800ep")
    facts = {"validation": "the training images: the val split is a copy"}
    wrong = runs.evaluation(recipe, {key: 100.0}, made, facts=facts)
    honest = runs.evaluation(recipe, {key: 80.0}, made, seed=1, facts={"validation": "val split"})
    text = card.card(str(made.path), runs.root)
    values = [result["metrics"][0]["value"] for result in _metadata(text)["model-index"][0]["results"]]  # type: ignore[index]
    assert set(values) == {80.0}, "the hub ranks models by these"
    (line,) = [line for line in text.splitlines() if "| 100.00 |" in line and "best epoch" not in line]
    assert "**measured on the training images**" in line
    two = compare.compare(wrong.path, honest.path, runs.root)
    assert two.encoders[0].endswith("; measured on the training images")
    assert "validation" in [setting.key for setting in two.protocol]
    found = records.read(runs.root)
    cells = [row.cells[key] for row in table.rows_of(found) if key in row.cells]
    assert sorted(cell.values for cell in cells) == [(80.0,), (100.0,)], "never averaged as two seeds"
    assert {cell.data.partition(" (")[2] for cell in cells} == {"", "measured on the training images)"}
    for group in matching.groups(found)[0]:
        (reference,) = [one for one in paper.references("crossmae/table1") if one.recipe == FINETUNE][:1]
        said = matching.verdict(reference, group.did).text
        assert ("validation (the training images" in said) == bool(group.records[0].measured_on)


def test_a_card_says_how_weights_were_trained_only_if_it_is_known(runs: Published, tmp_path: Path) -> None:
    model = VisionTransformer(HANDWRITTEN, final_norm=True)
    for family, said in (
        ("mae", "pretrained without labels"),
        ("vit", "read as the checkpoint family vit, which does not tell how it was trained"),
        ("finetuned", "trained with labels"),
    ):
        file = tmp_path / f"{family}.safetensors"
        save_encoder(file, model.state_dict(), EncoderInfo(family, HANDWRITTEN, final_norm=True))
        text = card.card(str(file), runs.root)
        assert f"A plain vision transformer, {said}:" in text
    save_encoder(file, model.state_dict(), EncoderInfo("mae", HANDWRITTEN, final_norm=True, recipe="pretrain/mae_s"))
    assert r"Trained by recipe pretrain/mae\_s, in a run that is not here" in card.card(str(file), runs.root)


def test_a_card_of_weights_made_elsewhere(runs: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "theirs.safetensors"
    model = VisionTransformer(HANDWRITTEN)
    mean = (0.485, 0.456, 0.406)
    info = EncoderInfo("mae", HANDWRITTEN, final_norm=False, positions="sincos", mean=mean, std=mean)
    save_encoder(file, model.state_dict(), info)
    text = card.card(str(file), runs.root)
    assert _metadata(text)["license"] == "cc-by-nc-4.0"
    assert "Trained outside mimbench" in text
    assert "Not evaluated yet." in text
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.zeros(2, 3, 64, 64)}
    exec(code, names)
    assert names["features"].pooled.shape == (2, 96)  # type: ignore[attr-defined]


def test_no_card_of_what_is_no_encoder(runs: Published, tmp_path: Path) -> None:
    run = runs.evaluation(FINETUNE, {"finetune_top1": 83.0}, runs.pretraining("pretrain/mae_vitb_800ep"))
    with pytest.raises(ValueError, match="is an evaluation"):
        card.card(str(run.path), runs.root)
    new = runs.new("pretrain/x", crossmae_vitb_400ep())
    with pytest.raises(ValueError, match="has no finished encoder"):
        card.card(str(new.path), runs.root)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        card.card(str(tmp_path / "notes.txt"), runs.root)

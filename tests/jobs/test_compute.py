"""Counts against what the originals' models have, and what independent counters say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from mimbench.backbones.config import SIZES
from mimbench.det.counting import detectors
from mimbench.engine.run.cost import Cost, costs, stated
from mimbench.engine.training.counting import Counted, Saved, kept_for_backward
from mimbench.engine.training.counting import operations as forward_operations
from mimbench.jobs.runs import cost, records
from mimbench.jobs.runs.recipes import Recipe, find, recipes
from mimbench.jobs.tables import compute
from mimbench.jobs.tables.paper import references
from mimbench.pretrain import counting
from mimbench.pretrain.config import MAEConfig
from mimbench.pretrain.cost import operations
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.table import build_method
from tests.jobs.published import Published

# Parameters of the official models with 12 decoder blocks (CrossMAE) and 8 (MAE), and of detectron2's ViTDet-B.
PARAMETERS = {("S", "crossmae"): 32_186_396, ("S", "mae"): 28_330_880, ("B", "crossmae"): 127_286_428,
              ("B", "mae"): 111_907_840}  # fmt: skip
ELSEWHERE = {  # worked out by hand from the methods' descriptions, in GFLOP: encoder, decoder, all
    "AMT on MAE": (2 * 2.65, 2 * 3.11, 2 * 5.76),  # 31 tokens, and 119 in the decoder
    "MaskAlign": (2 * 5.1, 0.35, 2 * (5.1 + 17.4) + 0.35),  # 59 tokens, and 197 in the teacher
}


@pytest.fixture(scope="module")
def counted() -> list[Counted]:
    return list(counting.pretraining("SB"))


def test_parameters_are_the_originals(counted: list[Counted]) -> None:
    papers = [one for one in counted if "MAE" in one.name and "AMT" not in one.name]
    assert len(papers) == 6
    for one in papers:
        assert one.parameters == PARAMETERS[one.size, str(one.told_by[0])]


def test_other_methods_compute_what_was_worked_out_by_hand(counted: list[Counted]) -> None:
    found = {one.name: (one.encoder / 1e9, one.decoder / 1e9, one.total / 1e9) for one in counted if one.size == "B"}
    for name, by_hand in ELSEWHERE.items():
        assert found[name] == pytest.approx(by_hand, rel=0.03)
    assert found["SimMIM"][0] == pytest.approx(2 * 17.5, rel=0.01)  # a ViT-B, less what hidden patches' pixels cost
    assert {one.name for one in counted} == {
        "MAE",
        "CrossMAE .75",
        "CrossMAE .25",
        *ELSEWHERE,
        "SimMIM",
        "AMT on SimMIM",
    }


def test_decoders_compute_what_was_worked_out_by_hand(counted: list[Counted]) -> None:
    """Decoder blocks in GFLOP, by hand from their sizes; CrossMAE's own figure shows the like (1.0 and 4.1 of 25 %)."""
    by_hand = {("S", "MAE"): 2.81, ("S", "CrossMAE .25"): 1.04, ("S", "CrossMAE .75"): 2.64,
               ("B", "MAE"): 10.59, ("B", "CrossMAE .25"): 4.09, ("B", "CrossMAE .75"): 10.37}  # fmt: skip
    for one in (one for one in counted if (one.size, one.name) in by_hand):
        assert one.decoder / 1e9 == pytest.approx(by_hand[one.size, one.name], abs=0.02)


def test_what_is_kept_is_in_the_papers_proportion(counted: list[Counted]) -> None:
    """Table 4's memory, weights and optimiser (16 bytes a parameter) off, is to ours as one number, within a tenth."""
    kept = {one.name: one.kept for one in counted if one.size == "B"}
    parameters = {one.name: one.parameters for one in counted if one.size == "B"}
    printed = {one.row: float(one.value) * 2**20 for one in references("crossmae/table4") if one.column == "memory"}
    ratios = [(printed[name] - 16 * parameters[name]) / (kept[name] or 1) for name in printed]
    assert max(ratios) / min(ratios) < 1.15


def test_what_is_kept_is_what_a_cpu_keeps(counted: list[Counted]) -> None:
    """CrossMAE ViT-S with 25 % predicted, built in earnest."""
    config = find("pretrain/crossmae_vits_800ep").build()
    order = torch.arange(196)[None]
    masked = Masked(order[:, :49], order[:, 49:98], order[:, 98:])
    method, images = build_method(config.method, config.encoder), torch.zeros(1, 3, 224, 224)
    saved = Saved(method)
    with saved.counting():
        loss = method(images, masked)
    assert loss.requires_grad
    [kept] = [one.kept for one in counted if (one.size, one.name) == ("S", "CrossMAE .25")]
    assert kept == pytest.approx(saved.bytes, rel=0.01)


def test_saved_tensors_of_a_layer_one_can_count() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
        found = kept_for_backward(model, torch.zeros(7, 10))
    assert found == 4 * 7 * (10 + 20)  # each layer's input, the second's being the ReLU's output


@pytest.mark.parametrize(("image", "multiply_adds"), [(224, 17.56), (1024, 659.8)])
def test_attention_is_counted(image: int, multiply_adds: float) -> None:
    """Of a plain ViT-B/16: the figures at which fvcore alone says 16.87 and 350.8."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", img_size=image, num_classes=0).eval()
        found = forward_operations(model, torch.zeros(1, 3, image, image))
    assert found / 2e9 == pytest.approx(multiply_adds, rel=2e-3)


@pytest.mark.slow
def test_detectors_have_detectron2s_parameters() -> None:
    counts = [one.parameters for one in detectors()]
    assert counts == [110_895_792, 330_684_656, 661_203_760]


def test_the_table_without_and_with_runs(tmp_path: Path) -> None:
    runs = Published(tmp_path)
    runs.pretrain()
    runs.pretraining("pretrain/crossmae_vits_800ep")
    runs.pretraining("pretrain/mae_amt_vitb_400ep", "encoder.width=384", "encoder.heads=6", "batch=512")
    grid = compute.table(records.read(tmp_path), sizes="S", only=("pretrain",))
    assert [row[0] for row in grid.rows] == [
        "ViT-S, MAE", "ViT-S, CrossMAE .75", "ViT-S, CrossMAE .25",
        "ViT 96x4/8, crossmae .25", "ViT-S/16, mae with attention-driven masking",
    ]  # fmt: skip
    assert grid.rows[2][1:4] == ("32.19", "2.20", "1.04")
    assert grid.rows[2][-1] == "3.32 s/step of 4096 (1,234 images/s, 512 MiB, a CPU)"
    assert grid.rows[0][-1] == compute.BLANK
    [found] = [found for found in records.read(tmp_path) if found.run.path.name.startswith("crossmae_vits")]
    result = json.loads(found.run.result.read_text()) | {"loading": {"workers": 2, "cores": 8, "waiting": 0.426}}
    found.run.result.write_text(json.dumps(result))
    cost = next(iter(compute.measured([found for found in records.read(tmp_path) if found.result == result]).values()))
    assert cost.text == "3.32 s/step of 4096 (1,234 images/s, 512 MiB, 43% waiting for data, a CPU)"
    for how in ("terminal", "markdown", "latex", "csv", "html"):
        text = grid.text(how, width=200)  # type: ignore[arg-type]
        assert "32.19" in text
    assert json.loads(grid.text("json"))["rows"][2]["GFLOP, encoder"] == "2.20"


def test_what_papers_print_is_beside_it() -> None:
    printed = compute._printed()
    assert printed["B", "CrossMAE .25"] == "6.32 min, 36,805 MB (x2); 3.38 min, 41,177 MB (x4)"
    assert printed["B", "MAE"] == "9.35 min, 68,386 MB (x2); 5.19 min (x4)"
    assert printed["H", "Mask R-CNN"] == "1.098 s; 31.5 GB"


# ------------------------------------------------------------------------------------------------------- predicted


@pytest.mark.parametrize(
    ("recipe", "table", "row", "gpus"),
    [
        ("pretrain/mae_vitb_400ep", "crossmae/table4", "MAE", 2),
        ("pretrain/crossmae_vitb_400ep_predict75", "crossmae/table4", "CrossMAE .75", 2),
        ("pretrain/crossmae_vitb_400ep", "crossmae/table4", "CrossMAE .25", 2),
        ("pretrain/mae_vitb_800ep", "crossmae/table18", "MAE", 4),
        ("pretrain/crossmae_vitb_800ep", "crossmae/table18", "CrossMAE .25", 4),
    ],
)
def test_the_predicted_cost_is_near_the_printed_one(recipe: str, table: str, row: str, gpus: int) -> None:
    config = find(recipe).build()
    predicted = cost.cost_of(config)
    [minutes] = [one.value for one in references(table) if (one.row, one.column) == (row, "minutes")]
    assert predicted is not None
    assert predicted.hours == pytest.approx(float(minutes) / 60 * gpus * config.epochs, rel=0.15)


def test_the_arithmetic_is_that_of_the_live_models(counted: list[Counted]) -> None:
    totals = {(one.size, one.name): one.total for one in counted}
    for size, name, recipe in counting.wanted("SB"):
        if name not in (
            "MaskAlign",
            "AMT on SimMIM",
        ):  # a teacher is not trained; the arithmetic knows no throwing here
            assert operations(counting.config_of(recipe)) == pytest.approx(totals[size, name], rel=0.03)


def test_where_a_cost_comes_from() -> None:
    said = find("pretrain/crossmae_vitb_800ep")
    assert cost.cost_of(said.build(), said.function) == Cost(180, "the recipe")
    detection = find("det/mask_rcnn_vitdet_b_100ep").build()
    seconds = cost.cost_of(detection)
    assert seconds is not None
    assert seconds.hours == pytest.approx(1029, abs=1)  # 184375 steps of 64 images at .314 s
    half = cost.cost_of(replace(detection, image=512))
    assert half is not None
    assert math.isclose(half.hours, seconds.hours / 4)
    assert cost.cost_of(replace(detection, encoder=replace(detection.encoder, width=96, heads=3))) is None
    assert math.isclose((seconds + Cost(1, "x")).hours, seconds.hours + 1)
    assert SIZES["B"].grid == 14


def test_a_method_that_is_not_known_has_no_cost() -> None:
    class Other(MAEConfig):
        """Another way to pretrain."""

    config = replace(find("pretrain/mae_vitb_800ep").build(), method=Other())
    assert operations(config) is None
    assert cost.cost_of(config) is None


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_no_prose_states_a_cost_that_tables_do_not_read(recipe: Recipe) -> None:
    written = recipe.function.__doc__ or ""
    assert not re.search(r"[Aa]bout [\d.]+ (h|days) on \d+ A100", written), "use @costs"
    said = stated(recipe.function)
    assert said is None or recipe.about.endswith(said.text)


def test_a_stated_cost_is_whole() -> None:
    for wrong in (
        {"gpus": 4},
        {"gpus": 4, "hours": 1.0, "days": 1.0},
        {"gpus": 0, "hours": 1.0},
        {"gpus": 1, "days": -1.0},
    ):
        with pytest.raises(ValueError, match="give hours or days"):
            costs(**wrong)  # type: ignore[arg-type]

"""The numbers of papers against an independent reading of their sources, and what is said of a bad file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench.engine.run.config import leaves
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.tables import paper, paper_check, paper_table
from mimbench.jobs.tables.matching import equal
from mimbench.jobs.tables.paper import PAPERS

# Typed from the sources a second time, table by table: label, then the columns in order; - is a cell without a number.
READ_AGAIN = {
    "crossmae/table1": """
        Supervised 79.0 82.3 82.6 83.1
        DINO - 82.8 - -
        MoCo v3 81.4 83.2 84.1 -
        BEiT (+DALL-E) - 83.2 85.2 -
        MultiMAE - 83.3 - -
        MixedAE - 83.5 - -
        CIM 81.6 83.3 - -
        MAE 78.9 83.3 85.4 85.8
        CrossMAE .25 79.2 83.5 85.4 86.3
        CrossMAE .75 79.3 83.7 85.4 86.4""",
    "crossmae/readme": """
        CrossMAE ViT-S 79.318 - -
        CrossMAE ViT-B 83.722 96.686 .729
        CrossMAE ViT-L 85.432 - -
        CrossMAE ViT-H 86.256 - -
        CrossMAE ViT-B, 448 px 84.598 - -
        MAE ViT-B, 448 px 84.8 - -
        MAE ViT-H 85.9 - -""",
    "crossmae/readme_4090": "CrossMAE ViT-S 79.462 94.864 .907",
    "crossmae/table2": """
        Supervised 47.6 49.6 42.4 43.8
        MoCo v3 47.9 49.3 42.7 44.0
        BEiT 49.8 53.3 44.4 47.1
        MixedAE 50.3 - 43.5 -
        MAE 51.2 54.6 45.5 48.6
        CrossMAE .75 52.1 54.9 46.3 48.8""",
    "crossmae/table3a": "MAE 83.0\n CrossMAE 83.3\n CrossMAE + self-attention 83.3",
    "crossmae/table3b": ".65 83.5\n .75 83.3\n .85 83.3",
    "crossmae/table3c": ".15 83.1\n .25 83.2\n .75 83.3",
    "crossmae/table3d": "1 82.9\n 3 83.3\n 6 83.5\n 12 83.3",
    "crossmae/table3e": "1 83.0\n 4 83.1\n 8 83.1\n 12 83.3",
    "crossmae/table3f": "224 83.2\n 448 84.6",
    "crossmae/table4": """
        MAE 83.0 9.35 68386
        CrossMAE .75 83.3 8.41 57987
        CrossMAE .25 83.2 6.32 36805""",
    "crossmae/table5": """
        MAE 83.0 9.35
        + cross-attention 82.9 7.38
        + partial reconstruction 83.2 6.32
        + inter-block attention 83.3 8.41""",
    "crossmae/table6": """
        block 1 .196 .042
        block 2 .149 .058
        block 3 .181 .047
        block 4 .153 .057
        block 5 .193 .043
        block 6 .161 .054
        block 7 .207 .038
        block 8 .179 .048
        sum 1.418 .388""",
    "crossmae/table7": """
        MAE 83.0
        MAE + inter-block attention 83.0
        CrossMAE .25 83.2
        CrossMAE .75 83.3""",
    "crossmae/table8": "linear 83.2\n softmax 83.2",
    "crossmae/table9": "CrossMAE 83.3\n + projection of each map 83.5",
    "crossmae/table12": "MAE 49.7 65.1\n CrossMAE .75 51.5 65.4",
    "crossmae/table13": "MAE 20.11\n CrossMAE .75 20.05\n CrossMAE .25 19.97",
    "crossmae/table14": "CrossMAE .25 83.24",
    "crossmae/table15": "grid 83.2\n random 83.3",
    "crossmae/table16": "MAE 79.8 57.9\n CrossMAE .25 79.4 57.9\n CrossMAE .75 80.1 57.8",
    "crossmae/table17": "MAE 47.7\n CrossMAE .25 47.7\n CrossMAE .75 48.1",
    "crossmae/table18": "MAE 83.3 5.19 -\n CrossMAE .25 83.5 3.38 41177",
    "mae/readme": "MAE 83.664 85.952 86.928",
    "mae/table5": "MAE 48.1 53.6",
    "mae/ade20k": "MAE, public run 48.15\n MAE, mmsegmentation 0.24, fp16 48.13",
    "mae/seeds": "MAE 83.57",
    "mae/linear": "MAE, README 67.8 76.0 77.2\n MAE, paper 68.0 75.8 76.6",
    "mae/transfer": "MAE 80.5 57.9",
    "mae/coco": "25 epochs 48.1 43.2\n 50 epochs 50.1 44.6\n 100 epochs 50.3 44.9",
    "vitdet/table5": "ViT-B 51.6 45.9\n ViT-L 55.6 49.2\n ViT-H 56.7 50.1",
    "vitdet/detectron2": "ViT-B 51.6 45.9\n ViT-L 55.5 49.2\n ViT-H 56.7 50.2",
    "vitdet/table4": """
        none (random) 48.1 42.6 50.0 44.2
        ImageNet-1k, supervised 47.6 42.4 49.6 43.8
        ImageNet-21k, supervised 47.8 42.6 50.6 44.8
        ImageNet-1k, MAE 51.2 45.5 54.6 48.6""",
    "vitdet/cascade": """
        ViT-B, paper 54.0 46.7
        ViT-L, paper 57.6 49.8
        ViT-H, paper 58.7 50.9
        ViT-B, detectron2 54.0 46.7
        ViT-L, detectron2 57.6 50.0
        ViT-H, detectron2 58.7 51.0""",
    "vitdet/system": "ViT-B 56.0 48.0\n ViT-L 59.6 51.1\n ViT-H 60.4 52.0",
    "vitdet/lvis": "ViT-B 40.2 38.2\n ViT-L 46.1 43.6\n ViT-H 49.1 46.0",
    "vitdet/cost": "ViT-B .314 10.9\n ViT-L .603 20.9\n ViT-H 1.098 31.5",
    "maskalign/card": """
        ViT-B/16, teacher CLIP-B/16 85.4
        ViT-L/16, teacher CLIP-B/16 86.5
        ViT-L/16, teacher CLIP-L/14 at 196 px 87.4""",
    "pe/table14_coco": """
        OpenAI CLIP-L 54.0 47.5
        MetaCLIP-G 53.2 46.7
        SigLIP-so 54.4 47.6
        MAE-L 55.6 49.3
        EVA02-L 54.9 48.2
        SigLIP2-so 56.0 49.4
        SigLIP2-g-opt 57.1 50.2
        DINOv2-L 55.7 49.0
        DINOv2-g 57.2 50.0
        PE core G 57.0 49.8
        PE spatial G 57.8 50.3""",
    "pe/table14_lvis": """
        OpenAI CLIP-L 45.0 41.9
        MetaCLIP-G 45.1 41.9
        SigLIP-so 45.0 41.9
        MAE-L 46.1 43.9
        EVA02-L 49.3 45.2
        SigLIP2-so 49.3 45.6
        SigLIP2-g-opt 52.9 48.5
        DINOv2-L 46.7 43.5
        DINOv2-g 51.5 47.3
        PE core G 51.9 47.9
        PE spatial G 54.2 49.3""",
    "detection/mae_port": "ViT-B, TPU weights 51.1 45.5\n ViT-B, GPU weights 51.1 45.4",
    "detection/benchmarking": """
        supervised 47.9 42.9 49.3 43.9
        MoCo v3 47.9 42.7 49.3 44.0
        BEiT 49.8 44.4 53.3 47.1
        MAE 50.3 44.9 53.3 47.2""",
    "detection/eva02": "EVA-02-B, IN21k 55.5 47.1\n EVA-02-L, M38m 59.2 50.8",
    "detection/eva02_lvis": "EVA-02-B, IN21k 47.1 41.4\n EVA-02-L, M38m 55.3 48.6",
    "detection/eva_system": """
        EVA-02-B, 1536 px 58.9 50.7
        EVA-02-L, 1536 px 62.3 53.8
        EVA-02-L + O365 64.1 54.3
        EVA-02-L + O365, for masks 63.9 55.4
        EVA-01-g + O365 64.2 53.9
        EVA-01-g + O365, for masks 63.9 55.0""",
    "detection/mim": """
        SimMIM-B, ViTDet 52.3 -
        HiViT-B, ViTDet 53.3 -
        CAE-B, 300 epochs 48.3 42.7
        CAE-B, 800 epochs 49.9 43.9
        CAE-B, 1600 epochs 50.3 44.2
        CAE-L, 1600 epochs 54.5 47.5
        MAE-B, by CAE 48.4 42.6
        MAE-L, by CAE 54.0 47.1
        MIMDet-B 51.7 46.2
        MIMDet-L 54.3 48.2
        ConvMAE-B, 25 epochs 53.2 47.1
        iBOT-B, Cascade 51.5 -
        ColorMAE-G-B, 300 epochs 48.7 -
        ColorMAE-G-B, 800 epochs 49.5 -
        MILAN-B, ViTDet 52.6 -
        MAE-B, 200 epochs, ViTDet of 36 45.9 -""",
    "detection/vit_adapter": """
        DINOv2-S, Mask R-CNN 3x 51.5 45.6
        DINOv2-B, Mask R-CNN 3x 54.1 47.8
        DINOv2-L, Mask R-CNN 3x 55.3 49.0
        DeiT-S, Mask R-CNN 3x 48.2 42.8
        DeiT-B, Mask R-CNN 3x 49.6 43.6
        AugReg-L, Mask R-CNN 3x 52.1 46.0
        MAE-B, Mask R-CNN 25 epochs 50.3 44.7
        DINOv2-S, ViT-CoMer 1x 48.6 42.9
        DINOv2-B, ViT-CoMer 1x 52.0 45.5
        DINOv2-S, ViT-CoMer 3x 52.1 45.8
        DINOv2-B, ViT-CoMer 3x 54.2 47.6
        BEiT-L, HTC++ 58.4 50.8
        BEiT v2-L, HTC++ 58.8 51.1""",
    "detection/dino_detr": """
        MAE-B, 12 epochs 50.2
        MAE-B, 50 epochs 55.0
        MAE-L, 12 epochs 52.9
        MAE-L, 50 epochs 57.5
        EVA-02-B, 12 epochs 55.8
        EVA-02-L, 12 epochs 58.9""",
    "detection/frozen": """
        DINOv3-7B, Plain-DETR, O365 65.6 -
        DINOv2-S, ViT-Split 48.5 42.8
        DINOv2-B, ViT-Split 51.8 45.4
        DINOv2-L, ViT-Split 53.0 46.6
        DINOv3-L, PMT 640 px - 45.4
        DINOv3-L, PMT 1280 px - 49.0""",
    "famt/abstract": "AMT, arXiv v2 2.9 5.9\n FAMT, arXiv v3 1.3 3.9\n FAMT, journal 1.8 -",
}


def test_the_list_of_tables_is_the_same_for_people_and_programs() -> None:
    shown, written = (CliRunner().invoke(app, ["papers", "list", *more]).stdout for more in ((), ("--json",)))
    assert [line.split()[0] for line in shown.splitlines()] == [one["table"] for one in json.loads(written)]


def test_the_example_of_the_docs_says_how_its_cell_is_filled(tmp_path: Path) -> None:
    """A row of a method that mimbench does not pretrain needs an encoder, or the advice fills no cell."""
    shutil.copytree(PAPERS, tmp_path / "papers")
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    (example,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "MIM-X" in block]
    (tmp_path / "papers" / "mimx.toml").write_text(example)
    assert [line for line in paper_check.problems(tmp_path / "papers") if "mimx" in line] == []
    (reference,) = paper.references("mimx/main", tmp_path / "papers")
    (command,), _ = paper_table.filling(reference, [])
    assert command == "mimbench run cls/finetune_vitb checkpoint=FILE  # an encoder pretrained by mimx"


def test_every_table_was_read_twice() -> None:
    assert set(paper.tables()) == set(READ_AGAIN)


@pytest.mark.parametrize("name", READ_AGAIN)
def test_numbers_are_the_sources(name: str) -> None:
    table = paper.tables()[name]
    stored = {(one.row, one.column): str(one.value) for one in paper.references(name)}
    read = {}
    for line in READ_AGAIN[name].strip().splitlines():
        *label, = line.split()  # fmt: skip
        numbers = label[-len(table.columns) :]
        for column, number in zip(table.columns, numbers, strict=True):
            if number != "-":
                read[" ".join(label[: -len(numbers)]), column.key] = number.replace(".", "0.", number.startswith("."))
    assert stored == read


@pytest.mark.parametrize("table", ["pe/table14_coco", "pe/table14_lvis"])
def test_the_recipe_of_a_cell_is_its_printed_protocol(table: str) -> None:
    """Every setting that PE prints, in the recipe that is to reproduce the cell."""
    for reference in paper.references(table):
        assert reference.recipe is not None
        science = {f"eval.{leaf.key}": leaf.value for leaf in leaves(find(reference.recipe).build())}
        printed = {key: value for key, value in reference.facts.items() if key in science}
        assert len(printed) > 30
        assert {key: value for key, value in printed.items() if not equal(_plain(science[key]), value)} == {}


def test_a_cell_of_an_encoder_made_elsewhere_asks_for_its_file() -> None:
    by_row = {one.row: paper_table.filling(one, [])[0] for one in paper.references("pe/table14_coco")}
    [command] = by_row["DINOv2-L"]
    assert command.startswith("mimbench run det/vitdet_dinov2_l_pe checkpoint=FILE")
    assert [command.split()[2] for command in by_row["MAE-L"]] == ["pretrain/mae_vitl_1600ep", "det/vitdet_mae_l_pe"]


def _plain(value: object) -> object:
    return "none" if value is None else value


def test_seeds_are_the_sources() -> None:
    [crossmae] = paper.references("crossmae/table14")
    [mae] = paper.references("mae/seeds")
    assert crossmae.seeds == (83.20, 83.29, 83.24, 83.21)
    assert mae.seeds == (83.63, 83.66, 83.52, 83.46)
    assert crossmae.deviation is mae.deviation is None


def test_deviations_are_detectron2s() -> None:
    given = {one.deviation for one in paper.references("vitdet/table5")}
    assert given == {0.10, None}
    assert {one.deviation for one in paper.references("vitdet/lvis")} == {0.30}


def test_what_the_sources_do_not_say_is_marked() -> None:
    [box] = [one for one in paper.references("crossmae/table2") if (one.row, one.column) == ("CrossMAE .75", "box_b")]
    assert {"eval.vitdet.rel_pos", "eval.steps", "eval.batch", "eval.lr"} <= set(box.unknown)
    assert "eval.vitdet.rel_pos" not in box.facts
    [mae] = [one for one in paper.references("crossmae/table2") if (one.row, one.column) == ("MAE", "box_b")]
    assert mae.facts["eval.vitdet.rel_pos"] is False
    for one in paper.references("crossmae/table12"):
        assert {"eval.pool", "eval.norm"} <= set(one.unknown)
    assert all(one.unused for one in paper.references("famt/abstract"))


def test_nothing_that_is_only_recalled_is_here() -> None:
    """MaskAlign's COCO numbers are in nobody's source."""
    assert not [one for one in paper.references("maskalign/card") if one.metric != "finetune_top1"]


def test_the_files_are_in_order() -> None:
    assert paper_check.problems() == []


def test_every_number_is_used_or_says_why_not() -> None:
    for name in paper.tables():
        for one in paper.references(name):
            asks = {"encoder", "pretrain.method.kind"} <= set(one.select) and (one.facts or one.unknown)
            assert one.unused or asks, one.where


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("crossmae/table1", ["crossmae/table1"]),
        ("crossmae/table3", [f"crossmae/table3{part}" for part in "abcdef"]),
        ("maskalign", ["maskalign/card"]),
        ("table18", ["crossmae/table18"]),
    ],
)
def test_names(name: str, meant: list[str]) -> None:
    assert paper.find(name) == meant


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crossmae/tabel2", "unknown table 'crossmae/tabel2'; did you mean crossmae/table2"),
        ("crosmae", "did you mean crossmae"),
        ("readme", "did you mean crossmae/readme or mae/readme"),
        ("zzz", "`mimbench papers list` lists all"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        paper.find(name)


README = 'source = "the repository\'s README"\n'
BROKEN = [  # what is replaced, by what, and what is then said
    ("schema = 1", "schema = 2", "has schema 2, but this mimbench reads 1"),
    ("schema = 1", "schema = ", "maskalign.toml is not a TOML file"),
    ("warmup_epochs = 20\n", "warmup_epoch = 20\n", "no run records pretrain.warmup_epoch; did you mean"),
    ('source = "ModelCard.md"', 'sauce = "ModelCard.md"', "sauce is not a key of a paper; did you mean source"),
    ("top1 = 85.4", 'top1 = "a lot"', "tables.card.rows.0.values.top1"),
    ("values = { top1 = 85.4 }", "values = { top2 = 85.4 }", "unknown column 'top2'; did you mean top1"),
    ('"pretrain/maskalign_vitb"', '"pretrain/maskaling_vitb"', "unknown recipe 'pretrain/maskaling_vitb'; did"),
    ('protocol = "finetune_b"', 'protocol = "finetune_d"', "unknown protocol 'maskalign/finetune_d'; did you mean"),
    ('extends = "finetune_b"', 'extends = "finetune_l"', "protocol maskalign/finetune_l extends itself"),
    ('metric = "finetune_top1"', 'metric = "finetop1"', "no run measures 'finetop1'"),
    (f"{README}[protocols.pretraining", "known = false\n[protocols.pretraining", "known = false, but"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BROKEN, ids=[new for _, new, _ in BROKEN])
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    shutil.copytree(PAPERS, tmp_path / "papers")
    file = tmp_path / "papers" / "maskalign.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    found = paper_check.problems(tmp_path / "papers")
    assert found, "nothing was said"
    assert all("maskalign" in line for line in found)
    assert any(message in line for line in found), found

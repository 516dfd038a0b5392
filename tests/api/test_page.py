"""docs/python.md, run line by line as a reader would; results that the page states are compared."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mimbench
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.data.handwritten import Sizes, make_handwritten

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHAPE = ViT(width=768, depth=2, heads=12)  # ViT-B, but for its depth


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a reader: a checkpoint as CrossMAE's code writes it, two pictures, a COCO data set, predictions."""
    place = tmp_path_factory.mktemp("notebook")
    torch.manual_seed(0)
    decoder = {"decoder_blocks.0.cross_attn.q.weight": torch.zeros(4, 4), "wfm.linear.weight": torch.zeros(1, 3)}
    state = {**VisionTransformer(SHAPE).state_dict(), **decoder}
    torch.save({"model": state, "epoch": 799}, place / "crossmae_vitb.pth")
    for name, size in (("cat", (500, 375)), ("dog", (333, 400))):
        Image.linear_gradient("L").resize(size).convert("RGB").save(place / f"{name}.jpg")
    digits = make_handwritten(place / "digits", 0, Sizes(300, 20, coco_train=8, coco_val=8))
    (place / "coco").symlink_to(digits / "coco" if (digits / "coco").is_dir() else digits)
    truth = json.loads((place / "coco" / "annotations" / "instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: one[key] for key in keys}, "score": 0.9} for one in truth["annotations"]]
    (place / "predictions.json").write_text(json.dumps(found))
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That directory, with a runs root and a small data set in the place of `handwritten`."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIMBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMBENCH_DATA_HANDWRITTEN", str(place / "digits"))


def _states(block: str, node: ast.Expr) -> str | None:
    """What the page says that an expression gives: the comment at the end of its line."""
    line = block.splitlines()[(node.end_lineno or 0) - 1]
    _, found, comment = line[node.end_col_offset or 0 :].partition("  # ")
    return comment if found else None


def test_every_line_of_the_page_works(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    compared = 0
    for block in BLOCKS:
        for node in ast.parse(block).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), str(PAGE), "eval"), names)
                said = _states(block, node)
                assert said is None or repr(value) == said, ast.unparse(node)
                compared += said is not None
            else:
                exec(compile(ast.Module([node], []), str(PAGE), "exec"), names)
    assert compared > 12
    assert names["metrics"]["box_ap"] == pytest.approx(100)
    assert 0 <= names["record"].metrics["knn_top1"] <= 100
    capsys.readouterr()


def test_the_page_shows_every_function() -> None:
    code = "\n".join(BLOCKS)
    for name in ("load_encoder", "inspect", "load_backbone", "evaluate_coco", "run", "results", "table"):
        assert f"mimbench.{name}(" in code
    assert "from mimbench import Run, Study" in code


def test_names_in_the_prose_are_there(here: None) -> None:
    for name in re.findall(r"mimbench\.(\w+)", TEXT):
        assert hasattr(mimbench, name)
    code = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    for call in re.findall(r"`(mimbench\.\w+\(.*?\))`", code, re.DOTALL):
        compile(call, str(PAGE), "eval")
    for attribute in re.findall(r"`encoder\.(\w+)", code):
        assert hasattr(mimbench.load_encoder("crossmae_vitb.pth"), attribute)

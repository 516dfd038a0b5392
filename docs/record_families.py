"""docs/families.md: which family of checkpoints goes where, found out by trying a file of each.

    python docs/record_families.py

The rows are `backbones.checkpoints.families.FAMILIES`. The files are the small ones of the tests: those that the
originals named and shaped (tests/backbones/golden), and those that timm makes (tests/backbones/test_families_timm.py).
A family of which there is no such file has a row all the same, and question marks in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mimbench.backbones.checkpoints.export import Target, default_name, export_encoder  # noqa: E402
from mimbench.backbones.checkpoints.families import FAMILIES  # noqa: E402
from mimbench.backbones.checkpoints.family import Family  # noqa: E402
from mimbench.backbones.config import Traits, ViT  # noqa: E402
from mimbench.backbones.positions import fixed_table  # noqa: E402
from mimbench.backbones.vit import VisionTransformer  # noqa: E402
from mimbench.backbones.vitdet import vitdet_reason  # noqa: E402
from mimbench.backbones.vitdet_traits import detectron2_lacks  # noqa: E402
from mimbench.backbones.weights import Weights, open_weights  # noqa: E402
from tests.backbones.test_families_golden import GOLDEN, golden, write  # noqa: E402
from tests.backbones.test_families_timm import CASES, made  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
EXPORTS: tuple[Target, ...] = tuple(target for target in get_args(Target) if target != "safetensors")
INTRO = """# Families of checkpoints

<!-- Written by `python docs/record_families.py`; tests/test_families_page.py holds this page to it. -->

A file is of the first family in this list that its keys and shapes fit. `mimbench inspect FILE` says which, and what is
assumed. *Classifier*: k-NN, probes, few-shot and fine-tuning. *ViTDet*: Mask R-CNN, tuned (`--on coco`) or frozen
(`--on coco_frozen`); the encoder's arithmetic is kept as it is. The other columns are `mimbench export --to ...`:
where a library cannot represent an encoder, export refuses, and detectron2's cell says what its ViT lacks. A question
mark means that no file of the family was tried. The files are small; larger members of a family may differ in more, as
SigLIP-so400m does in the width of its MLPs.

"""
YES, NO, UNTRIED = "✓", "no", "?"


def files(folder: Path) -> Iterator[Path]:
    """Yield a file of each example."""
    for place in sorted(GOLDEN.glob("*.json")):
        if "state" in golden(place.stem) and "features" in golden(place.stem):
            yield write(folder, place.stem)
    for name, about in golden("plain_vits").items():
        if "shapes" in about:
            yield _saved(folder / f"{name}.pth", {key: _values(shape) for key, shape in about["shapes"].items()})
    for name, (_, changes) in CASES.items():
        if "embed_dim" not in changes and "gigantic" not in name:  # wide ones, of families that others stand for
            yield _saved(folder / f"{name}.pth", made(name, **{**changes, "depth": 1}).state_dict())
    alone, normless = (VisionTransformer(ViT(64, 1, 1, 8, 32), final_norm).state_dict() for final_norm in (True, False))
    yield _saved(folder / "mae_alone.pth", alone)
    yield _saved(folder / "plain.pth", {**normless, "pos_embed": _values([1, 17, 64])})
    yield _saved(folder / "mocov3.pth", {**alone, "pos_embed": fixed_table(64, (4, 4), rows_first=True)})
    whole = {key: _values(shape) for key, shape in golden("detectron2")["state"].items()}
    yield _saved(folder / "detectron2.pth", {"model": whole})
    yield _saved(folder / "start.pth", {key: value for key, value in whole.items() if ".rel_pos_" not in key})
    one = VisionTransformer(ViT(64, 1, 1, 14, 56), True, traits=Traits(layer_scale=True, registers=1)).state_dict()
    yield _saved(folder / "tips.pth", {("register_tokens" if key == "reg_token" else key): value
                                       for key, value in {**one, "mask_token": _values([1, 64])}.items()})  # fmt: skip


def _values(shape: list[int]) -> torch.Tensor:
    return torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).view(shape)


def _saved(file: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, file)
    return file


def cells(found: Weights) -> dict[str, str]:
    """Return what each column says of an open file."""
    said = {"classifier": YES}  # every weight of its encoder is accounted for, by name and shape (`Weights.require`)
    said["ViTDet"] = YES if vitdet_reason(found.traits) is None else NO
    with tempfile.TemporaryDirectory() as home:
        for target in EXPORTS:
            out = Path(home) / default_name(found.file, target)
            said[target] = _tried(lambda to=target, out=out: export_encoder(found.file, to, out))
    if lacking := detectron2_lacks(found.traits):
        said["detectron2"] = f"{NO}: {', '.join(lacking)}"
    return said


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ValueError:
        return NO
    return YES


def table() -> dict[str, dict[str, str]]:
    """Return the cells of each family by its title, of the first example that has most to refuse."""
    rows: dict[str, dict[str, str]] = {family.title: {} for family in FAMILIES}
    with tempfile.TemporaryDirectory() as home:
        for file in files(Path(home)):
            found = open_weights(file)
            try:
                family: Family = found.matched.family
                found.require()
            except ValueError:  # a file that must be told more than its keys
                continue
            mine = cells(found)
            for column, cell in mine.items():
                rows[family.title].setdefault(column, cell)
                if len(cell) > len(rows[family.title][column]):
                    rows[family.title][column] = cell
    return rows


def page() -> str:
    """Return the page."""
    columns = ["classifier", "ViTDet", *EXPORTS]
    lines = ["| family | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, found in table().items():
        lines.append("| " + " | ".join([title, *(found.get(column, UNTRIED) for column in columns)]) + " |")
    return INTRO + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(json.dumps({"page": str(PAGE), "families": len(FAMILIES)}))

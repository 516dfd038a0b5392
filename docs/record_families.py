"""docs/families.md: which family of checkpoints goes where, found out by trying a file of each.

    python docs/record_families.py

The rows are `backbones.checkpoints.families.FAMILIES`. The files are the small ones of the tests: those that the
originals named and shaped (tests/backbones/golden), and those that timm makes (tests/backbones/test_families_timm.py),
and a few that are made from these here. A family that is recognised and refused has its reason in the first column.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mimbench.backbones.checkpoints.export import Target, default_name, export_encoder  # noqa: E402
from mimbench.backbones.checkpoints.families import FAMILIES  # noqa: E402
from mimbench.backbones.checkpoints.family import Family  # noqa: E402
from mimbench.backbones.checkpoints.keys import unwrap  # noqa: E402
from mimbench.backbones.checkpoints.opening import open_checkpoint  # noqa: E402
from mimbench.backbones.checkpoints.recognise import recognise  # noqa: E402
from mimbench.backbones.checkpoints.stated import stated  # noqa: E402
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
where a library cannot represent an encoder, export refuses, and detectron2's cell says what its ViT lacks. The files
are small; larger members of a family may differ in more, as SigLIP-so400m does in the width of its MLPs.

"""
YES, NO = "✓", "no"


def files(folder: Path) -> Iterator[Path | str]:
    """Yield the location of each example."""
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

    yield from _rare(folder)


def _rare(folder: Path) -> Iterator[Path | str]:
    """Yield a file of each family that no test's file is of: made from those, or told by an option what it is."""
    shapes = golden("plain_vits")["crossmae"]["shapes"]
    last = {key: _values(shape) for key, shape in shapes.items() if not key.startswith(("wfm.", "dec_norms."))}
    norm = {"norm.weight": _values([len(last["blocks.0.norm1.weight"])]), "norm.bias": last["blocks.0.norm1.bias"]}
    yield _saved(folder / "crossmae_last.pth", {**last, **norm})
    tuned = {key.removeprefix("encoder."): _values(shape) for key, shape in golden("simmim_ape")["state"].items()}
    drop = ("mask_token", "decoder.")
    yield _saved(folder / "tuned.pth", {key: value for key, value in tuned.items() if not key.startswith(drop)})
    towers = {key: _values(shape) for key, shape in golden("clip_openai")["state"].items()}
    yield _saved(folder / "openai.pth", {**towers, "input_resolution": torch.tensor(32)})
    core, dense = ({key: _values(shape) for key, shape in golden(name)["state"].items()}
                   for name in ("pe_core", "pe_spatial"))  # fmt: skip
    tower = {key.removeprefix("visual."): value for key, value in core.items() if key.startswith("visual.")}
    yield _saved(folder / "pe_core_tower.pth", tower)
    yield _saved(folder / "pe_spatial_towers.pth", {f"visual.{key}": value for key, value in dense.items()})
    narrow = {"mlp_ratio": 0.1, "depth": 1, "num_heads": 16, "img_size": 28, "embed_dim": 1408}
    yield _saved(folder / "eva.pth", made("eva_giant_patch14_224", **narrow).state_dict())
    deit3 = made("deit3_base_patch16_224", img_size=64).state_dict()
    renamed = {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", key): value for key, value in deit3.items()}
    yield _saved(folder / "deit3.pth", {"model": renamed})
    told = {"vit_base_patch16_rope_ape_224": ["rope_vit"], "vit_pe_spatial_base_patch16_512": ["pe_spatial", "clip"],
            "vit_base_patch16_rpn_224": ["vit_rpn"]}  # fmt: skip
    for name, families in told.items():
        more = {"global_pool": "avg"} if "rpn" in name else {}
        file = _saved(folder / f"{name}.pth", made(name, img_size=64, **more).state_dict())
        yield from (f"{file}?family={family}" for family in families)
    tokenless = VisionTransformer(ViT(64, 1, 1, 8, 32), True, traits=Traits(class_token=False)).state_dict()
    yield _saved(folder / "ijepa.pth", tokenless)
    local = {"modality_encoders.IMAGE.local_encoder.proj.weight": _values([64, 3, 8, 8])}
    yield _saved(folder / "data2vec2.pth", {**local, "blocks.0.norm1.weight": _values([64])})


def _values(shape: list[int]) -> torch.Tensor:
    return torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).view(shape)


def _saved(file: Path, state: Mapping[str, Any]) -> Path:
    torch.save(state, file)
    return file


def cells(found: Weights, location: Path | str) -> dict[str, str]:
    """Return what each column says of an open file."""
    said = {"classifier": YES}  # every weight of its encoder is accounted for, by name and shape (`Weights.require`)
    said["ViTDet"] = YES if vitdet_reason(found.traits) is None else NO
    with tempfile.TemporaryDirectory() as home:
        for target in EXPORTS:
            out = Path(home) / default_name(found.file, target)
            said[target] = _tried(lambda to=target, out=out: export_encoder(location, to, out))
    if lacking := detectron2_lacks(found.traits):
        said["detectron2"] = f"{NO}: {', '.join(lacking)}"
    return said


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ValueError:
        return NO
    return YES


def refusal(location: Path | str) -> tuple[Family, dict[str, str]] | None:
    """Return the family of a file that is recognised and refused, and its cells; None of one that must be told more."""
    opened = open_checkpoint(location)
    names, _ = unwrap(opened.weights)
    try:
        family = recognise(opened, {name: opened.weights[key] for key, name in names.items()}, stated(opened))
    except ValueError:
        return None
    reason = family.unfit[0][1] if family.unfit else ""
    try:
        family.traits({})
    except ValueError as error:
        reason = str(error)
    whole = open_weights(location, "detector").kind in ("detector", "ViTDet backbone")
    said = {"classifier": f"{NO}: {reason}", "ViTDet": YES if whole else NO, **dict.fromkeys(EXPORTS, NO)}
    return family, said


def table() -> dict[str, dict[str, str]]:
    """Return the cells of each family by its title, of the first example that has most to refuse."""
    rows: dict[str, dict[str, str]] = {family.title: {} for family in FAMILIES}
    with tempfile.TemporaryDirectory() as home:
        for location in files(Path(home)):
            found = open_weights(location)
            try:
                family: Family = found.matched.family
                found.require()
                mine = cells(found, location)
            except ValueError:
                if (refused := refusal(location)) is None:
                    continue
                family, mine = refused
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
        lines.append("| " + " | ".join([title, *(found[column] for column in columns)]) + " |")
    return INTRO + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(json.dumps({"page": str(PAGE), "families": len(FAMILIES)}))

"""`mimbench card RUN|ENCODER`: a model card in Markdown, with the metadata block that model hubs read.

    mimbench card runs/pretrain/crossmae_vitb_800ep-... -o README.md

It says what the encoder is, how it was trained, every number measured with it under the runs root (with its protocol,
and beside a paper's where one has it), which licence is known, and how to load it. Nothing is uploaded but with --push.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mimbench.backbones.content import content_hash
from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import encoder_hash, maker_of, makers
from mimbench.jobs.runs.records import Record
from mimbench.jobs.tables.formats import escape_markdown
from mimbench.jobs.tables.matching import Group, groups, shown
from mimbench.jobs.tables.paper_table import touched

LICENCES = {  # of weights that their authors published, by family
    "mae": "cc-by-nc-4.0",
    "crossmae": "cc-by-nc-4.0",
    "maskalign": "apache-2.0",
}
TASKS = {
    "finetune_top1": ("image-classification", "Fine-tuning, top-1"),
    "finetune_best_top1": ("image-classification", "Fine-tuning, top-1 of the best epoch"),
    "linear_top1": ("image-classification", "Linear probe, top-1"),
    "knn_top1": ("image-classification", "k-NN, top-1"),
    "box_ap": ("object-detection", "Mask R-CNN, box AP"),
    "mask_ap": ("image-segmentation", "Mask R-CNN, mask AP"),
}
SAID = (  # settings of a pretraining that a reader wants to know
    "method.kind", "masking.kind", "masking.mask", "masking.predict", "data", "epochs", "warmup_epochs", "batch",
    "base_lr", "weight_decay", "encoder.width", "encoder.depth", "encoder.heads", "encoder.patch", "encoder.image",
    "seed",
)  # fmt: skip
PROTOCOL = ("data", "epochs", "steps", "batch", "pool", "norm", "image", "vitdet.rel_pos", "k", "seed")


def card(target: str, root: Path) -> str:
    """The card of a pretraining's encoder, named as `mimbench status` does or by its directory, or of a file.

    Raises:
        ValueError: if it is neither, the run has no encoder yet, or the file is no encoder.
    """
    from mimbench.jobs.runs.control import find

    found = records.read(root)
    path = Path(target).expanduser()
    if path.is_file() and path.name != "run.json":
        return _of_file(path, found)
    run = find(target, root)
    known = {record.run.path.resolve(): record for record in [*found, *records.read(run.path.resolve().parent.parent)]}
    record = known[run.path.resolve()]
    if record.stage != "pretrain":
        raise ValueError(f"{run.path} is an evaluation: name the pretraining, or the encoder's file")
    if (made := encoder_hash(record)) is None:
        raise ValueError(f"{run.path} is {record.state}: it has no finished encoder to describe")
    return _card(record.recipe, made, run.encoder, record, found, None)


def encoder_of(target: str, root: Path) -> Path:
    """The file of the encoder that `card` describes."""
    from mimbench.jobs.runs.control import find

    path = Path(target).expanduser()
    return path if path.is_file() and path.name != "run.json" else find(target, root).encoder


def _of_file(path: Path, found: Sequence[Record]) -> str:
    made = content_hash(path)
    maker = makers(found).get(made)
    info = None
    if maker is None:
        from mimbench.backbones.checkpoint import load_encoder  # imports torch; only weights made elsewhere need it

        info = load_encoder(path)[1]
    return _card(maker.recipe if maker else path.stem, made, path, maker, found, info)


def _card(name: str, made: str, file: Path, maker: Record | None, found: Sequence[Record], info: Any) -> str:
    mine = [group for group in groups(found)[0] if _uses(group, made, found)]
    family = str(maker.science.get("method.kind")) if maker else info.family
    lines = [
        *_metadata(name, family, maker, mine),
        "",
        f"# {escape_markdown(name)}",
        "",
        _about(family, maker, info),
        "",
    ]
    lines += ["## How it was trained", "", *_training(maker, info), ""]
    lines += ["## Numbers", "", *_numbers(mine), "", *_beside_papers(mine, found)]
    lines += ["## How to load it", "", *_loading(file), "", "## Licence", "", _licence(family, maker), ""]
    lines += [f"Content of the weights: `{made}`."]
    return "\n".join(lines) + "\n"


def _uses(group: Group, made: str, found: Sequence[Record]) -> bool:
    """Whether these runs evaluated this encoder, or that of another seed of its pretraining."""
    made_by = makers(found)
    owner = made_by.get(made)
    for record in group.records:
        maker, epoch = maker_of(record, made_by)
        if (record.checkpoint or {}).get("hash") == made or (epoch is None and owner is not None and maker is owner):
            return True
    return False


def _metadata(name: str, family: str, maker: Record | None, mine: Sequence[Group]) -> list[str]:
    """YAML between dashes; texts as JSON, which is YAML."""
    lines = ["---", "library_name: mimbench", "pipeline_tag: image-feature-extraction"]
    if maker is None and family in LICENCES:
        lines.append(f"license: {LICENCES[family]}")
    lines += ["tags:", "- masked-image-modeling", "- vision-transformer", f"- {json.dumps(family)}"]
    if maker is not None:
        lines += ["datasets:", f"- {json.dumps(maker.data)}"]
    results = [(group, metric) for group in mine for metric in TASKS if group.values(metric)]
    if results:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        for group, metric in results:
            values, (task, label) = group.values(metric), TASKS[metric]
            data = json.dumps(group.records[0].data)
            lines += [
                "  - task:",
                f"      type: {task}",
                "    dataset:",
                f"      type: {data}",
                f"      name: {data}",
                "    metrics:",
                f"    - type: {metric}",
                f"      name: {json.dumps(label)}",
                f"      value: {sum(values) / len(values):.4f}",
            ]
    return [*lines, "---"]


def _about(family: str, maker: Record | None, info: Any) -> str:
    shape = asdict(info.vit) if info else {key: maker.science[f"encoder.{key}"] for key in _SHAPE} if maker else {}
    sizes = f"{shape['depth']} blocks {shape['width']} wide with {shape['heads']} heads"
    patches = f"patches of {shape['patch']} pixels, pretrained on images of {shape['image']}"
    caveat = (maker.result or {}).get("facts", {}).get("caveat", "") if maker else ""
    warning = f" **{escape_markdown(caveat)}.**" if caveat else ""
    by = escape_markdown(family)
    return f"A plain vision transformer, pretrained without labels by {by}: {sizes}, {patches}.{warning}"


_SHAPE = ("width", "depth", "heads", "patch", "image")


def _training(maker: Record | None, info: Any) -> list[str]:
    if maker is None:
        recipe = f", recipe {escape_markdown(info.recipe)}" if getattr(info, "recipe", None) else ""
        return [f"Made elsewhere{recipe}; what is not in the file is not known."]
    result = maker.result or {}
    lines = ["| setting | value |", "| :-- | :-- |"]
    said = {key: maker.science[key] for key in SAID if key in maker.science}
    lines += [f"| {key} | {escape_markdown(shown(value))} |" for key, value in said.items()]
    hours = result.get("seconds", 0) / 3600
    device, commit = escape_markdown(str(result.get("device"))), result.get("commit") or "unknown"
    lines += ["", f"{hours:.3g} hours on {device}; commit {commit}."]
    return lines


def _numbers(mine: Sequence[Group]) -> list[str]:
    rows = []
    for group in mine:
        for metric, (_, label) in TASKS.items():
            values = group.values(metric)
            if values:
                mean = sum(values) / len(values)
                seeds = f"{len(values)} seeds" if len(values) > 1 else "one seed"
                science = group.records[0].science
                how = ", ".join(f"{key} {shown(science[key])}" for key in PROTOCOL if key in science and key != "seed")
                rows.append(f"| {label} | {mean:.2f} | {seeds} | {escape_markdown(how)} |")
    return ["| | % | | protocol |", "| :-- | --: | :-- | :-- |", *rows] if rows else ["Not evaluated yet."]


def _beside_papers(mine: Sequence[Group], found: Sequence[Record]) -> list[str]:
    """What a paper prints for the same, and whether the protocol is."""
    names = {record.name for group in mine for record in group.records}
    lines = []
    for table in touched(found):
        for label, cells in table.rows:
            for cell in cells.values():
                if cell.best and names & {record.name for record in cell.best.group.records}:
                    told = f"{table.name}, {label}: {cell.printed} printed, {cell.ours} here, {cell.difference}"
                    lines.append(f"- {escape_markdown(told)}: {escape_markdown(cell.best.verdict.text)}")
    return ["Beside papers (a difference in brackets is not one):", "", *lines, ""] if lines else []


def _loading(file: Path) -> list[str]:
    return [
        "```bash",
        f"mimbench evaluate {file.name} --on knn,linear --data imagenet",
        f"mimbench export {file.name} --to timm",
        "```",
        "",
        "```python",
        "from mimbench.backbones.checkpoint import build_encoder",
        "from mimbench.backbones.config import ViT",
        "",
        f'encoder, info = build_encoder("{file.name}", ViT())  # its sizes are the file\'s',
        "features = encoder(images)  # images (B, 3, H, W) normalised by info.mean and info.std; .pooled and .grid",
        "```",
        "",
        "For timm, the exported file holds the arguments of `timm.create_model` in its metadata under `timm`.",
    ]


def _licence(family: str, maker: Record | None) -> str:
    if maker is not None:
        return (
            "mimbench is Apache-2.0; the licence of these weights is for whoever trained them to choose and write here."
        )
    known = LICENCES.get(family)
    return f"The authors of {family} publish their weights under {known}." if known else "Not known: ask who made it."

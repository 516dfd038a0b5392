"""`mimbench card RUN|ENCODER`: a model card in Markdown, with the metadata block that model hubs read.

    mimbench card crossmae_vitb_800ep-1a2b -o README.md

It describes the encoder, its training, every number measured with it under the runs root (with its protocol, and beside
the paper's number if there is one), the licence if known, and how to load it. Nothing is uploaded without --push.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mimbench.backbones.checkpoints.huggingface.folder import shown_name, weights_file
from mimbench.backbones.checkpoints.info import TRAINING
from mimbench.backbones.content import content_hash
from mimbench.engine.run.task import CardEntry
from mimbench.jobs.runs import records
from mimbench.jobs.runs.encoders import encoder_hash, maker_of, makers
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import card_entries, known, makes_encoders, protocols
from mimbench.jobs.tables.formats import escape_markdown
from mimbench.jobs.tables.matching import Group, groups, shown
from mimbench.jobs.tables.paper_table import touched

LICENCES = {  # of weights that their authors published, by family
    "mae": "cc-by-nc-4.0",
    "crossmae": "cc-by-nc-4.0",
    "maskalign": "apache-2.0",
}


def card(target: str, root: Path) -> str:
    """Return the card of an encoder: of a pretraining, given as in `mimbench status` or by directory, or of a file.

    Raises:
        ValueError: if `target` is neither, the run has no encoder yet, or the file is not an encoder.
    """
    from mimbench.jobs.runs.run_names import find

    found = records.read(root)
    path = weights_file(Path(target).expanduser())
    if path.is_file() and path.name != "run.json":
        return _of_file(path, found)
    run = find(target, root)
    known = {record.run.path.resolve(): record for record in [*found, *records.read(run.path.resolve().parent.parent)]}
    record = known[run.path.resolve()]
    if not makes_encoders(record.stage):
        raise ValueError(f"{run.path} is an evaluation; name the pretraining or the encoder's file")
    if (made := encoder_hash(record)) is None:
        raise ValueError(f"{run.path} has no finished encoder (state: {record.state}); finish the run first")
    return _card(record.recipe, made, run.encoder, record, found, None)


def encoder_of(target: str, root: Path) -> Path:
    """Return the file of the encoder that `card` describes."""
    from mimbench.jobs.runs.run_names import find

    path = weights_file(Path(target).expanduser())
    return path if path.is_file() and path.name != "run.json" else find(target, root).encoder


def _of_file(path: Path, found: Sequence[Record]) -> str:
    made = content_hash(path)
    maker = makers(found).get(made)
    info = None
    if maker is None:
        from mimbench.backbones.checkpoint import load_encoder  # imports torch; needed only for weights made elsewhere

        info = load_encoder(path)[1]
    return _card(maker.recipe if maker else Path(shown_name(path)).stem, made, path, maker, found, info)


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
    """Return whether these runs evaluated this encoder or that of another seed of its pretraining."""
    made_by = makers(found)
    owner = made_by.get(made)  # its old results hold another hash of the same encoder
    for record in group.records:
        maker, epoch = maker_of(record, made_by)
        if (record.checkpoint or {}).get("hash") == made or (epoch is None and owner is not None and maker is owner):
            return True
    return False


def _metadata(name: str, family: str, maker: Record | None, mine: Sequence[Group]) -> list[str]:
    """Return the metadata as YAML between dashes; texts are JSON, which is valid YAML."""
    lines = ["---", "library_name: mimbench", "pipeline_tag: image-feature-extraction"]
    if maker is None and family in LICENCES:
        lines.append(f"license: {LICENCES[family]}")
    lines += ["tags:", "- masked-image-modeling", "- vision-transformer", f"- {json.dumps(family)}"]
    if maker is not None:
        lines += ["datasets:", f"- {json.dumps(maker.data_set)}"]
    honest = [group for group in mine if not any(record.measured_on for record in group.records)]
    results = [(group, entry) for group in honest for entry in _entries(group)]  # the hub ranks models by these
    if results:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        for group, entry in results:
            values = group.values(entry.key)
            data = json.dumps(group.records[0].data_set)
            lines += [
                "  - task:",
                f"      type: {entry.kind}",
                "    dataset:",
                f"      type: {data}",
                f"      name: {data}",
                "    metrics:",
                f"    - type: {entry.key}",
                f"      name: {json.dumps(entry.title)}",
                f"      value: {sum(values) / len(values):.4f}",
            ]
    return [*lines, "---"]


def _entries(group: Group) -> list[CardEntry]:
    """Return the card entries of these runs; every metric by its key if their task is not installed."""
    if known(group.records[0].stage) is None:
        return [CardEntry(key, "other", key) for key in group.records[0].metrics]
    return [entry for entry in card_entries().values() if group.values(entry.key)]


def _settings(record: Record) -> dict[str, Any]:
    """Return the settings of a run that its task lists for cards."""
    task = known(record.stage)
    return {key: record.science[key] for key in (task.settings if task else ()) if key in record.science}


def _about(family: str, maker: Record | None, info: Any) -> str:
    shape = asdict(info.vit) if info else {key: maker.science[f"encoder.{key}"] for key in _SHAPE} if maker else {}
    sizes = f"{shape['depth']} blocks of width {shape['width']} with {shape['heads']} heads"
    patches = f"patches of {shape['patch']} pixels, pretrained on images of {shape['image']}"
    caveat = (maker.result or {}).get("facts", {}).get("caveat", "") if maker else ""
    warning = f" **{escape_markdown(caveat)}.**" if caveat else ""
    made = f"pretrained without labels by {escape_markdown(family)}" if maker else _provenance(family)
    return f"A plain vision transformer, {made}: {sizes}, {patches}.{warning}"


def _provenance(family: str) -> str:
    """Return what the file's family says of its training: a family of architectures says nothing of labels."""
    how = TRAINING.get(family)
    return how or f"read as the checkpoint family {escape_markdown(family)}, which does not tell how it was trained"


_SHAPE = ("width", "depth", "heads", "patch", "image")


def _training(maker: Record | None, info: Any) -> list[str]:
    if maker is None:
        recipe = getattr(info, "recipe", None)
        where = f"by recipe {escape_markdown(recipe)}, in a run that is not here" if recipe else "outside mimbench"
        return [f"Trained {where}; only the information in the file is known."]
    result = maker.result or {}
    lines = ["| setting | value |", "| :-- | :-- |"]
    lines += [f"| {key} | {escape_markdown(shown(value))} |" for key, value in _settings(maker).items()]
    hours = result.get("seconds", 0) / 3600
    device, commit = escape_markdown(str(result.get("device"))), result.get("commit") or "unknown"
    lines += ["", f"{hours:.3g} hours on {device}; commit {commit}."]
    return lines


def _numbers(mine: Sequence[Group]) -> list[str]:
    rows = []
    for group in mine:
        how = ", ".join(f"{key} {shown(value)}" for key, value in _settings(group.records[0]).items())
        measured_on = next((record.measured_on for record in group.records if record.measured_on), "")
        for entry in _entries(group):
            values = group.values(entry.key)
            mean = sum(values) / len(values)
            seeds = f"{len(values)} seeds" if len(values) > 1 else "one seed"
            told = f"**{measured_on}**; {escape_markdown(how)}" if measured_on else escape_markdown(how)
            rows.append(f"| {escape_markdown(entry.title)} | {mean:.2f} | {seeds} | {told} |")
    return ["| | % | | protocol |", "| :-- | --: | :-- | :-- |", *rows] if rows else ["Not evaluated yet."]


def _beside_papers(mine: Sequence[Group], found: Sequence[Record]) -> list[str]:
    """Return the papers' numbers for the same cells, and whether the protocols are the same."""
    names = {record.name for group in mine for record in group.records}
    lines = []
    for table in touched(found):
        for label, cells in table.rows:
            for cell in cells.values():
                if cell.best and names & {record.name for record in cell.best.group.records}:
                    told = f"{table.name}, {label}: {cell.printed} printed, {cell.ours} here, {cell.difference}"
                    lines.append(f"- {escape_markdown(told)}: {escape_markdown(cell.best.verdict.text)}")
    return ["Beside papers (differences in parentheses compare different protocols):", "", *lines, ""] if lines else []


def _loading(file: Path) -> list[str]:
    examples = [(task, protocol) for task, protocol in protocols().values() if protocol.example]
    data = next((view for task, _ in examples for view in task.data), "PATH")
    names = ",".join(protocol.name for _, protocol in examples)
    return [
        "```bash",
        f"mimbench evaluate {file.name} --on {names} --data {data}",
        f"mimbench export {file.name} --to timm",
        "```",
        "",
        "```python",
        "from mimbench.backbones.checkpoint import build_encoder",
        "from mimbench.backbones.config import ViT",
        "",
        f'encoder, info = build_encoder("{file.name}", ViT())  # sizes come from the file',
        "features = encoder(images)  # images (B, 3, H, W) normalised by info.mean and info.std; .pooled and .grid",
        "```",
        "",
        "For timm, the metadata of the exported file holds the arguments of `timm.create_model` under `timm`.",
    ]


def _licence(family: str, maker: Record | None) -> str:
    if maker is not None:
        return "mimbench is Apache-2.0. Those who trained these weights choose their licence and state it here."
    known = LICENCES.get(family)
    return f"The authors of {family} publish their weights under {known}." if known else "Unknown; ask the authors."

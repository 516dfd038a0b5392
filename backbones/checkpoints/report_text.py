"""Show the report on a checkpoint in a terminal: the encoder, the contents of the file, and the keys by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mimbench.backbones.checkpoints.match import VERDICTS, Entry, Verdict
from mimbench.backbones.checkpoints.report import Part, Report

MARKS: dict[Verdict, tuple[str, str]] = {
    "loaded": ("✓", "green"),
    "converted": ("↻", "cyan"),
    "expected missing": ("○", "yellow"),
    "expected dropped": ("·", "dim"),
    "suspicious": ("✗", "bold red"),
}
POSITIONS = {
    "sincos": "a fixed sine-cosine table",
    "learned": "a learned table",
    "relative": "learned biases for each pair of patches (relative)",
    "rope": "rotations of queries and keys (rotary)",
    "none": "none",
}
RESIZED = {
    "bicubic": "bicubic",
    "bicubic-antialias": "bicubic with antialiasing",
    "bilinear-antialias": "bilinear with antialiasing",
    "bilinear-square": "bilinear to the square of the longer side, then cut",
    "bicubic-offset": "bicubic, by DINO's factor",
    "regenerate": "computed for the new grid",
}
BAR = 24  # characters
ARGUMENTS = (
    "model",
    "arch",
    "input_size",
    "mask_ratio",
    "kept_mask_ratio",
    "epochs",
    "batch_size",
    "blr",
    "lr",
    "norm_pix_loss",
)


def render(told: Report, every_key: bool = False, plans: Mapping[str, Sequence[str]] | None = None) -> Group:
    """Return the report for rich; without `every_key`, keys loaded or dropped as expected are hidden.

    `plans` says by protocol what its recipe would do with the encoder, a phrase each.
    """
    blocks: list[RenderableType] = [_title(told), _facts(told, plans or {}), _parts(told), _counts(told)]
    shown = told.keys if every_key else [key for key in told.keys if key.verdict not in ("loaded", "expected dropped")]
    if shown:
        blocks.append(_keys(shown, every_key))
    return Group(*(Padding(block, (0, 0, 1, 0)) for block in blocks))


def size(number: float) -> str:
    """Return a number of bytes for people: 327.4 MiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def _title(told: Report) -> Text:
    mark, style = ("✓ loads", "bold green") if told.refused is None else ("✗ does not load", "bold red")
    return Text.assemble((told.title, "bold"), ("  ", ""), (mark, style), ("\n" + told.file, "dim"))


def _facts(told: Report, plans: Mapping[str, Sequence[str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in _lines(told, plans):
        table.add_row(name, text)
    return table


def _lines(told: Report, plans: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str | Text]]:
    vit = told.vit
    body = f"width {vit.width}, {vit.depth} blocks, {vit.heads} heads, {told.weights / 1e6:,.1f} M weights"
    yield "encoder", Text.assemble((told.architecture, "bold"), f"  {body}")
    if told.traits:
        yield "beyond MAE's", ", ".join(_trait(name, value) for name, value in told.traits.items())
    token = "and a class token" if told.traits.get("class_token", True) else "without a class token"
    yield "pretrained at", f"{vit.image} px: {vit.grid} x {vit.grid} patches of {vit.patch} px {token}"
    yield "positions", POSITIONS[told.positions] + _elsewhere(told)
    yield "final norm", "its own" if told.final_norm else "none; each evaluation names the norm it uses instead"
    if told.assumed:
        settled = ", ".join(f"{name}=" for name in told.assumed)
        said = f"{', '.join(told.assumed)}: the file does not tell; {settled} replaces it"
        yield "assumed", Text(said, style="yellow")
    for line in told.replaced:
        yield "replaced", Text(line, style="yellow")
    yield "images", f"mean {_triple(told.mean)}, deviation {_triple(told.std)}"
    yield "evaluates on", _uses(told)
    for name, plan in plans.items():
        yield f"on {name.upper()}", "; ".join(plan)
    if told.vitdet is None and not plans:
        yield "on COCO", "; ".join(told.vitdet_plan)
    yield "file", f"{told.kind}, {size(told.size)}" + _where(told)
    yield from _origins(told)
    for note in told.notes:
        yield "note", Text(note, style="yellow")


def _origins(told: Report) -> Iterator[tuple[str, str | Text]]:
    if told.copies:
        yield "other copies", ", ".join(told.copies) + " (--copy takes another)"
    said = [f"{key}={told.arguments[key]}" for key in ARGUMENTS if key in told.arguments]
    if said:
        yield "its options", ", ".join(said)
    if told.pretraining:
        yield "pretrained by", " ".join(told.pretraining.values())
    yield "family", f"{told.family} ({told.source})"
    if told.not_finite:
        yield "not finite", Text(", ".join(told.not_finite), style="bold red")
    elif told.not_finite is None:
        yield "values", "not read (too many); loading checks that they are finite"


def _elsewhere(told: Report) -> str:
    if told.positions in ("sincos", "learned"):
        return f"; other grids: {RESIZED[told.interpolation]}"
    return "; only for this grid" if told.positions == "relative" else ""


def _uses(told: Report) -> str:
    everywhere = "k-NN, linear probe, fine-tuning"
    return f"{everywhere}, COCO" if told.vitdet is None else f"{everywhere}; not on COCO: {told.vitdet}"


def _where(told: Report) -> str:
    under = f"; weights under '{told.found_under}'" if told.found_under else ""
    prefix = f"; names without '{''.join(told.wrappers)}'" if told.wrappers else ""
    precision = "" if told.precision == ("float32",) else f"; in {', '.join(told.precision)}, loaded as float32"
    return under + prefix + precision


def _trait(name: str, value: object) -> str:
    if isinstance(value, dict):  # rotary positions
        return f"{name.replace('_', ' ')} ({', '.join(f'{key} {part}' for key, part in value.items())})"
    return name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _parts(told: Report) -> Table:
    """Build the table of the file's parts, with a bar for each part's share of the bytes."""
    whole = max(told.size, sum(part.bytes for part in told.parts), 1)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("in the file")
    table.add_column("keys", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column()
    for part in told.parts:
        table.add_row(*_part(part, whole))
    return table


def _part(part: Part, whole: int) -> tuple[Text, str, str, Text]:
    style = "bold green" if part.encoder else ""
    bar = "█" * max(round(BAR * part.bytes / whole), int(part.bytes * 200 > whole))
    share = f"{bar} {part.bytes / whole:.0%}" if part.bytes * 200 > whole else ""
    weight = size(part.bytes) if part.bytes else "–"
    return Text(part.name, style), f"{part.keys}", weight, Text(share, "green" if part.encoder else "dim")


def _counts(told: Report) -> Text:
    text = Text("keys  ", style="dim")
    for verdict in VERDICTS:
        number = told.counts[verdict]
        mark, style = MARKS[verdict]
        text.append(f"{mark} {number} {verdict}", style=style if number else "dim")
        text.append("   ")
    return text


def _keys(entries: Sequence[Entry], every_key: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # keys differ at their ends: cut off, they would look alike
    rows = [(_rows_of_one(entry)) for entry in entries] if every_key else _together(entries)
    order = {verdict: place for place, verdict in enumerate(("suspicious", *VERDICTS[:-1]))}
    for mark_of, key, note in rows if every_key else sorted(rows, key=lambda row: order[row[0]]):
        mark, style = MARKS[mark_of]
        table.add_row(Text(mark, style), Text(key, style if mark_of == "suspicious" else ""), Text(note, "dim"))
    return table


def _rows_of_one(entry: Entry) -> tuple[Verdict, str, str]:
    shape = " x ".join(map(str, entry.shape))
    renamed = f"to {entry.to}" if entry.to not in (None, entry.key) else ""
    return entry.verdict, entry.key, ", ".join(filter(None, (shape, renamed, entry.note)))


def _together(entries: Iterable[Entry]) -> list[tuple[Verdict, str, str]]:
    """Group the same key of all blocks in one row: blocks.0-11.attn.q_bias."""
    groups: dict[tuple[Verdict, str, str], list[int]] = {}
    for entry in entries:
        number = re.search(r"\.(\d+)\.", entry.key)
        pattern = _masked(entry.key)
        renamed = f"to {_masked(entry.to)}" if entry.to and entry.to != entry.key else ""
        note = ", ".join(filter(None, (renamed, _masked(entry.note) if number else entry.note)))
        groups.setdefault((entry.verdict, pattern, note), []).append(int(number.group(1)) if number else -1)
    return [
        (verdict, pattern.replace("#", _range(numbers)), note.replace("#", "N"))
        for (verdict, pattern, note), numbers in groups.items()
    ]


def _masked(text: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", text, count=1)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    if low == high:
        return str(low)
    whole = len(set(numbers)) == high - low + 1
    return f"{low}-{high}" if whole else ",".join(map(str, sorted(set(numbers))))

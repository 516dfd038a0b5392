"""The report on a checkpoint for people: its encoder, the contents of the file, and the verdict on every key.

`report(match(opened))` is plain values, exact, and JSON by `as_json`; `backbones.checkpoints.report_text` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mimbench.backbones.checkpoints.info import differences
from mimbench.backbones.checkpoints.match import Entry, Matched, Verdict, counts
from mimbench.backbones.checkpoints.opening import Opened, mapped_anew
from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.vitdet_traits import detectron2_reason, vitdet_plan, vitdet_reason

READ = 512 * 2**20  # a report reads up to this many bytes to check that weights are finite; loading always checks

AT_ONCE = 96 * 2**20  # bytes in memory at a time: closing the mapping frees a mapped file's pages


@dataclass(frozen=True)
class Part:
    """A part of the file: the encoder, a decoder, an optimizer."""

    name: str
    keys: int
    bytes: int
    encoder: bool = False  # whether an evaluation uses it


@dataclass(frozen=True)
class Report:
    """The report on a checkpoint."""

    file: str
    kind: str
    size: int  # bytes on disk
    family: str
    title: str
    source: str
    architecture: str  # "ViT-B/16", or "ViT 96x4/8" if the size has no letter
    vit: ViT
    traits: dict[str, Any]  # those that differ from MAE's ViT
    weights: int  # number of weights in the encoder
    final_norm: bool
    positions: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    assumed: tuple[str, ...]  # of heads, activation, norm_eps, mean, std, grid: what nothing told
    replaced: tuple[str, ...]  # the settings given that replace what the file states or what is published
    precision: tuple[str, ...]  # of the encoder's weights in the file
    found_under: str
    wrappers: tuple[str, ...]
    copies: tuple[str, ...]
    parts: tuple[Part, ...]
    counts: dict[Verdict, int]
    keys: tuple[Entry, ...] = field(repr=False)
    arguments: dict[str, Any]
    pretraining: dict[str, str]  # recipe and identity, if mimbench pretrained it
    notes: tuple[str, ...]
    not_finite: tuple[str, ...] | None  # weights with NaN or infinity; None: not checked, too many bytes
    vitdet: str | None  # why ViTDet cannot use it; None if it can
    vitdet_plan: tuple[str, ...]  # how ViTDet uses it by default, a phrase for each part
    detectron2: str | None  # why detectron2's ViT cannot hold it; None if it can
    refused: str | None  # why it does not load; None if it loads

    @property
    def bytes_that_matter(self) -> int:
        """The bytes of the encoder in the file."""
        return sum(part.bytes for part in self.parts if part.encoder)


def report(matched: Matched) -> Report:
    """Return the report on `matched`. Reads the encoder's weights if they are small enough (`READ`)."""
    opened, family, recorded = matched.opened, matched.family, matched.recorded
    not_finite = _not_finite(matched)
    pretraining = {"recipe": recorded.recipe, "identity": recorded.identity} if recorded else {}
    return Report(
        file=str(opened.file),
        kind=opened.kind,
        size=opened.size,
        family=family.name,
        title=family.title,
        source=family.source,
        architecture=architecture(matched.vit),
        vit=matched.vit,
        traits=differences(matched.traits),
        weights=sum(value.numel() for value in matched.shapes.values()),
        final_norm=matched.final_norm,
        positions=matched.positions,
        interpolation=family.interpolation,
        mean=matched.mean,
        std=matched.std,
        assumed=matched.assumed,
        replaced=matched.replaced,
        precision=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in matched.shapes.values()})),
        found_under=opened.found_under,
        wrappers=matched.wrappers,
        copies=opened.copies,
        parts=_parts(matched),
        counts=counts(matched),
        keys=matched.entries,
        arguments={key: value for key, value in opened.arguments.items() if _plain(value)},
        pretraining={key: value for key, value in pretraining.items() if value},
        notes=_notes(matched),
        not_finite=not_finite,
        vitdet=vitdet_reason(matched.traits),
        vitdet_plan=vitdet_plan(matched.vit, matched.traits, computed=family.interpolation == "regenerate"),
        detectron2=detectron2_reason(matched.traits),
        refused=_refused(matched, not_finite),
    )


def as_json(told: Report) -> dict[str, Any]:
    """Return the report as plain values for `json.dumps`, unrounded."""
    return {
        **asdict(told),
        "bytes_that_matter": told.bytes_that_matter,
        "loads": told.refused is None,
    }


def architecture(vit: ViT) -> str:
    """Return `ViT-B/16`, or `ViT 96x4/8` (width, depth, patch) if the size has no letter."""
    for letter, size in SIZES.items():
        if (size.width, size.depth, size.heads) == (vit.width, vit.depth, vit.heads):
            return f"ViT-{letter}/{vit.patch}"
    return f"ViT {vit.width}x{vit.depth}/{vit.patch}"


def _parts(matched: Matched) -> tuple[Part, ...]:
    """Return the parts of the file: the encoder first, then by bytes."""
    used = [entry for entry in matched.entries if entry.verdict in ("loaded", "converted")]
    unknown = [entry for entry in matched.of("suspicious") if entry.bytes]
    rest: dict[str, list[Entry]] = {}
    for entry in matched.of("expected dropped"):
        rest.setdefault(entry.note, []).append(entry)
    if unknown:
        rest["suspicious keys"] = unknown
    parts = [_part(name, entries) for name, entries in rest.items()]
    for held in matched.opened.others:
        name = held.name if held.name == held.what else f"{held.name} ({held.what})"
        parts.append(Part(name, held.keys, held.bytes))
    return _part("encoder", used, encoder=True), *sorted(parts, key=lambda part: -part.bytes)


def _part(name: str, entries: Iterable[Entry], encoder: bool = False) -> Part:
    listed = list(entries)
    return Part(name, len(listed), sum(entry.bytes for entry in listed), encoder)


def _plain(value: object) -> bool:
    return isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value))


def _notes(matched: Matched) -> tuple[str, ...]:
    notes = list(matched.family.notes)
    if matched.family.positions == "sincos" and matched.positions == "learned" and matched.recorded is None:
        notes.append("its position table differs from the method's fixed table: it was trained")
    return tuple(notes)


def _not_finite(matched: Matched) -> tuple[str, ...] | None:
    """Return the keys of encoder weights with NaN or infinity."""
    used = [entry for entry in matched.entries if entry.verdict in ("loaded", "converted")]
    if sum(entry.bytes for entry in used) > READ:
        return None
    opened = matched.opened
    if opened.kind not in ("torch", "safetensors"):  # already in memory
        return _broken(opened, used)
    found: list[str] = []
    for group in _groups(used):
        found += _broken(mapped_anew(opened), group)
    return tuple(found)


def _broken(opened: Opened, entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(entry.key for entry in entries if not opened.weights[entry.key].isfinite().all())


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Group entries of about `AT_ONCE` bytes together; at least one in each group."""
    group: list[Entry] = []
    for entry in entries:
        if group and sum(other.bytes for other in group) + entry.bytes > AT_ONCE:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _refused(matched: Matched, broken: tuple[str, ...] | None) -> str | None:
    try:
        matched.require()
    except ValueError as error:
        return str(error)
    if broken:
        return f"{matched.opened.file}: NaN or infinite weights in {', '.join(broken[:3])}"
    return None

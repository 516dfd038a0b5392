"""Which encoder each run is about, what to call it, and where it came from.

A result carries the content hash of the checkpoint it started from; the pretraining run whose `encoder.safetensors`
has that hash made it. Pretrainings that differ in nothing but the seed are one encoder with several seeds. Without a
checkpoint the encoder is the architecture itself, from scratch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from backbones.config import SIZES
from backbones.content import content_hash
from jobs.records import Record

FROM_SCRATCH = "from scratch"
SHAPE = ("width", "depth", "heads", "patch")  # the facts of a result hold `encoder` with at least these


class Encoder(NamedTuple):
    """What a row of a table is about."""

    architecture: str  # "ViT-B/16", or "ViT 96x4/8" (width, depth, patch) where the size has no letter
    name: str  # the pretraining recipe and what was changed of it, the checkpoint's file, or "from scratch"
    origin: str  # digest of the pretraining's settings, or the hash of a checkpoint made elsewhere; "" from scratch


def encoders_of(found: Sequence[Record]) -> dict[Path, Encoder]:
    """The encoder that each run, by its directory, makes or evaluates."""
    pretrained = [record for record in found if record.stage == "pretrain"]
    made_by = {content: record for record in pretrained if (content := encoder_hash(record))}
    bases: dict[str, dict[str, Any]] = {}  # recipe -> the settings that its bare name stands for
    for record in pretrained:
        bases.setdefault(record.recipe, without(record.science, {"seed"}))
    return {record.run.path: _encoder(record, made_by, bases) for record in found}


def _encoder(record: Record, made_by: Mapping[str, Record], bases: Mapping[str, dict[str, Any]]) -> Encoder:
    checkpoint = record.checkpoint
    maker = record if record.stage == "pretrain" else made_by.get(checkpoint["hash"]) if checkpoint else None
    if maker:
        settings = without(maker.science, {"seed"})
        changes = difference(settings, bases[maker.recipe])
        return Encoder(_architecture(maker), maker.recipe + (f" ({changes})" if changes else ""), digest(settings))
    if checkpoint:
        return Encoder(_architecture(record), Path(checkpoint["path"]).name, checkpoint["hash"])
    return Encoder(_architecture(record), FROM_SCRATCH, "")


def encoder_hash(record: Record) -> str | None:
    """The content hash of the encoder that a finished pretraining made; None of any other run."""
    file = record.run.encoder
    if record.stage != "pretrain" or record.result is None or not file.exists():
        return None
    stat = file.stat()
    return _hash(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash(path: Path, size: int, modified: int) -> str:
    """Hashed once as long as size and time of the file stay."""
    return content_hash(path)


def _architecture(record: Record) -> str:
    """By the facts of the result; the config's `encoder` counts only where there is no checkpoint."""
    shape = (record.result or {}).get("facts", {}).get("encoder")
    if not isinstance(shape, dict):
        shape = {} if record.checkpoint else {key: record.science.get(f"encoder.{key}") for key in SHAPE}
    width, depth, heads, patch = (shape.get(key, "?") for key in SHAPE)
    for letter, size in SIZES.items():
        if (size.width, size.depth, size.heads) == (width, depth, heads):
            return f"ViT-{letter}/{patch}"
    return f"ViT {width}x{depth}/{patch}"


def without(science: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """`science` less the fields and the groups of fields (`encoder` for `encoder.width`, ...) that are named."""
    return {key: value for key, value in science.items() if key.partition(".")[0] not in keys}


def digest(settings: Mapping[str, Any]) -> str:
    """The same for the same settings in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def difference(settings: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """`key=value` of every field in which `settings` departs from `base`."""
    keys = [key for key in {**base, **settings} if settings.get(key) != base.get(key)]
    return ", ".join(f"{key}={settings.get(key, 'none')}" for key in keys)

"""The encoder of each run: its name and its origin.

A result carries the content hash of the checkpoint it started from; the pretraining run whose `encoder.safetensors`
has that hash made it. Pretrainings that differ only in the seed are one encoder with several seeds. Without a
checkpoint the encoder is the architecture itself, from scratch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.backbones.checkpoints.huggingface.folder import shown_name
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.config import SIZES
from mimbench.backbones.content import Hashes, content_hashes
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import makes_encoders

log = logging.getLogger(__name__)

FROM_SCRATCH = "from scratch"
SHAPE = ("width", "depth", "heads", "patch")  # the facts of a result hold `encoder` with at least these


class Encoder(NamedTuple):
    """The encoder of a row of a table."""

    architecture: str  # "ViT-B/16", or "ViT 96x4/8" (width, depth, patch) where the size has no letter
    name: str  # the pretraining recipe, its changed settings and its caveat; a checkpoint's file; or "from scratch"
    origin: str  # digest of the pretraining's settings, or the hash of a checkpoint made elsewhere; "" from scratch


def encoders_of(found: Sequence[Record]) -> dict[Path, Encoder]:
    """Return, by run directory, the encoder that each run makes or evaluates."""
    pretrained = [record for record in found if makes_encoders(record.stage)]
    made_by = makers(found)
    bases: dict[str, dict[str, Any]] = {}  # recipe -> the settings of its bare name
    for record in pretrained:
        bases.setdefault(record.recipe, _settings(record, made_by))
    return _told_apart({record.run.path: _encoder(record, made_by, bases) for record in found})


def _told_apart(encoders: dict[Path, Encoder]) -> dict[Path, Encoder]:
    """Return the encoders with the start of their origin in the name where two have the same name."""
    origins: dict[tuple[str, str], set[str]] = {}
    for encoder in encoders.values():
        origins.setdefault((encoder.architecture, encoder.name), set()).add(encoder.origin)
    same = {of for of, different in origins.items() if len(different) > 1}
    return {
        path: one._replace(name=f"{one.name} [{one.origin[:6]}]") if (one.architecture, one.name) in same else one
        for path, one in encoders.items()
    }


def makers(found: Sequence[Record]) -> dict[str, Record]:
    """Return every pretraining, by the content hash of its encoder and by its identity.

    Results of earlier releases hold the hash of the encoder's tensors alone, which finds it too.
    """
    pretrained = [record for record in found if makes_encoders(record.stage)]
    hashes = {record.run.path: made for record in pretrained if (made := _encoder_hashes(record))}
    of_tensors = {hashes[record.run.path].tensors: record for record in pretrained if record.run.path in hashes}
    of_content = {hashes[record.run.path].content: record for record in pretrained if record.run.path in hashes}
    made_by = of_tensors | of_content
    return made_by | {str(record.about["identity"]): record for record in pretrained if "identity" in record.about}


def maker_of(record: Record, made_by: Mapping[str, Record]) -> tuple[Record | None, int | None]:
    """Return the pretraining that made a run's encoder, and the epoch if the encoder is an intermediate one."""
    checkpoint = record.checkpoint
    return (_maker(checkpoint, made_by) if checkpoint else None), _epoch(checkpoint)


def _encoder(record: Record, made_by: Mapping[str, Record], bases: Mapping[str, dict[str, Any]]) -> Encoder:
    checkpoint = record.checkpoint
    maker = record if makes_encoders(record.stage) else _maker(checkpoint, made_by) if checkpoint else None
    if maker:
        settings = _settings(maker, made_by)
        if record is not maker and (epoch := _epoch(checkpoint)):
            settings["epoch"] = epoch
        caveat = (maker.result or {}).get("facts", {}).get("caveat", "")
        notes = ", ".join(note for note in (difference(settings, bases[maker.recipe]), caveat) if note)
        return Encoder(_architecture(maker), maker.recipe + (f" ({notes})" if notes else ""), digest(settings))
    if checkpoint:
        note = " (user code)" if user_code(checkpoint["path"]) is not None else ""
        return Encoder(_architecture(record), shown_name(Path(checkpoint["path"])) + note, checkpoint["hash"])
    return Encoder(_architecture(record), FROM_SCRATCH, "")


def _settings(record: Record, made_by: Mapping[str, Record]) -> dict[str, Any]:
    """Return a pretraining's settings without the seed; a teacher counts by its own settings."""
    settings = without(record.science, {"seed"})
    if record.checkpoint:
        teacher = _maker(record.checkpoint, made_by)
        made = f"{teacher.recipe} {digest(without(teacher.science, {'seed'}))[:6]}" if teacher else ""
        settings["checkpoint"] = made or record.checkpoint["hash"]
    return settings


def _maker(checkpoint: Mapping[str, Any], made_by: Mapping[str, Record]) -> Record | None:
    """Return the pretraining that made a checkpoint: by content, or by lineage if not yet made or of an epoch.

    A final encoder that was made again since then does not match: the evaluated content counts.
    """
    run, _, epoch = str(checkpoint.get("run") or "").partition("@")
    content = checkpoint["hash"]
    return made_by.get(content) or (made_by.get(run) if content is None or epoch else None)


def _epoch(checkpoint: Mapping[str, Any] | None) -> int | None:
    """Return the epoch of an intermediate encoder."""
    epoch = str((checkpoint or {}).get("run") or "").partition("@")[2]
    return int(epoch) if epoch else None


def encoder_hash(record: Record) -> str | None:
    """Return the content hash of a finished pretraining's encoder; None for other runs and damaged files."""
    hashes = _encoder_hashes(record)
    return hashes.content if hashes else None


def _encoder_hashes(record: Record) -> Hashes | None:
    file = record.run.encoder
    if not makes_encoders(record.stage) or record.result is None or not file.exists():
        return None
    try:
        return content_hashes(file)
    except ValueError as error:
        log.warning("%s", error)
        return None


def _architecture(record: Record) -> str:
    """Return the architecture from the facts of the result; from the config's `encoder` if there is no checkpoint."""
    shape = (record.result or {}).get("facts", {}).get("encoder")
    if not isinstance(shape, dict):
        of_its_own = makes_encoders(record.stage) or not record.checkpoint  # a pretraining's checkpoint is its teacher
        shape = {key: record.science.get(f"encoder.{key}") for key in SHAPE} if of_its_own else {}
    if "type" in shape:  # user code: its class and its own description
        return f"{shape['type']} {shape.get('width')}/{shape.get('patch')}"
    width, depth, heads, patch = (shape.get(key, "?") for key in SHAPE)
    for letter, size in SIZES.items():
        if (size.width, size.depth, size.heads) == (width, depth, heads):
            return f"ViT-{letter}/{patch}"
    return f"ViT {width}x{depth}/{patch}"


def without(science: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return `science` without the named fields and groups of fields (`encoder` for `encoder.width`, ...)."""
    return {key: value for key, value in science.items() if key.partition(".")[0] not in keys}


def digest(settings: Mapping[str, Any]) -> str:
    """Return a digest of `settings` that does not depend on their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def difference(settings: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return `key=value` for every field in which `settings` differs from `base`."""
    keys = [key for key in {**base, **settings} if settings.get(key) != base.get(key)]
    return ", ".join(f"{key}={settings.get(key, 'none')}" for key in keys)

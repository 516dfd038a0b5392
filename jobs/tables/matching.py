"""Match our runs with the numbers of papers, by their settings.

The settings of a run are in its config and `result.json`, and in those of the pretraining of its encoder: `did`
returns them as dotted keys, `pretrain.` and `eval.`. Names of runs, recipes and directories are ignored. A run belongs
in a cell if it has the settings under `is` (method, size, the varied setting) and the metric of the cell. Then every
setting stated by the source is compared, and every unstated one in which the run departs from the recipe of the cell.
The verdict is one of

    same protocol                     the difference is valid, with an interval if the noise is known
    differs in X (ours, paper's)      shown in parentheses, never as a plain difference
    reference protocol unknown: X     likewise: the source does not state it
    unknown for this checkpoint: X    likewise: the encoder was made elsewhere

Runs that differ only in seeds share a cell. Results that cannot be trusted are left out and reported: damaged or older
result files, NaN, two contradictory results of one run, the same seeds twice.

Reads only encoder files, whose content tells which run made them; does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

from mimbench.engine.data.shared_images import HONEST
from mimbench.engine.run.config import to_text, with_overrides
from mimbench.jobs.runs.encoders import Encoder, digest, encoders_of, maker_of, makers
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.records import GROUPS, Record, groups_of, science_of
from mimbench.jobs.runs.tasks import at_best_epoch, makes_encoders
from mimbench.jobs.tables.paper import EVALUATION, PRETRAINING, Reference
from mimbench.jobs.tables.significance import Interval, Measured, Sample, interval
from mimbench.jobs.tables.table import protocol_of

Status = Literal["same", "differs", "unknown"]
NEVER_COMPARED = {  # keys of recipes that name inputs; `data` counts by its images; `jpeg_decoder` is .05 of 255
    "seed", "data", "checkpoint", "allow_partial", "jpeg_decoder", "engine",
}  # fmt: skip
SELECTION, BEST = "eval.selection", "best on validation images"
NAMES = {  # readable names of keys
    "pretrain.method.kind": "method",
    "pretrain.masking.kind": "kind of masking",
    "pretrain.masking.mask_ratio": "fraction hidden",
    "pretrain.masking.predict": "fraction predicted",
    "pretrain.method.depth": "decoder blocks",
    "pretrain.method.width": "decoder width",
    "pretrain.method.heads": "decoder heads",
    "pretrain.encoder.image": "pretraining image",
    "pretrain.maps": "feature maps mixed",
    "eval.vitdet.rel_pos": "relative positions",
    "eval.vitdet.drop_path": "drop path",
    "eval.vitdet.window": "window",
    SELECTION: "epoch evaluated",
    "eval.pool": "feature",
    "eval.classes": "classes",
    "eval.val_images": "validation images",
    "eval.train_images": "training images",
    "eval.eval_resize": "resize before the centre crop",
    "eval.final_norm": "final norm of the encoder",
    "eval.partial": "keys ignored on loading",
}


@dataclass(frozen=True)
class Difference:
    """A setting in which a run differs from the printed protocol."""

    key: str
    ours: Any
    theirs: Any
    whose: Literal["paper", "recipe"] = "paper"  # recipe: not stated by the source, set by the recipe of the cell

    @property
    def text(self) -> str:
        """Return the difference as text: `relative positions (on, paper off)`."""
        return f"{name_of(self.key)} ({shown(self.ours)}, {self.whose} {shown(self.theirs)})"


@dataclass(frozen=True)
class Verdict:
    """Whether two protocols are the same."""

    differs: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()  # keys that the source does not state
    missing: tuple[str, ...] = ()  # keys unknown for our run

    @property
    def status(self) -> Status:
        """Return the most serious finding."""
        return "differs" if self.differs else "unknown" if self.unknown or self.missing else "same"

    @property
    def text(self) -> str:
        """Return the verdict in words."""
        parts = []
        if self.differs:
            parts.append("differs in " + ", ".join(one.text for one in self.differs))
        if self.unknown:
            parts.append("reference protocol unknown: " + ", ".join(map(name_of, self.unknown)))
        if self.missing:
            parts.append("unknown for this checkpoint: " + ", ".join(map(name_of, self.missing)))
        return "; ".join(parts) or "same protocol"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds."""

    encoder: Encoder
    did: Mapping[str, Any]  # of the first run; the same for all except seeds
    records: tuple[Record, ...]
    started: float

    def values(self, metric: str) -> tuple[float, ...]:
        """Return the values over seeds, in the order of the runs' starts."""
        return tuple(record.metrics[metric] for record in self.records if metric in record.metrics)

    def measured(self, metric: str, digits: int) -> Measured:
        """Return the values over seeds with their runs, for numbers shown with `digits` decimals."""
        names = tuple(record.name for record in self.records if metric in record.metrics)
        return Measured(self.values(metric), names, digits, digits + 1, self.records[0].data)


@dataclass(frozen=True)
class Comparison:
    """A group of runs compared with one printed number."""

    reference: Reference
    group: Group
    verdict: Verdict
    metric: str  # our metric: the reference's, or its value at the best epoch

    @property
    def measured(self) -> Measured:
        """Return ours, with the digits of the printed number and one more for the deviation."""
        return self.group.measured(self.metric, self.reference.digits)

    @property
    def sample(self) -> Sample:
        """Return ours as a sample."""
        return Sample(self.group.values(self.metric))

    @property
    def theirs(self) -> Sample:
        """Return the paper's value as a sample."""
        seeds = self.reference.seeds or (float(self.reference.value),)
        return Sample(seeds, self.reference.deviation)

    @property
    def difference(self) -> float | None:
        """Return ours minus the paper's, in the metric's unit; None unless the protocol is the same."""
        return self.raw_difference if self.verdict.status == "same" else None

    @property
    def raw_difference(self) -> float:
        """Return the difference for any protocols; show it as not comparable if they differ."""
        return self.sample.mean - self.theirs.mean

    @cached_property
    def interval(self) -> Interval | None:
        """Return the interval of the difference; None unless the protocol is the same."""
        return interval(self.sample, self.theirs) if self.verdict.status == "same" else None


def name_of(key: str) -> str:
    """Return the readable name of a key."""
    if key in NAMES:
        return NAMES[key]
    stage, _, rest = key.partition(".")
    words = rest.replace("_", " ").replace(".", " ") or stage
    return f"pretraining {words}" if stage == PRETRAINING else words


def shown(value: Any) -> str:
    """Return a setting's value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def did(record: Record, encoder: Encoder, made_by: Mapping[str, Record]) -> dict[str, Any]:
    """Return all known settings behind a number, by dotted key."""
    maker, epoch = maker_of(record, made_by)
    result = (record.result or {}).get("facts", {})
    facts: dict[str, Any] = {f"eval.{key}": value for key, value in result.items()}
    facts |= {f"eval.{key}": value for key, value in record.science.items()}
    if maker is not None:
        facts |= {f"pretrain.{key}": value for key, value in (maker.result or {}).get("facts", {}).items()}
        facts |= {f"pretrain.{key}": value for key, value in maker.science.items()}
        facts |= _derived(maker)
        if epoch is not None:  # an intermediate encoder: its learning rate had not decayed
            facts["pretrain.epochs"] = f"{epoch} of {maker.science.get('epochs')}"
    elif record.checkpoint:
        facts["pretrain.method.kind"] = record.checkpoint.get("family")
        shape = result.get("encoder")
        if isinstance(shape, dict) and "image" in shape:
            facts["pretrain.encoder.image"] = shape["image"]
    else:
        facts["pretrain.method.kind"] = "none"
    facts["encoder"] = encoder.architecture
    return facts


def _derived(maker: Record) -> dict[str, Any]:
    """Return values derived from a pretraining's settings: blocks that CrossMAE's decoder reads, hidden patches."""
    science, found = maker.science, {}
    mixing, maps = science.get("method.mixing"), science.get("method.feature_maps")
    if mixing is not None:
        depth = int(science["encoder.depth"])
        found["pretrain.maps"] = 1 if mixing == "none" else len(maps) if isinstance(maps, list) else depth
    if "masking.cell" in science:
        found["pretrain.masking.mask_ratio"] = 1 - 1 / science["masking.cell"] ** 2
    return found


def groups(found: Sequence[Record]) -> tuple[list[Group], list[str]]:
    """Return finished evaluations grouped by all settings but seeds, and a line with the reason for each left out."""
    encoders, made_by, problems = encoders_of(found), makers(found), _damaged(found)
    sets: dict[tuple[Encoder, str], list[Record]] = {}
    for record in _trusted(found, problems):
        if not makes_encoders(record.stage) and record.metrics:
            sets.setdefault((encoders[record.run.path], digest(protocol_of(record))), []).append(record)
    whole = []
    for (encoder, _), records in sets.items():
        kept = _one_of_each_seed(records, made_by, problems)
        facts = did(kept[0], encoder, made_by)
        whole.append(Group(encoder, facts, tuple(kept), max(record.started for record in kept)))
    return whole, problems


def _damaged(found: Iterable[Record]) -> list[str]:
    lines = [f"{record.run.path} is left out: {record.problem}" for record in found if record.state == "damaged"]
    for record in found:
        for name, value in (record.result or {}).get("metrics", {}).items():
            if name not in record.metrics:
                lines.append(f"{record.run.path}: {name} is {value} and is left out")
    return lines


def _trusted(found: Sequence[Record], problems: list[str]) -> list[Record]:
    """Return consistent results, one for each run."""
    kept: dict[str, Record] = {}
    refused: set[str] = set()
    for record in found:
        identity = str(record.about.get("identity", record.name))
        if record.result is None:
            continue
        if clash := _contradiction(record):
            problems.append(f"{record.run.path} is left out: {clash}")
        elif identity not in kept:
            kept[identity] = record
        elif kept[identity].metrics == record.metrics:
            problems.append(f"{record.run.path} is left out: the same run as {kept[identity].run.path}")
        else:
            problems.append(f"{record.run.path} and {kept[identity].run.path} are left out: two results of one run")
            refused.add(identity)
    return [record for identity, record in kept.items() if identity not in refused]


def _contradiction(record: Record) -> str:
    """Return where the files of a run contradict each other; empty if nowhere."""
    result = record.result or {}
    if result.get("identity", record.about.get("identity")) != record.about.get("identity"):
        return f"its result.json is of run {result.get('identity')}, its run.json of {record.about.get('identity')}"
    for key, value in result.get("facts", {}).items():
        number = isinstance(value, bool | int | float)
        if number and key in record.science and not equal(value, record.science[key]):
            return f"its result.json says {key} = {value}, its config.txt {record.science[key]}"
    return ""


def _one_of_each_seed(records: Sequence[Record], made_by: Mapping[str, Record], problems: list[str]) -> list[Record]:
    """Return one record for each seed: repeated seeds do not measure the noise."""
    kept: dict[tuple[Any, Any], Record] = {}
    for record in records:
        maker, _ = maker_of(record, made_by)
        first = maker.science.get("seed") if maker else (record.checkpoint or {}).get("hash")
        seeds = (first, record.science.get("seed"))
        if seeds in kept:
            problems.append(f"{record.run.path} is left out: the same seeds as {kept[seeds].run.path}")
        else:
            kept[seeds] = record
    return list(kept.values())


def compare(reference: Reference, found: Iterable[Group]) -> list[Comparison]:
    """Return every group that belongs in the cell of `reference`: nearest protocol first, then latest."""
    if reference.unused:
        return []
    comparisons = [
        _compared(reference, group)
        for group in found
        if group.values(reference.metric) and _stands(reference, group.did)
    ]
    return sorted(comparisons, key=_nearness)


def _compared(reference: Reference, group: Group) -> Comparison:
    """Return the comparison; if the source took the best epoch on the validation images, ours does too if recorded."""
    metric, chosen = reference.metric, {}
    if SELECTION in reference.facts:
        best = at_best_epoch(metric)
        wanted = reference.facts[SELECTION] == BEST
        metric = best if wanted and len(group.values(best)) == len(group.values(metric)) else metric
        chosen = {SELECTION: BEST if metric == best else "last"}
    return Comparison(reference, group, verdict(reference, {**group.did, **chosen}), metric)


def _nearness(comparison: Comparison) -> tuple[int, int, float]:
    verdict, group = comparison.verdict, comparison.group
    return len(verdict.differs), len(verdict.missing), -group.started


def _stands(reference: Reference, facts: Mapping[str, Any]) -> bool:
    """Return whether a run belongs in the cell, as far as its encoder is known."""
    elsewhere = "pretrain.epochs" not in facts  # or from scratch
    for key, wanted in reference.select.items():
        if key not in facts and elsewhere and key.startswith("pretrain."):
            continue
        if key not in facts or not equal(facts[key], wanted):
            return False
    return True


def verdict(reference: Reference, facts: Mapping[str, Any]) -> Verdict:
    """Return the comparison of a run's protocol with the stated one."""
    wanted = {**reference.select, **reference.facts}
    missing = tuple(key for key in wanted if key not in facts and not _needless(key, facts))
    differs = [
        Difference(key, facts[key], value) for key, value in wanted.items()
        if key in facts and not equal(facts[key], value)
    ]  # fmt: skip
    differs += [
        Difference(key, facts[key], value, "recipe") for key, value in _set_by_recipes(reference).items()
        if key in facts and key not in wanted and key not in reference.unknown and not equal(facts[key], value)
    ]  # fmt: skip
    if facts.get("eval.validation", HONEST) != HONEST:  # papers measure on images that were not trained on
        differs.append(Difference("eval.validation", facts["eval.validation"], HONEST))
    if facts.get("eval.partial"):
        differs.append(Difference("eval.partial", facts["eval.partial"], []))
    unknown = tuple(key for key in reference.unknown if not _needless(key, facts))
    return Verdict(tuple(differs), unknown, missing)


def _set_by_recipes(reference: Reference) -> dict[str, Any]:
    """Return the settings of the cell's recipes; a run with other settings measures something else."""
    return {
        f"{part}.{key}": value
        for part, recipe, overrides in (
            (PRETRAINING, reference.pretraining, reference.pretrain_overrides),
            (EVALUATION, reference.recipe, reference.overrides),
        )
        if recipe is not None
        for key, value in _science(recipe, overrides).items()
        if key not in NEVER_COMPARED and not key.startswith("encoder.")
    }


@cache
def _science(recipe: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the science settings as in `config.txt`."""
    config = with_overrides(find(recipe).build(), list(overrides))
    return science_of(to_text(config), {GROUPS: groups_of(config)})


def _needless(key: str, facts: Mapping[str, Any]) -> bool:
    """Return whether a key does not apply: pretraining settings of a network that was not pretrained."""
    return key.startswith("pretrain.") and facts.get("pretrain.method.kind") == "none"


def equal(one: Any, other: Any) -> bool:
    """Return whether values are equal: numbers to five digits, as papers round; lists by element; True is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-12)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)

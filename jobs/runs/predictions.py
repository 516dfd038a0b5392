"""Two runs compared image by image: which predictions changed, and whether one run is really better.

    mimbench compare-predictions RUN RUN        runs with save_predictions=true, on the same images

McNemar's test asks how likely it is that so many more images changed one way than the other if both runs were equally
good; it is exact (binomial). It speaks of these images only: another seed changes as many again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench.cls.config import PREDICTIONS
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.control import path_of
from mimbench.jobs.runs.store import runs_root

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Change = Literal["right to wrong", "wrong to right", "wrong otherwise"]
CHANGES: tuple[Change, ...] = ("right to wrong", "wrong to right", "wrong otherwise")
LISTED = 10  # images of each change that are printed


@dataclass(frozen=True)
class Saved:
    """What a run predicted for each image."""

    run: str
    names: list[str]
    classes: list[str]
    label: NDArray[np.int64]
    guess: NDArray[np.int64]


@dataclass(frozen=True)
class Changed:
    """An image for which two runs have different first guesses."""

    image: str
    change: Change
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images."""

    runs: tuple[str, str]
    images: int
    right: tuple[int, int]
    changed: list[Changed]
    p_value: float  # McNemar's, exact and two-sided

    def count(self, change: Change) -> int:
        """Images that changed so."""
        return sum(one.change == change for one in self.changed)


def read(target: Path) -> Saved:
    """The predictions of a run, given by its directory or their file.

    Raises:
        FileNotFoundError: if there are none, saying how to get them.
        ValueError: if the file is not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = RunDir(target).predictions if target.is_dir() else target
    if not path.is_file():
        raise FileNotFoundError(
            f"{target} has no predictions: `mimbench run cls/classify checkpoint=RUN save_predictions=true data=...` "
            f"makes those of a fine-tuning's classifier"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[PREDICTIONS])
            label, top5 = file.get_tensor("label"), file.get_tensor("top5")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no predictions of mimbench ({error})") from None
    return Saved(str(target), about["names"], about["classes"], label, top5[:, 0].astype(label.dtype))


def compare(before: Saved, after: Saved) -> Comparison:
    """Which predictions changed.

    Raises:
        ValueError: if the two are not of the same images, labels and classes.
    """
    from scipy.stats import binomtest

    _require_same(before, after)
    right = before.guess == before.label, after.guess == after.label
    changed = list(_changed(before, after))
    lost, won = (sum(one.change == change for one in changed) for change in CHANGES[:2])
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    counts = int(right[0].sum()), int(right[1].sum())
    return Comparison((before.run, after.run), len(before.names), counts, changed, p_value)


def _changed(before: Saved, after: Saved) -> Iterator[Changed]:
    for place in (before.guess != after.guess).nonzero()[0].tolist():
        label, was, now = (int(values[place]) for values in (before.label, before.guess, after.guess))
        change: Change = "right to wrong" if was == label else "wrong to right" if now == label else "wrong otherwise"
        yield Changed(before.names[place], change, *(before.classes[number] for number in (label, was, now)))


def _require_same(before: Saved, after: Saved) -> None:
    pair = f"{before.run} and {after.run}"
    if before.classes != after.classes:
        raise ValueError(f"{pair} tell {len(before.classes)} and {len(after.classes)} classes apart, and not the same")
    if before.names != after.names:
        odd = sorted(set(before.names) ^ set(after.names))
        what = f"{odd[0]} is in one only" if odd else "in another order"
        raise ValueError(f"{pair} are not of the same images: {len(before.names)} and {len(after.names)}, {what}")
    if (before.label != after.label).any():
        place = int((before.label != after.label).nonzero()[0][0])
        raise ValueError(f"{pair} have different labels, first for {before.names[place]}: was the data changed?")


def to_json(found: Comparison) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "runs": list(found.runs),
        "images": found.images,
        "top1": [100 * count / found.images for count in found.right],
        "counts": {change: found.count(change) for change in CHANGES},
        "p_value": found.p_value,
        "changed": [asdict(one) for one in found.changed],
    }


def to_text(found: Comparison) -> str:
    """The counts, the test, and the first images of each change."""
    was, now = (100 * count / found.images for count in found.right)
    lines = [
        f"{found.images:,} images; top-1 {was:.2f} -> {now:.2f}",
        *(f"{found.count(change):>8,} {change}" for change in CHANGES),
        f"McNemar's test: p = {found.p_value:.2g}" + _verdict(found),
    ]
    for change in CHANGES:
        lines += _listing([one for one in found.changed if one.change == change], change)
    return "\n".join(lines)


def _verdict(found: Comparison) -> str:
    return "" if found.p_value < 0.05 else ", no difference that chance would not make"


def _listing(changed: Sequence[Changed], change: Change) -> list[str]:
    if not changed:
        return []
    shown = [f"  {one.image}: {one.before} -> {one.after}, is {one.label}" for one in changed[:LISTED]]
    more = [f"  and {len(changed) - LISTED:,} more (--json lists all)"] if len(changed) > LISTED else []
    return ["", change, *shown, *more]


def show(before: str, after: str, as_json: bool) -> None:
    """`mimbench compare-predictions`."""
    found = compare(*(read(path_of(name, runs_root())) for name in (before, after)))
    print(json.dumps(to_json(found), indent=2) if as_json else to_text(found))

"""Compare two runs image by image: which predictions changed, and whether the difference is significant.

    mimbench compare-predictions RUN RUN        runs with save_predictions=true, on the same images

McNemar's exact (binomial) test gives the probability of at least this imbalance between the two directions of change if
both runs were equally good. It covers these images only, not the variation between seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench.engine.run.bar import working
from mimbench.engine.run.result import PREDICTIONS
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.run_names import path_of
from mimbench.jobs.runs.store import runs_root

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Change = Literal["right to wrong", "wrong to right", "wrong otherwise"]
CHANGES: tuple[Change, ...] = ("right to wrong", "wrong to right", "wrong otherwise")
LISTED = 10  # images of each change that are printed


@dataclass(frozen=True)
class Saved:
    """The saved predictions of a run, for each image."""

    run: str
    names: list[str]
    classes: list[str]
    label: NDArray[np.int64]
    guess: NDArray[np.int64]


@dataclass(frozen=True)
class Changed:
    """An image with different top-1 predictions in the two runs."""

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
        """Return the number of images with this change."""
        return sum(one.change == change for one in self.changed)


def read(target: Path) -> Saved:
    """Return the predictions of a run, from its directory or the predictions file.

    Raises:
        FileNotFoundError: if there are none, with the command that makes them.
        ValueError: if the file is not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = RunDir(target).predictions if target.is_dir() else target
    if not path.is_file():
        raise FileNotFoundError(
            f"{target} has no predictions; `mimbench run cls/classify checkpoint=RUN save_predictions=true data=...` "
            f"saves those of a fine-tuned classifier"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[PREDICTIONS])
            label, top5 = file.get_tensor("label"), file.get_tensor("top5")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a predictions file of mimbench ({error}); name a run with save_predictions=true"
        ) from None
    return Saved(str(target), about["names"], about["classes"], label, top5[:, 0].astype(label.dtype))


def compare(before: Saved, after: Saved) -> Comparison:
    """Return which predictions changed.

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
        raise ValueError(
            f"{pair} have different classes ({len(before.classes)} and {len(after.classes)}); "
            f"compare runs on the same data set"
        )
    if before.names != after.names:
        odd = sorted(set(before.names) ^ set(after.names))
        what = f"{odd[0]} is in only one of them" if odd else "the order differs"
        raise ValueError(f"{pair} have different images ({len(before.names)} and {len(after.names)}): {what}")
    if (before.label != after.label).any():
        place = int((before.label != after.label).nonzero()[0][0])
        raise ValueError(
            f"{pair} have different labels, first for {before.names[place]}; check whether the data changed"
        )


def to_json(found: Comparison) -> dict[str, Any]:
    """Return the whole comparison as JSON."""
    return {
        "runs": list(found.runs),
        "images": found.images,
        "top1": [100 * count / found.images for count in found.right],
        "counts": {change: found.count(change) for change in CHANGES},
        "p_value": found.p_value,
        "changed": [asdict(one) for one in found.changed],
    }


def to_text(found: Comparison) -> str:
    """Return the counts, the test and the first images of each change as text."""
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
    return "" if found.p_value < 0.05 else ", not significant at 0.05"


def _listing(changed: Sequence[Changed], change: Change) -> list[str]:
    if not changed:
        return []
    shown = [f"  {one.image}: {one.before} -> {one.after}, is {one.label}" for one in changed[:LISTED]]
    more = [f"  and {len(changed) - LISTED:,} more (--json lists all)"] if len(changed) > LISTED else []
    return ["", change, *shown, *more]


def show(before: str, after: str, as_json: bool) -> None:
    """Print the comparison of two runs: `mimbench compare-predictions`."""
    files = [path_of(name, runs_root()) for name in (before, after)]
    with working("comparing"):
        found = compare(*map(read, files))
    print(json.dumps(to_json(found), indent=2) if as_json else to_text(found))

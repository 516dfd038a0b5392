"""`mimbench table crossmae/compute`: computation, memory and time of each method, beside CrossMAE's Tables 4, 5 and 18.

Counted in models built here (`Task.counting`), in half a minute: parameters, operations of a forward pass on one image,
bytes kept for the backward pass. Printed by the paper: minutes an epoch and memory on 2 (Tables 4 and 5) and on 4
(Table 18) A100-80GB; of ViTDet, detectron2's seconds and memory for an image. Measured: step time, images per second
and peak memory of runs under the runs root, on their device, which is named.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.jobs.runs.encoders import encoders_of
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.tasks import known, tasks
from mimbench.jobs.tables import paper
from mimbench.jobs.tables.grids import BLANK, Grid

HEADS = (
    "", "params (M)", "GFLOP, encoder", "GFLOP, decoder", "GFLOP, all", "MB kept", "printed", "measured",
)  # fmt: skip
NOTES = (
    "GFLOP: a forward pass on one image, including attention; a multiply-add is two operations. Decoder: its blocks, "
    "MAE's decoder_embed, CrossMAE's mixing, MaskAlign's heads; of a detector: pyramid, proposals and heads with "
    "1000 proposals and 100 detections, at 1024 pixels.",
    "MB kept: memory that autograd keeps of one image for the backward pass, in float32, without weights; half "
    "precision keeps about a third less. Optimiser and weights need additional memory.",
    "Printed by CrossMAE for ViT-B: minutes an epoch and MB on each GPU, on 2 A100-80GB (Table 4) or 4 (Table 18); by "
    "detectron2: seconds and GB for an image on an A100.",
    "Waiting for data: share of the time in which the model waited for images. Beyond a few percent the time measures "
    "the loader, not the method: give each GPU more CPU cores.",
    "AMT: in epochs after its attention maps exist (40). MaskAlign, all: includes its teacher on the whole image.",
    "With all hidden patches predicted, CrossMAE's 12 decoder blocks do not need fewer operations than MAE's decoder; "
    "with 25 % predicted they do.",
)
NOTHING = "No runs measured yet; finished pretrainings and detections appear here by method and size."


@dataclass(frozen=True)
class StepCost:
    """Time and memory of an optimiser step, over finished runs of one method and size (the median)."""

    seconds: float  # for each optimiser step
    images: int  # in each step
    memory: float | None  # bytes
    device: str
    runs: int
    waiting: float | None = None  # share of the time spent waiting for data; None if no run recorded it

    @property
    def text(self) -> str:
        """Return the text of a cell."""
        memory = f", {self.memory / 2**20:,.0f} MiB" if self.memory else ""
        rate = f"{self.images / self.seconds:,.0f} images/s"
        waiting = "" if self.waiting is None else f", {self.waiting:.0%} waiting for data"
        return f"{self.seconds:.3g} s/step of {self.images} ({rate}{memory}{waiting}, {self.device})"


Key = tuple[str, str, tuple[Any, ...]]  # task, architecture, and `told_by` of the model


def measured(found: Sequence[Record]) -> dict[Key, StepCost]:
    """Return the measurements of finished pretrainings and detections, by method and size."""
    encoders = encoders_of(found)
    groups: dict[tuple[Key, str, int], list[Record]] = {}
    for record in found:
        result = record.result or {}
        task = known(record.stage)
        if result.get("images_per_second") and task is not None and task.counting is not None:
            science = record.science
            key = (task.name, encoders[record.run.path].architecture, task.counting.told_by(science))
            group = (key, str(result.get("device")), int(science.get("batch", 1)))
            groups.setdefault(group, []).append(record)
    return {key: _step_cost(records, device, batch) for (key, device, batch), records in groups.items()}


def _step_cost(records: Sequence[Record], device: str, batch: int) -> StepCost:
    results = [record.result or {} for record in records]
    seconds = statistics.median(batch / result["images_per_second"] for result in results)
    memories = [result["peak_memory"] for result in results if result.get("peak_memory")]
    waits = [result["loading"]["waiting"] for result in results if result.get("loading")]
    memory, waiting = (statistics.median(values) if values else None for values in (memories, waits))
    return StepCost(seconds, batch, memory, device, len(records), waiting)


def table(found: Sequence[Record], sizes: str = "SBLH", only: Collection[str] | None = None) -> Grid:
    """Return the whole table, or that of the tasks in `only`; rows that no paper has come last, measurements only."""
    from mimbench.engine.run.bar import track

    taken, printed = measured(found), _printed()
    rows, labels = [], {}
    for name, task in tasks().items():
        counting = task.counting
        if counting is None:
            continue
        labels[name] = counting.label
        if only is None or name in only:
            for one in track(counting.rows(sizes), f"counting {task.title}", counting.count(sizes)):
                mine = taken.pop((name, one.architecture, one.told_by), None)
                rows.append(_row(one, printed.get((one.size, one.name), BLANK), mine))
    for (name, architecture, told_by), mine in taken.items():
        rows.append([f"{architecture}, {labels[name](told_by)}", *[BLANK] * 6, mine.text])
    notes = NOTES if any(row[-1] != BLANK for row in rows) else (*NOTES, NOTHING)
    return Grid(
        "crossmae/compute", "Computation, memory and time of the methods", HEADS, tuple(map(tuple, rows)), notes
    )


def _row(one: Any, printed: str, mine: StepCost | None) -> list[str]:
    kept = f"{one.kept / 1e6:.1f}" if one.kept else BLANK
    operations = (f"{value / 1e9:.2f}" if value < 1e12 else f"{value / 1e9:,.0f}" for value in _parts(one))
    label = f"ViT-{one.size}, {one.name}"
    return [label, f"{one.parameters / 1e6:.2f}", *operations, kept, printed, mine.text if mine else BLANK]


def _parts(one: Any) -> Iterator[float]:
    yield from (one.encoder, one.decoder, one.total)


def _printed() -> dict[tuple[str, str], str]:
    """Return the papers' numbers, by size and method."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, gpus in (("crossmae/table4", 2), ("crossmae/table18", 4)):
        cells: dict[str, dict[str, str]] = {}
        for one in paper.references(name):
            cells.setdefault(one.row, {})[one.column] = str(one.value)
        for row, values in cells.items():
            memory = f", {int(values['memory']):,} MB" if "memory" in values else ""
            found.setdefault(("B", row), []).append(f"{values['minutes']} min{memory} (x{gpus})")
    for one in paper.references("vitdet/cost"):
        unit = "s" if one.column == "seconds" else "GB"
        found.setdefault((one.row.removeprefix("ViT-"), "Mask R-CNN"), []).append(f"{one.value} {unit}")
    return {key: "; ".join(texts) for key, texts in found.items()}

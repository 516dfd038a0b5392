"""Runs for notebooks and scripts: run a recipe, and read the results of all runs.

    record = run("cls/knn_handwritten", checkpoint="encoder.safetensors", k=10)
    record.metrics["knn_top1"]

    results().to_dataframe().groupby("recipe")["metrics.knn_top1"].max()

docs/runs.md describes runs and their directories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mimbench.jobs.cli.commands import run_of
from mimbench.jobs.runs import records
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.records import Record
from mimbench.jobs.runs.store import runs_root

if TYPE_CHECKING:
    import pandas

INTERRUPTED = 128  # higher exit codes are 128 plus the number of a signal


class Results(Sequence[Record]):
    """Runs, the first started first; indexed like a list."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Record | Results:
        return Results(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __repr__(self) -> str:
        return f"Results({len(self)} runs)"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat dictionary for each run.

        Keys: run (its directory), stage, recipe, state, data, checkpoint, started (seconds since 1970, None if never),
        seconds, device; `config.KEY` for each setting that changes results, and `metrics.NAME` for each metric. Missing
        values are None; settings and metrics that a run does not have are absent.
        """
        return [_flat(record) for record in self._records]

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas DataFrame: a row for each run, with the columns of `to_dicts`.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        return data_frame(self.to_dicts())


def run(target: str | Path, overrides: Sequence[str] = (), /, **values: Any) -> Record:
    """Run a recipe or a run directory in this process, and return its record once it is done.

    The same as `mimbench run`: a finished run is not repeated, and an interrupted run resumes from its last
    checkpoint. Runs are kept under $MIMBENCH_RUNS, by default ./runs. Call it from the main thread.

        run("cls/knn", data="imagenet", checkpoint="encoder.pth", k=10)
        run("cls/finetune_vitb", ["compute.accumulate=4"], epochs=50)

    Args:
        target: a recipe's name (`mimbench recipes` lists them), or a run directory.
        overrides: settings to change, each as the text key=value.
        values: settings as keyword arguments. Keys with a dot go through `overrides`, or `**{"compute.workers": 0}`.

    Raises:
        ValueError: if the recipe or a key is unknown, a value has the wrong type, or another process runs it.
        FileNotFoundError: if the data set or the checkpoint does not exist.
        RuntimeError: if the run fails, with the reason in one line; the run's directory keeps the log.
        KeyboardInterrupt: if it is interrupted.
    """
    directory = run_of(str(target), [*overrides, *(f"{key}={_text(value)}" for key, value in values.items())])
    code = execute(directory)
    if code > INTERRUPTED:
        raise KeyboardInterrupt(f"{directory.path} was interrupted; the same call resumes it")
    if code:
        why = directory.attempts()[-1].get("why") or "see its log"
        raise RuntimeError(f"{directory.path} failed: {why}")
    return records.record_of(directory)


def results(root: str | Path | None = None) -> Results:
    """Return the records of all runs under `root`, by default $MIMBENCH_RUNS or ./runs; empty if there are none.

    A record has `metrics` (percent; a dictionary), `recipe`, `stage`, `state`, `science` (its settings), `result` (all
    of result.json; None before the run is done) and `run.path`. A run whose files are damaged has the state "damaged".
    """
    return Results(records.read(runs_root() if root is None else Path(root).expanduser()))


def data_frame(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Return `rows` as a pandas DataFrame.

    Raises:
        ModuleNotFoundError: if pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "to_dataframe needs pandas, which mimbench does not install; `pip install pandas`, or use to_dicts()"
        ) from None
    return pandas.DataFrame(rows)


def _flat(record: Record) -> dict[str, Any]:
    result, checkpoint = record.result or {}, record.checkpoint or {}
    return {
        "run": str(record.run.path),
        "stage": record.stage,
        "recipe": record.recipe,
        "state": record.state,
        "data": record.data_set or None,
        "measured_on": record.measured_on or None,
        "checkpoint": checkpoint.get("path"),
        "started": record.attempts[0]["started"] if record.attempts else None,
        "seconds": result.get("seconds"),
        "device": result.get("device"),
        **{f"config.{key}": value for key, value in record.science.items()},
        **{f"metrics.{name}": value for name, value in record.metrics.items()},
    }


def _text(value: Any) -> str:
    """Return a value in the form of the command line."""
    value = value.item() if hasattr(value, "item") else value  # a number of NumPy or torch
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return json.dumps([str(one) if isinstance(one, Path) else one for one in value])
    return str(value)

"""What a task says of itself, so that `mimbench.jobs` names no task: one `Task` in each `<folder>/task.py`.

    TASK = Task(
        name="toy",                           # the folder, and what recipes begin with: toy/tiny
        title="toy benchmark",
        configs=_configs,                     # -> {"Toy": Toy}: config classes by the name `run.json` records
        run=_run,                             # (config, run_dir) -> Outcome
        recipes=_recipes,                     # -> the modules that hold recipes, in the order they are listed in
        protocols=(Protocol("toy", "toy/tiny"),),             # mimbench evaluate --on toy
        metrics=(Metric("toy_score", "toy", SCORE, headline=True),),
    )

A `task.py` is imported by every command, so it imports neither torch nor its own config: whatever is heavy is imported
inside the functions that it hands over (`def _run(config, run): from mimbench.toy.run import run as ...`).

Everything but the first five fields has a default that means "no such thing". Found by `mimbench.jobs.runs.tasks`: the
folders of the distribution that have a `task.py`, those that `MIMBENCH_TASKS` names, and the entry points of the group
`mimbench.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

Takes = Literal["encoder", "teacher", "detector", "classifier", "nothing"]
Leaves = Literal["encoder", "classifier", "detector", "model", "nothing"]


# --------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Quantity:
    """What several metrics measure."""

    name: str  # in a caption: "top-1 accuracy"
    unit: str = "%"
    short: str = ""  # above a column, in place of the unit: "top-1 %"
    digits: int = 1  # after the point, where it is shown
    better: Literal["higher", "lower"] = "higher"

    @property
    def head(self) -> str:
        """What stands above a column, beside the metric's title."""
        return self.short or self.unit


@dataclass(frozen=True)
class Metric:
    """One number of `result.json` that people look at."""

    key: str  # in `result.json` and `metrics.jsonl`: "knn_top1"
    title: str  # of a column of the table: "k-NN"
    quantity: Quantity
    column: Literal["always", "measured", "never"] = "always"  # of the table; measured: once a run has it
    headline: bool = True  # stands in the line that `status` and the progress display have for a finished run
    curve: str = ""  # title of the axis where it is drawn over a training; none: drawn among the minor charts
    by_cost: bool = False  # the report draws it over the hours of pretraining


@dataclass(frozen=True)
class Curve:
    """One number of `metrics.jsonl`, beside the metrics and the terms of the loss, that the report draws."""

    key: str
    title: str


@dataclass(frozen=True)
class Categories:
    """A file of each run with one number for each category, which `compare` and the report lay side by side."""

    file: str  # in the run directory: a JSON list of objects with "name" and `key`
    key: str  # "box_ap"
    title: str  # "Box AP"


@dataclass(frozen=True)
class Picture:
    """A picture of the report: what the file `<stem>.png` in a run's `plots/` shows."""

    stem: str
    heading: str
    caption: str
    when: tuple[str, str] | None = None  # only for runs whose setting is so: ("method.kind", "maskalign")


@dataclass(frozen=True)
class CardEntry:
    """A number of a model card."""

    key: str  # of the metric
    kind: str  # what model hubs call the task: "image-classification"
    title: str  # "k-NN, top-1"


# ------------------------------------------------------------------------------------------- what is run, and on what


@dataclass(frozen=True)
class Protocol:
    """What `mimbench evaluate --on NAME` runs."""

    name: str
    recipes: str | Mapping[str, str]  # one recipe for every encoder, or one for each size that has one: {"B": ...}
    handwritten: str | None = None  # the same on the data set `handwritten`, and for the demo's encoder
    example: bool = False  # named in the example commands of a model card


@dataclass(frozen=True)
class DataKind:
    """A kind of data set that `mimbench data check KIND PATH` knows."""

    name: str
    check: Callable[[Path, str], Report]  # (directory, name) -> everything that was found


@dataclass(frozen=True)
class Input:
    """How the file given to `mimbench evaluate` is read where the encoder alone is not all that counts.

    Two functions, both optional:
        whole: the shape of the encoder (a `ViT`) in a whole model of this task's, an open `backbones.weights.Weights`.
        refusal: why an encoder with these traits cannot be evaluated; None if it can.
    """

    whole: Callable[[Any], Any] | None = None
    refusal: Callable[[Any], str | None] | None = None


@dataclass(frozen=True)
class Memory:
    """Estimates of what a run needs on each GPU, before it runs.

    estimate(config, gpus): a dataclass with `images`, `recompute`, `total` and the bytes of each of its parts.
    advice(config, free, gpus): None if `free` bytes suffice; else, in one line, what would fit.
    """

    estimate: Callable[[Any, int], Any]
    advice: Callable[[Any, int, int], str | None]


@dataclass(frozen=True)
class Finding:
    """One thing that `mimbench doctor` looked at for this task."""

    what: str
    verdict: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


# ---------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class Task:
    """One task: what it runs, what it measures, and how that is shown.

    Raises:
        ValueError: for a name that is no folder's, or two metrics or protocols of one name.
    """

    name: str  # the stage in `run.json`, the folder, and what names of recipes begin with
    title: str  # for people: "classification"
    configs: Callable[[], Mapping[str, type[Any]]]  # config classes by the name that `run.json` records
    run: Callable[[Any, RunDir], Outcome]
    recipes: Callable[[], Iterable[ModuleType]]  # every public function of these modules is a recipe
    order: int = 50  # among the tasks, wherever they are listed; pretraining is 10

    # evaluation
    protocols: tuple[Protocol, ...] = ()
    data: tuple[str, ...] = ()  # what `--data NAME=...` calls this task's data set, beside the task's own name
    takes: Takes = "encoder"  # what a run's checkpoint is to it; a config's own `takes` goes before
    leaves: Leaves = "nothing"  # the file that a finished run leaves; "encoder" makes it a pretraining
    input: Input = Input()

    # numbers
    metrics: tuple[Metric, ...] = ()  # in the order of the table's columns
    measures: tuple[str, ...] = ()  # how the names of all its metrics begin; none: the keys of `metrics`
    best_epoch: tuple[str, str] | None = None  # how keys begin, and those of the same at the epoch with the best top-1
    main: str = ""  # the metric that a search raises or lowers unless told; none: the first
    curves: tuple[Curve, ...] = ()
    counts: Literal["epochs", "steps"] = "epochs"  # the config's field that says how long a run is
    keeps: str = ""  # the config's field that says after how many epochs an encoder is kept on the way
    seedless: tuple[str, ...] = ()  # configs (their names) that give the same result with every seed, given an encoder

    # for people
    glossary: tuple[tuple[str, str], ...] = ()  # "How to read the table" of the report: term, explanation
    pictures: tuple[Picture, ...] = ()
    categories: Categories | None = None
    card: tuple[CardEntry, ...] = ()
    settings: tuple[str, ...] = ()  # the settings of a run that a model card shows, in this order

    # before a run
    kinds: tuple[DataKind, ...] = ()
    cost: Callable[[Any], Cost | None] | None = None  # of a config whose recipe states none
    memory: Memory | None = None
    throughput: Callable[[Any], Any] | None = None  # config -> what loading and a step take, for `mimbench doctor`
    doctor: Callable[[], Iterable[Finding]] | None = None
    flops: Callable[[], Iterable[Any]] | None = None  # rows of `mimbench flops NAME`
    module_flops: Callable[[Any, int], tuple[dict[str, Any], str]] | None = None  # config, depth -> counts, table
    computes: bool = False  # its runs stand in the table of what methods compute (crossmae/compute)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"task {self.name!r}: the name is that of a folder, of letters, digits and _")
        for what, names in (
            ("metrics", [metric.key for metric in self.metrics]),
            ("protocols", [protocol.name for protocol in self.protocols]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"task {self.name}: two of its {what} have one name: {', '.join(names)}")
        if self.main and self.main not in {metric.key for metric in self.metrics}:
            raise ValueError(f"task {self.name}: main={self.main} is none of its metrics")

    @property
    def makes_encoders(self) -> bool:
        """Whether its runs leave an encoder that other runs start from."""
        return self.leaves == "encoder"

    @property
    def main_metric(self) -> str:
        """The key of the metric that a search looks at."""
        return self.main or (self.metrics[0].key if self.metrics else "")

    @property
    def beginnings(self) -> tuple[str, ...]:
        """How the names of its metrics begin."""
        return self.measures or tuple(metric.key for metric in self.metrics)

    def trains(self, config: Any) -> bool:
        """Whether a run of `config` trains anything: 0 steps (or epochs) evaluate what is given as it is."""
        return bool(getattr(config, self.counts, 1))

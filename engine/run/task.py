"""The description of a task, so that `mimbench.jobs` need not name any task: one `Task` in each `<folder>/task.py`.

    TASK = Task(
        name="toy",                           # the folder, and the prefix of recipe names: toy/tiny
        title="toy benchmark",
        configs=_configs,                     # -> {"Toy": Toy}: config classes by their name in `run.json`
        run=_run,                             # (config, run_dir) -> Outcome
        recipes=_recipes,                     # -> the modules that hold recipes, in listing order
        protocols=(Protocol("toy", "toy/tiny"),),             # mimbench evaluate --on toy
        metrics=(Metric("toy_score", "toy", SCORE, headline=True),),
    )

Every command imports each `task.py`, so it imports neither torch nor its own config: its functions import heavy modules
themselves (`def _run(config, run): from mimbench.toy.run import run as ...`).

All fields except the first five have defaults that mean "not available". `mimbench.jobs.runs.tasks` finds tasks in the
folders of the distribution that have a `task.py`, the folders that `MIMBENCH_TASKS` names, and the entry points of the
group `mimbench.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from mimbench.engine.data.content import Part
    from mimbench.engine.data.datasets import Report
    from mimbench.engine.run.cost import Cost
    from mimbench.engine.run.result import Outcome
    from mimbench.engine.run.rundir import RunDir

ANY = "any"  # in place of a size: a protocol's recipe for encoders of every other size
Takes = Literal["encoder", "teacher", "detector", "segmenter", "classifier", "nothing"]
Pooled = Literal["avg", "cls", "both"]  # the mean of the patch tokens, the class token, or both side by side
Leaves = Literal["encoder", "classifier", "detector", "model", "nothing"]


# -------------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Quantity:
    """The quantity that one or more metrics measure."""

    name: str  # in a caption: "top-1 accuracy"
    unit: str = "%"
    short: str = ""  # column heading instead of the unit: "top-1 %"
    digits: int = 1  # decimals shown
    better: Literal["higher", "lower"] = "higher"

    @property
    def head(self) -> str:
        """The column heading beside the metric's title."""
        return self.short or self.unit


@dataclass(frozen=True)
class Metric:
    """A number of `result.json` that tables and reports show."""

    key: str  # in `result.json` and `metrics.jsonl`: "knn_top1"
    title: str  # of a column of the table: "k-NN"
    quantity: Quantity
    column: Literal["always", "measured", "never"] = "always"  # of the table; measured: only if a run has it
    headline: bool = True  # shown by `status` and the progress display for a finished run
    curve: str = ""  # axis title of its chart over a training; empty: drawn among the minor charts
    by_cost: bool = False  # the report plots it against the hours of pretraining


@dataclass(frozen=True)
class Curve:
    """A number of `metrics.jsonl` that the report draws in addition to metrics and loss terms."""

    key: str
    title: str


@dataclass(frozen=True)
class Categories:
    """A file of each run with one number per category, which `compare` and the report show side by side."""

    file: str  # in the run directory: a JSON list of objects with "name" and `key`
    key: str  # "box_ap"
    title: str  # "Box AP"


@dataclass(frozen=True)
class Picture:
    """A picture of the report: the file `<stem>.png` in a run's `plots/`."""

    stem: str
    heading: str
    caption: str
    when: tuple[str, str] | None = None  # only for runs with this setting: ("method.kind", "maskalign")


@dataclass(frozen=True)
class CardEntry:
    """A number of a model card."""

    key: str  # of the metric
    kind: str  # the task's name on model hubs: "image-classification"
    title: str  # "k-NN, top-1"


# ------------------------------------------------------------------------------------------------ runs and their inputs


@dataclass(frozen=True)
class Choice:
    """The recipe that a protocol runs for one encoder."""

    recipe: str
    overrides: tuple[str, ...] = ()  # key=value that this encoder needs
    why: str = ""  # one line for people; empty if there was nothing to choose


@dataclass(frozen=True)
class Protocol:
    """The recipes that `mimbench evaluate --on NAME` runs.

    `choose` is asked for the recipe if it is set: a function of the encoder's `ViT` and of its `EncoderInfo`, which is
    None if only the shape is known. `recipes` then lists the usual ones.
    """

    name: str
    recipes: str | Mapping[str, str]  # one recipe for every encoder, or one per size, {"B": ...}, and for ANY other
    handwritten: str | None = None  # the recipe for the data set `handwritten` and the demo's encoder
    example: bool = False  # named in the example commands of a model card
    choose: Callable[[Any, Any], Choice] | None = None
    plan: Callable[[Any, Any], tuple[str, ...]] | None = None  # what the chosen recipe does with it, for `inspect`


@dataclass(frozen=True)
class DataKind:
    """A kind of data set that `mimbench data check KIND PATH` supports."""

    name: str
    check: Callable[[Path, str], Report]  # (directory, name) -> all findings


@dataclass(frozen=True)
class Reads:
    """What a run reads of its data set: its fingerprint is part of the run's identity.

    parts: (directory or pattern of the data set) -> its files that the run reads; imports no torch.
    """

    what: str  # "train and val images": runs with the same text read the same parts
    parts: Callable[[Path], Iterable[Part]]


@dataclass(frozen=True)
class Input:
    """How to read the file given to `mimbench evaluate` if more than the encoder matters.

    Two functions, both optional:
        whole: returns the encoder's shape (a `ViT`) in a whole model of this task, an open `backbones.weights.Weights`.
        refusal: returns why an encoder with these traits cannot be evaluated; None if it can.
    """

    whole: Callable[[Any], Any] | None = None
    refusal: Callable[[Any], str | None] | None = None


@dataclass(frozen=True)
class Memory:
    """Estimates of the GPU memory that a run needs, before it runs.

    estimate(config, gpus): returns a dataclass with `images`, `recompute`, `total` and the bytes of each part.
    advice(config, free, gpus): returns None if `free` bytes suffice; else one line that says what would fit.
    """

    estimate: Callable[[Any, int], Any]
    advice: Callable[[Any, int, int], str | None]


@dataclass(frozen=True)
class Operations:
    """A table of operations, for `mimbench flops NAME`."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int  # the first columns, which name a row; the others are numbers
    numbers: list[dict[str, Any]]  # unrounded, for --json


@dataclass(frozen=True)
class Counting:
    """Operations, parameters and memory of a task's models, for the table of compute costs.

    rows(sizes): yields an `engine.training.counting.Counted` for each model of the sizes, such as "SB".
    count(sizes): returns their number, for a progress bar.
    told_by(settings): returns the same tuple for the runs that compute the same.
    label(told_by): returns the name of a model without a row.
    """

    rows: Callable[[str], Iterable[Any]]
    count: Callable[[str], int]
    told_by: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    label: Callable[[tuple[Any, ...]], str]


DRAWN_BY = "mimbench predict"  # the `Software` in the pictures that `Predicted.draw` writes


@dataclass(frozen=True)
class Predicted:
    """The prediction for one image."""

    file: Path
    results: list[Any]  # JSON objects with "image_id", the number of the image
    text: str  # for people, on one line
    drawn: int  # number of objects in the picture
    draw: Callable[[Path], None]  # writes a PNG, with `DRAWN_BY` as its Software


Predictor = Callable[[Sequence[Path], Any, float], Iterator[Predicted | Exception]]  # files, torch device, least score


class Spread(NamedTuple):
    """A metric of one run in percent, and its 95 % interval over resampled images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Embedding:
    """A request for the features of images in a file: `mimbench embed`."""

    checkpoint: Path  # a file, or a user's function
    data: str  # a data set's name, or a directory with images
    output: Path
    split: Literal["train", "val"] = "val"
    pool: Pooled = "avg"
    image: int | None = None  # pixels; None: those of the pretraining
    half: bool = False


@dataclass(frozen=True)
class Finding:
    """One check of `mimbench doctor` for this task."""

    what: str
    verdict: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


# ------------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class Task:
    """A task: what it runs, what it measures, and how results are shown.

    Raises:
        ValueError: for a name that cannot be a folder's, or if two metrics or two protocols have the same name.
    """

    name: str  # the stage in `run.json`, the folder, and the prefix of recipe names
    title: str  # for people: "classification"
    configs: Callable[[], Mapping[str, type[Any]]]  # config classes by their name in `run.json`
    run: Callable[[Any, RunDir], Outcome]
    recipes: Callable[[], Iterable[ModuleType]]  # every public function of these modules is a recipe
    load: Callable[[], None] | None = None  # imports what `run` needs; a local study does so once for all its runs
    order: int = 50  # position in lists of tasks; pretraining is 10

    # evaluation
    protocols: tuple[Protocol, ...] = ()
    data: tuple[str, ...] = ()  # other names of this task's data set in `--data NAME=...`, besides the task's name
    reads: Callable[[Any], Reads] | None = None  # of a config; None: all images of the data set, and lists beside them
    takes: Takes = "encoder"  # what a run's checkpoint is; a config's own `takes` has priority
    leaves: Leaves = "nothing"  # the file that a finished run writes; "encoder" makes it a pretraining
    input: Input = Input()

    # numbers
    metrics: tuple[Metric, ...] = ()  # in the order of the table's columns
    measures: tuple[str, ...] = ()  # prefixes of all metric names; empty: the keys of `metrics`
    best_epoch: tuple[str, str] | None = None  # key prefix, and the key prefix at the epoch with the best top-1
    main: str = ""  # the metric that a search optimises by default; empty: the first
    curves: tuple[Curve, ...] = ()
    counts: Literal["epochs", "steps"] = "epochs"  # the config field with a run's length
    keeps: str = ""  # the config field with the epochs between two kept encoders
    seedless: tuple[str, ...] = ()  # names of configs whose result does not depend on the seed, for a fixed encoder

    # for people
    glossary: tuple[tuple[str, str], ...] = ()  # "How to read the table" of the report: term, explanation
    pictures: tuple[Picture, ...] = ()
    categories: Categories | None = None
    card: tuple[CardEntry, ...] = ()
    settings: tuple[str, ...] = ()  # the settings of a run that a model card shows, in this order

    # before a run
    kinds: tuple[DataKind, ...] = ()
    cost: Callable[[Any], Cost | None] | None = None  # of a config whose recipe states no cost
    memory: Memory | None = None
    throughput: Callable[[Any], Any] | None = None  # config -> speed of loading and of a step, for `mimbench doctor`
    doctor: Callable[[], Iterable[Finding]] | None = None
    flops: Callable[[], Operations] | None = None  # printed by `mimbench flops NAME`
    embed: Callable[[Embedding], dict[str, Any]] | None = None  # writes features; returns images, width, feature, file
    module_flops: Callable[[Any, int], tuple[dict[str, Any], str]] | None = None  # config, depth -> counts, table
    counting: Counting | None = None  # of its models, for the table of compute costs (crossmae/compute)

    # commands on single runs
    predict: Callable[[Path], Predictor] | None = None  # reads a run directory or a file, for `mimbench predict`
    intervals: Callable[[RunDir, int], tuple[dict[str, Spread], int]] | None = None  # run, draws -> by metric; images
    lazyconfig: Callable[[Any, Path], None] | None = None  # writes a config for detectron2, for `mimbench lazyconfig`

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"task {self.name!r}: a name must be a folder's, of letters, digits and _")
        for what, names in (
            ("metrics", [metric.key for metric in self.metrics]),
            ("protocols", [protocol.name for protocol in self.protocols]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"task {self.name}: its {what} must have different names: {', '.join(names)}")
        if self.main and self.main not in {metric.key for metric in self.metrics}:
            raise ValueError(f"task {self.name}: main={self.main} is not one of its metrics")

    @property
    def makes_encoders(self) -> bool:
        """Whether its runs write an encoder that other runs start from."""
        return self.leaves == "encoder"

    @property
    def main_metric(self) -> str:
        """The key of the metric that a search optimises."""
        return self.main or (self.metrics[0].key if self.metrics else "")

    @property
    def beginnings(self) -> tuple[str, ...]:
        """The prefixes of its metric names."""
        return self.measures or tuple(metric.key for metric in self.metrics)

    def trains(self, config: Any) -> bool:
        """Return whether a run of `config` trains: with 0 steps (or epochs) it only evaluates the given model."""
        return bool(getattr(config, self.counts, 1))

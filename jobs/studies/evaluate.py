"""Evaluate a checkpoint: a study with the recipe of each protocol for its encoder.

    mimbench evaluate encoder.safetensors --on linear,linear_fast --data imagenet
    mimbench evaluate encoder.safetensors --on linear,fewshot --data cls=PATH linear.epochs=10
    mimbench evaluate encoder.safetensors --on linear --data handwritten --scratch

The protocols are those of the installed tasks (`Task.protocols`). Each stands for the paper's recipe for the size of
the encoder, or on `handwritten` for the demo's; one that chooses by family and traits says what it chose
(`Study.notes`). An override applies to every recipe with its key, or only to the
protocol named before it (`linear.epochs=10`). With `--scratch` each protocol also runs from random weights: training
from scratch, or evaluation of a random encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.backbones.checkpoints.huggingface.folder import shown_name
from mimbench.backbones.config import SIZES
from mimbench.engine.data.datasets import HANDWRITTEN, is_there, locate
from mimbench.engine.run.config import keys, with_overrides
from mimbench.engine.run.nearest import did_you_mean
from mimbench.engine.run.task import ANY, Choice
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.tasks import protocols, tasks
from mimbench.jobs.studies.study import Run, Study

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.info import EncoderInfo
    from mimbench.backbones.config import ViT


@dataclass(frozen=True)
class Request:
    """A request to evaluate a checkpoint."""

    protocols: Sequence[str]  # of `mimbench.jobs.runs.tasks.protocols`
    data: Sequence[str] = ()  # NAME, or TASK=NAME for one task (its name, or its name for data)
    overrides: Sequence[str] = ()  # key=value or PROTOCOL.key=value
    recipes: Sequence[str] = ()  # PROTOCOL=RECIPE, in place of the paper's recipe
    scratch: bool = False  # also run from random weights


def evaluation(checkpoint: Path, encoder: ViT | None, request: Request, about: EncoderInfo | None = None) -> Study:
    """Return the study that evaluates `checkpoint`, whose encoder has shape `encoder` (None: a user's, frozen only).

    `about` says what else the encoder is, for protocols that choose their recipe by it; None if only its shape is
    known. The study's notes say what they chose.

    Raises:
        ValueError: if a protocol is unknown, the size has no recipe, or no recipe takes an override.
    """
    _known(request.protocols)
    chosen, where = dict(map(_choice, request.recipes)), _data(request.data)
    data = {protocol: where.get(protocols()[protocol][0].name) for protocol in request.protocols}
    choices = {
        protocol: Choice(chosen[protocol]) if protocol in chosen else _recipe(protocol, encoder, data[protocol], about)
        for protocol in request.protocols
    }
    names = {protocol: choice.recipe for protocol, choice in choices.items()}
    given = _shared_out(request.overrides, names)
    runs = []
    for protocol, name in names.items():
        on = data[protocol]
        overrides = (*([f"data={on}"] if on else []), *_kept(choices[protocol], given[protocol]), *given[protocol])
        runs.append(Run(name, overrides, checkpoint, label=protocol))
        if request.scratch:
            runs.append(Run(name, (*overrides, *_random(name, encoder)), label=f"{protocol}, random weights"))
    notes = (f"{protocol}: {choice.recipe}: {choice.why}" for protocol, choice in choices.items() if choice.why)
    return Study(f"evaluate {shown_name(checkpoint)}", runs, notes=tuple(notes))


def _kept(choice: Choice, given: Sequence[str]) -> list[str]:
    """Return the overrides of a choice whose keys were not given."""
    keys_given = {override.partition("=")[0] for override in given}
    return [override for override in choice.overrides if override.partition("=")[0] not in keys_given]


def check(request: Request) -> None:
    """Check all names in a request, before its checkpoint is opened: protocols, recipes, data sets and keys.

    Raises:
        ValueError: for the first unknown name; the message offers the nearest.
        FileNotFoundError: if a data set does not exist.
    """
    _known(request.protocols)
    chosen = dict(map(_choice, request.recipes))
    for recipe in chosen.values():
        find(recipe)
    for data in _data(request.data).values():
        if not is_there(data):
            locate(data)
    builds = {name: [find(recipe).build() for recipe in _possible(name, chosen)] for name in request.protocols}
    for override in request.overrides:
        key, protocol, rest = override.partition("=")[0], *override.partition(".")[::2]
        if any(key in keys(config) for configs in builds.values() for config in configs):
            continue
        if protocol in protocols():
            _known_here(protocol, dict.fromkeys(builds, ""), override)
            if not any(rest.partition("=")[0] in keys(config) for config in builds[protocol]):
                with_overrides(builds[protocol][0], [rest])
        else:
            with_overrides(next(iter(builds.values()))[0], [override])


def _possible(protocol: str, chosen: Mapping[str, str]) -> list[str]:
    """Return the recipes that a protocol may run, whatever the encoder."""
    if protocol in chosen:
        return [chosen[protocol]]
    known = protocols()[protocol][1]
    sizes = [known.recipes] if isinstance(known.recipes, str) else list(known.recipes.values())
    return [*sizes, *([known.handwritten] if known.handwritten else [])]


def _random(recipe: str, encoder: ViT | None) -> list[str]:
    """Return the overrides that give a recipe without a checkpoint the shape of `encoder`.

    Raises:
        ValueError: if the encoder is a user's, which cannot be built with random weights.
    """
    if encoder is None:
        raise ValueError(
            "--scratch: mimbench cannot build a user's encoder with random weights; evaluate a function that does"
        )
    usual = asdict(find(recipe).build().encoder)
    return [f"encoder.{name}={value}" for name, value in asdict(encoder).items() if value != usual[name]]


def _known(wanted: Sequence[str]) -> None:
    for protocol in wanted:
        if protocol not in protocols():
            every = f"give some of {', '.join(protocols())}, separated by commas"
            raise ValueError(f"--on {protocol} is unknown; {did_you_mean(protocol, protocols(), every)}")


def _choice(text: str) -> tuple[str, str]:
    protocol, separator, recipe = text.partition("=")
    if not separator or protocol not in protocols():
        raise ValueError(f"--recipe {text} is not PROTOCOL=RECIPE; the protocols are {', '.join(protocols())}")
    return protocol, recipe


def _data(given: Sequence[str]) -> dict[str, str]:
    """Return the data set of each task."""
    evaluating = [task for task in tasks().values() if task.protocols]
    views = {view: task.name for task in evaluating for view in (task.name, *task.data)}
    where: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if separator and key in views:
            where[views[key]] = value
        else:
            where.update({task.name: text for task in evaluating})
    return where


def _recipe(protocol: str, encoder: ViT | None, data: str | None, about: EncoderInfo | None) -> Choice:
    known = protocols()[protocol][1]
    twin = known.handwritten
    if twin is not None and (data == HANDWRITTEN or encoder == find(twin).build().encoder):
        return Choice(twin)
    if known.choose is not None and encoder is not None:
        return known.choose(encoder, about)
    if isinstance(known.recipes, str):
        return Choice(known.recipes)
    if encoder is None and ANY not in known.recipes:
        raise ValueError(
            f"{protocol} needs the named blocks and weights of a mimbench VisionTransformer, but this function returns "
            f"another encoder; use a protocol that keeps the encoder frozen"
        )
    size = next((letter for letter, vit in SIZES.items() if encoder and _shape(vit) == _shape(encoder)), ANY)
    if encoder is None or size in known.recipes or ANY in known.recipes:
        return Choice(known.recipes.get(size, known.recipes.get(ANY, "")))
    sizes = ", ".join(f"ViT-{letter}" for letter in known.recipes)
    width, depth, heads = _shape(encoder)
    raise ValueError(
        f"{protocol} has no recipe for an encoder of width {width}, depth {depth} and {heads} heads (recipes exist for "
        f"{sizes}); choose one with --recipe {protocol}=STAGE/NAME"
    )


def _shape(encoder: ViT) -> tuple[int, int, int]:
    return encoder.width, encoder.depth, encoder.heads


def _shared_out(overrides: Sequence[str], names: dict[str, str]) -> dict[str, list[str]]:
    """Return the overrides of each protocol's recipe."""
    known = {protocol: keys(find(name).build()) for protocol, name in names.items()}
    given: dict[str, list[str]] = {protocol: [] for protocol in names}
    for override in overrides:
        key = override.partition("=")[0]
        protocol, _, rest = override.partition(".")
        takers = [name for name in names if key in known[name]]
        if protocol in protocols() and not takers:
            _known_here(protocol, names, override)
            given[protocol].append(rest)
        elif takers:
            for taker in takers:
                given[taker].append(override)
        else:
            given[next(iter(names))].append(override)  # this recipe rejects it and offers the nearest key
    return given


def _known_here(protocol: str, names: dict[str, str], override: str) -> None:
    if protocol not in names:
        raise ValueError(f"{override} is for {protocol}, which is not in --on {','.join(names)}")

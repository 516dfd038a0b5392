"""Evaluate a checkpoint: which recipe each protocol means for it, as a study.

    mimbench evaluate encoder.safetensors --on knn,finetune --data imagenet
    mimbench evaluate encoder.safetensors --on finetune,coco --data imagenet=PATH --data coco=PATH coco.steps=1000
    mimbench evaluate encoder.safetensors --on finetune,linear,knn --data handwritten --scratch

A protocol means the paper's recipe for the size of the encoder, and on `handwritten` the demo's. An override is for
every recipe that has its key, or for the one it names first (`coco.steps=1000`). With `--scratch` each is run from
random weights, too: a fine-tuning from scratch, or what a random encoder is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.backbones.config import SIZES
from mimbench.engine.data.datasets import HANDWRITTEN
from mimbench.engine.run.config import leaves
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.studies.study import Run, Study

if TYPE_CHECKING:
    from mimbench.backbones.config import ViT

STAGE = {"knn": "cls", "linear": "cls", "linear_fast": "cls", "fewshot": "cls", "finetune": "cls", "coco": "det"}
VIEWS = {"cls": "cls", "imagenet": "cls", "det": "det", "coco": "det"}  # what --data calls a stage -> the stage
PUBLISHED = {
    "knn": dict.fromkeys(SIZES, "cls/knn"),
    "linear": dict.fromkeys(SIZES, "cls/linear_vitb"),  # one setting for all sizes; the size is the checkpoint's
    "linear_fast": dict.fromkeys(SIZES, "cls/linear_fast"),
    "fewshot": dict.fromkeys(SIZES, "cls/fewshot"),
    "finetune": {size: f"cls/finetune_vit{size.lower()}" for size in SIZES},
    "coco": {
        "B": "det/mask_rcnn_vitdet_b_100ep",
        "L": "det/mask_rcnn_vitdet_l_100ep",
        "H": "det/mask_rcnn_vitdet_h_75ep",
    },
}
TWINS = {
    "knn": "cls/knn_handwritten",
    "linear": "cls/linear_handwritten",
    "linear_fast": "cls/linear_fast_handwritten",
    "fewshot": "cls/fewshot_handwritten",
    "finetune": "cls/finetune_handwritten",
    "coco": "det/mask_rcnn_handwritten",
}


@dataclass(frozen=True)
class Request:
    """What a person asks for."""

    protocols: Sequence[str]  # of STAGE
    data: Sequence[str] = ()  # NAME, or for a stage: a key of VIEWS, =, NAME
    overrides: Sequence[str] = ()  # key=value or PROTOCOL.key=value
    recipes: Sequence[str] = ()  # PROTOCOL=RECIPE, where another than the paper's is wanted
    scratch: bool = False  # from random weights as well


def evaluation(checkpoint: Path, encoder: ViT | None, request: Request) -> Study:
    """The study that evaluates `checkpoint`, an encoder of shape `encoder`; None of a user's own, for frozen protocols.

    Raises:
        ValueError: for an unknown protocol, a size without a recipe, or an override that no recipe takes.
    """
    _known(request.protocols)
    chosen, where = dict(map(_choice, request.recipes)), _data(request.data)
    names = {
        protocol: chosen.get(protocol) or _recipe(protocol, encoder, where.get(STAGE[protocol]))
        for protocol in request.protocols
    }
    given = _shared_out(request.overrides, names)
    runs = []
    for protocol, name in names.items():
        on = where.get(STAGE[protocol])
        overrides = (*([f"data={on}"] if on else []), *given[protocol])
        runs.append(Run(name, overrides, checkpoint, label=protocol))
        if request.scratch:
            runs.append(Run(name, (*overrides, *_random(name, encoder)), label=f"{protocol}, random weights"))
    return Study(f"evaluate {checkpoint.name}", runs)


def _random(recipe: str, encoder: ViT | None) -> list[str]:
    """The overrides that give a recipe without a checkpoint the shape of `encoder`.

    Raises:
        ValueError: for a user's own encoder, of which there is no random one.
    """
    if encoder is None:
        raise ValueError(
            "--scratch: there are no random weights of a user's encoder; evaluate a function that makes it"
        )
    usual = asdict(find(recipe).build().encoder)
    return [f"encoder.{name}={value}" for name, value in asdict(encoder).items() if value != usual[name]]


def _known(protocols: Sequence[str]) -> None:
    for protocol in protocols:
        if protocol not in STAGE:
            raise ValueError(f"--on {protocol}: the protocols are {', '.join(STAGE)}, separated by commas")


def _choice(text: str) -> tuple[str, str]:
    protocol, separator, recipe = text.partition("=")
    if not separator or protocol not in STAGE:
        raise ValueError(f"--recipe {text}: it must be PROTOCOL=RECIPE, with a protocol of {', '.join(STAGE)}")
    return protocol, recipe


def _data(given: Sequence[str]) -> dict[str, str]:
    """Stage -> data set."""
    where: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if separator and key in VIEWS:
            where[VIEWS[key]] = value
        else:
            where.update(cls=text, det=text)
    return where


def _recipe(protocol: str, encoder: ViT | None, data: str | None) -> str:
    if data == HANDWRITTEN or encoder == find(TWINS["knn"]).build().encoder:
        return TWINS[protocol]
    if len(of_any_size := set(PUBLISHED[protocol].values())) == 1:
        return of_any_size.pop()
    if encoder is None:
        raise ValueError(
            f"{protocol} needs the blocks and weights of an encoder by name, and this function returns one that is no "
            f"VisionTransformer of mimbench; evaluations of a frozen encoder take it as it is"
        )
    size = next((letter for letter, vit in SIZES.items() if _shape(vit) == _shape(encoder)), None)
    if size in PUBLISHED[protocol]:
        return PUBLISHED[protocol][size]
    sizes = ", ".join(f"ViT-{letter}" for letter in PUBLISHED[protocol])
    width, depth, heads = _shape(encoder)
    raise ValueError(
        f"no recipe for {protocol} is known for an encoder {width} wide and {depth} deep with {heads} heads (but for "
        f"{sizes}); choose one with --recipe {protocol}=STAGE/NAME"
    )


def _shape(encoder: ViT) -> tuple[int, int, int]:
    return encoder.width, encoder.depth, encoder.heads


def _shared_out(overrides: Sequence[str], names: dict[str, str]) -> dict[str, list[str]]:
    """Which overrides each protocol's recipe gets."""
    keys = {protocol: {leaf.key for leaf in leaves(find(name).build())} for protocol, name in names.items()}
    given: dict[str, list[str]] = {protocol: [] for protocol in names}
    for override in overrides:
        key = override.partition("=")[0]
        protocol, _, rest = override.partition(".")
        takers = [name for name in names if key in keys[name]]
        if protocol in STAGE and not takers:
            _known_here(protocol, names, override)
            given[protocol].append(rest)
        elif takers:
            for taker in takers:
                given[taker].append(override)
        else:
            given[next(iter(names))].append(override)  # which refuses it, and offers the nearest key
    return given


def _known_here(protocol: str, names: dict[str, str], override: str) -> None:
    if protocol not in names:
        raise ValueError(f"{override} is for {protocol}, which is not among --on {','.join(names)}")

"""`mimbench inspect FILE`: what a checkpoint holds and how each key is used, without loading it.

Reads the names and shapes in the file, and the encoder's weights if they are at most 512 MiB (to see that they are
finite); an optimizer of gigabytes is not read. Exits with 1, after the report, if the file would not load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.backbones.checkpoints.location import user_code
from mimbench.jobs.runs.tasks import protocols

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.report import Report
    from mimbench.backbones.weights import Weights


def show(checkpoint: str, copy: str | None, as_json: bool, every_key: bool) -> None:
    """Print the report of `checkpoint`: a file, a `file://` URL, a pretraining's run directory, or FILE.py:FUNCTION.

    A user's function is called and the encoder it returns is run on two images.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not a checkpoint of a known family or would not load.
    """
    from mimbench.engine.run.bar import working
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import encoder_file

    if (code := user_code(checkpoint)) is not None:
        _show_user_code(code.location, as_json)
        return
    file = encoder_file(Path(checkpoint))
    with working(f"reading {file.name}"):
        from mimbench.backbones.checkpoints.report import as_json as plain
        from mimbench.backbones.weights import open_weights

        found = open_weights(file, copy=copy)
        told = found.report()
        plans = _plans(found, told)
    if as_json:
        print_json({**plain(told), "plans": plans})
    else:
        from rich.console import Console

        from mimbench.backbones.checkpoints.report_text import render

        Console(highlight=False, soft_wrap=False).print(render(told, every_key, plans))
    if told.refused is not None:
        raise ValueError(told.refused)


def _plans(found: Weights, told: Report) -> dict[str, list[str]]:
    """Return what each protocol that plans would do with an encoder that loads, by the protocol's name."""
    if told.refused is not None or told.vitdet is not None:
        return {}
    known = ((name, protocol.plan) for name, (_, protocol) in protocols().items())
    return {name: list(plan(found.vit, found.info)) for name, plan in known if plan is not None}


def _show_user_code(location: Path, as_json: bool) -> None:
    from mimbench.backbones.user_encoder import about, load_user_encoder
    from mimbench.jobs.cli.commands import print_json

    told = about(load_user_encoder(location))
    if as_json:
        print_json(told)
        return
    weights = "" if told["weights"] is None else f", {told['weights']:,} weights"
    takers = (
        "all protocols: it is one of mimbench's encoders" if told["ours"] else "k-NN, linear, fast linear and few-shot"
    )
    print(f"{told['code']}: user code, a {told['type']}")
    print(f"  file      {told['file']}")
    print(f"  hash      {told['hash'][:16]} (of this file and the function, not of what it imports or reads)")
    print(f"  encoder   patches of {told['patch']} pixels, features {told['width']} wide{weights}")
    print(f"  images    mean {told['mean']}, standard deviation {told['std']}: {told['statistics']}")
    print(f"  tried on  2 images of {told['tried_on']} pixels: pooled feature and grid as they must be, and finite")
    print(f"  taken by  {takers}")

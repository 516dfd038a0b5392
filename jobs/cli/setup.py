"""The panel "Setup": check this machine and free disk space.

Each command imports what it needs when it is called, so that `mimbench --help` is fast.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mimbench.jobs.cli.names import recipe_names
from mimbench.jobs.cli.options import Json, Overrides, Yes, agreed
from mimbench.jobs.cli.panels import Panel

SETUP = Panel("Setup")


@SETUP.command("mimbench doctor --data imagenet")
def doctor(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Also time whether the images of this data set load as fast as a model trains."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(autocompletion=recipe_names, help="The pretraining recipe to time it with.")
    ] = "pretrain/crossmae_vitb_800ep",
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Test a cluster instead, with a probe job of one minute.")
    ] = None,
    json: Json = False,
) -> None:
    """Check this machine and report what is missing."""
    if cluster is not None:
        from mimbench.jobs.cli.cluster import probe

        raise typer.Exit(probe(cluster, json))
    from mimbench.jobs.local import doctor as examination

    timed = examination.pace(data, recipe, overrides or []) if data else None
    raise typer.Exit(examination.show(json, timed))


@SETUP.command("mimbench gc --yes")
def gc(yes: Yes = False, json: Json = False) -> None:
    """Free disk space: remove files that no result needs.

    Removes checkpoints of finished runs, feature caches and old code. Results, logs and encoders are kept.
    """
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs import gc as clearing
    from mimbench.jobs.runs.store import runs_root

    root = runs_root()
    found = clearing.waste(root)
    if json:
        print_json([{"kind": one.kind, "path": str(one.path), "bytes": one.bytes} for one in found])
    else:
        print(clearing.render(found, root))
    if found and (yes or not json):
        agreed(f"remove {clearing.in_words(sum(one.bytes for one in found))}?", yes)
        print(f"freed {clearing.in_words(clearing.remove(found))}", file=sys.stderr)

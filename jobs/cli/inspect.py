"""`mimbench inspect FILE`: what a checkpoint is and what becomes of every key in it, without loading it.

Reads the names and shapes in the file, and the encoder's weights if they are at most 512 MiB (to see that they are
finite); an optimizer of gigabytes is not read. Exits with 1, after the report, where the file would not load.
"""

from __future__ import annotations

from pathlib import Path


def show(checkpoint: str, copy: str | None, as_json: bool, every_key: bool) -> None:
    """Print the report of `checkpoint`: a file, a `file://` URL or a pretraining's run directory.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: in one line, if it is not a checkpoint of a known family, or would not load.
    """
    from mimbench.backbones.checkpoints.report import as_json as plain
    from mimbench.backbones.weights import open_weights
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import encoder_file

    told = open_weights(encoder_file(Path(checkpoint)), copy=copy).report()
    if as_json:
        print_json(plain(told))
    else:
        from rich.console import Console

        from mimbench.backbones.checkpoints.report_text import render

        Console(highlight=False, soft_wrap=False).print(render(told, every_key))
    if told.refused is not None:
        raise ValueError(told.refused)

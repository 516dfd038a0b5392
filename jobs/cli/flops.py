"""`mimbench flops TASK`: the operations of a task's models for one image, counted in built models (`Task.flops`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mimbench.jobs.cli.commands import print_json
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.tasks import task_of


def show(stage: str, as_json: bool) -> None:
    """Print the table of a task's decoders: GFLOP of a forward pass on one image."""
    count = task_of(stage).flops
    assert count is not None
    rows: list[Any] = list(count())
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="forward pass, one image, GFLOP (a multiply-add is two operations)")
    for name in ("size", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("decoder", "MAE's", "mixing", "encoder", "all"):
        table.add_column(name, justify="right", no_wrap=True)
    mae = None
    for row in rows:
        mae = row if mae is None or row.size != mae.size else mae  # the first of each size
        less = f"{mae.decoder / row.decoder:.1f}x" if row is not mae else ""
        decoder, mixing, encoder, total = (
            f"{count / 1e9:.2f}" if count else "" for count in (row.decoder, row.mixing, row.encoder, row.total)
        )
        table.add_row(f"ViT-{row.size}", row.name, decoder, less, mixing, encoder, total)
    Console().print(table)


def show_modules(stage: str, recipe: str, depth: int, as_json: bool) -> None:
    """Print the operations of each module of a recipe's model: fvcore's table, or operations by name as JSON.

    Raises:
        ValueError: if the recipe belongs to another task, or the model cannot be built without weights.
    """
    task, found = task_of(stage), find(recipe)
    if found.stage != task.name or task.module_flops is None:
        raise ValueError(f"{recipe} is not a recipe of {task.name}; `mimbench recipes` lists them")
    by_module, table = task.module_flops(found.build(), depth)
    if as_json:
        print_json(by_module)
    else:
        print(f"{recipe}: forward pass, one image; fvcore counts a multiply-add as one flop")
        print(table)

"""`mimbench flops TASK`: the operations of a task's models for one image, counted in built models (`Task.flops`)."""

from __future__ import annotations

from mimbench.engine.run.bar import working
from mimbench.jobs.cli.commands import print_json
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.tasks import task_of


def show(stage: str, as_json: bool) -> None:
    """Print the table of a task's operations for a forward pass on one image."""
    count = task_of(stage).flops
    assert count is not None
    with working("counting operations"):
        found = count()
    if as_json:
        print_json(found.numbers)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=found.title)
    for place, name in enumerate(found.heads):
        table.add_column(name, justify="left" if place < found.names else "right", no_wrap=True)
    for row in found.rows:
        table.add_row(*row)
    Console().print(table)


def show_modules(stage: str, recipe: str, depth: int, as_json: bool) -> None:
    """Print the operations of each module of a recipe's model: fvcore's table, or operations by name as JSON.

    Raises:
        ValueError: if the recipe belongs to another task, or the model cannot be built without weights.
    """
    task, found = task_of(stage), find(recipe)
    if found.stage != task.name or task.module_flops is None:
        raise ValueError(f"{recipe} is not a recipe of {task.name}; `mimbench recipes` lists them")
    with working(f"counting the operations of {recipe}"):
        by_module, table = task.module_flops(found.build(), depth)
    if as_json:
        print_json(by_module)
    else:
        print(f"{recipe}: forward pass, one image; fvcore counts a multiply-add as one flop")
        print(table)

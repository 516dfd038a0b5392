"""What a run would cost, in hours of one A100, before it is run.

What the recipe states (`engine.run.cost.costs`) goes first; else the estimate of the recipe's task. An answer says
where it comes from. For planning: another GPU, slow input or a small batch changes it by a factor. Starts without
torch.
"""

from __future__ import annotations

from typing import Any

from mimbench.engine.run.cost import Cost, stated
from mimbench.jobs.runs.tasks import task_of_config


def cost_of(config: Any, recipe: Any = None) -> Cost | None:
    """Return what a run of `config` costs; None where nothing is known to go by.

    Args:
        config: resolved.
        recipe: the recipe's function, where `config` is what it returns; what it states of its cost then counts.
    """
    said = stated(recipe) if recipe is not None else None
    if said is not None:
        return said.cost
    task = task_of_config(config)
    return task.cost(config) if task is not None and task.cost is not None else None

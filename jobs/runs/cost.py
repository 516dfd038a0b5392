"""What a run would cost, in hours of one A100, before it is run.

The cost stated by the recipe (`engine.run.cost.costs`) is used if present, else the estimate of its task. Each cost
names its source. For planning only: another GPU, slow input or a small batch changes it by a factor. Does not import
torch.
"""

from __future__ import annotations

from typing import Any

from mimbench.engine.run.cost import Cost, stated
from mimbench.jobs.runs.tasks import task_of_config


def cost_of(config: Any, recipe: Any = None) -> Cost | None:
    """Return the cost of a run of `config`; None if neither the recipe nor the task knows it.

    Args:
        config: resolved.
        recipe: the recipe's function, if `config` is its unchanged result; its stated cost is then used.
    """
    said = stated(recipe) if recipe is not None else None
    if said is not None:
        return said.cost
    task = task_of_config(config)
    return task.cost(config) if task is not None and task.cost is not None else None

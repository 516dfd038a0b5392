"""`mimbench lazyconfig RECIPE [KEY=VALUE]... -o FILE`: a detection recipe for detectron2's own training script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mimbench.engine.run.bar import working
from mimbench.jobs.runs.store import encoder_file, resolve
from mimbench.jobs.runs.tasks import task_of, tasks


def write(recipe: str, overrides: Sequence[str], out: Path) -> None:
    """Write the LazyConfig and the weights it starts from, and print the command that runs it.

    Raises:
        ValueError: if the recipe is not a detection recipe, detectron2 cannot train it, or FILE does not end in .py.
        OSError: if a file exists or cannot be written.
    """
    found, config = resolve(recipe, overrides)
    write_lazyconfig = task_of(found.stage).lazyconfig
    if write_lazyconfig is None:
        able = " or ".join(f"{name}/" for name, task in tasks().items() if task.lazyconfig)
        raise ValueError(
            f"{recipe} does not train a detector; choose a recipe that begins with {able} (`mimbench recipes`)"
        )
    if out.suffix != ".py":
        raise ValueError(f"-o {out} does not end in .py; a LazyConfig is a Python file, so end its name in .py")
    for file in (out, out.with_suffix(".pth")):
        if file.exists():
            raise FileExistsError(f"{file} already exists; remove it, or choose another file with -o")
    if config.checkpoint is not None:
        config = replace(config, checkpoint=str(encoder_file(Path(config.checkpoint))))
    with working(f"writing {out}"):
        write_lazyconfig(config, out)
    print(f"wrote {out} and the weights it starts from, {out.with_suffix('.pth')}")
    print(f"  python tools/lazyconfig_train_net.py --config-file {out} --num-gpus N   # in detectron2's checkout")

"""`mimbench lazyconfig RECIPE [KEY=VALUE]... -o FILE`: a detection recipe for detectron2's own training script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(recipe: str, overrides: Sequence[str], out: Path) -> None:
    """Write the LazyConfig and the weights it starts from, and say how they are run.

    Raises:
        ValueError: if the recipe is not a detection's, or detectron2 cannot train it as it is, or FILE is not a .py.
        OSError: if a file exists or cannot be written.
    """
    from mimbench.jobs.runs.store import encoder_file, resolve

    config = resolve(recipe, overrides)[1]
    from dataclasses import replace

    from mimbench.det.config import MaskRCNN
    from mimbench.det.data.coco import read_split
    from mimbench.det.data.splits import same_categories
    from mimbench.det.detectron2.run import write_lazyconfig
    from mimbench.det.model.build import build_detector
    from mimbench.engine.data.datasets import locate, require

    if not isinstance(config, MaskRCNN):
        raise ValueError(f"{recipe} does not train a detector; name a recipe of `mimbench recipes` that begins det/")
    if out.suffix != ".py":
        raise ValueError(f"-o {out}: a LazyConfig is a Python file, and must end in .py")
    for file in (out, out.with_suffix(".pth")):
        if file.exists():
            raise FileExistsError(f"{file} exists; remove it, or name another file with -o")
    if config.checkpoint is not None:
        config = replace(config, checkpoint=str(encoder_file(Path(config.checkpoint))))
    directory, masks = locate(config.data), config.heads.masks
    train, val = (
        read_split(directory, split, config.single_class, masks=masks, benchmark=config.benchmark)
        for split in ("train", "val")
    )
    require(same_categories(train, val))
    seen = train.images_showing().tolist()
    model, _ = build_detector(config, len(seen), seen)
    write_lazyconfig(config, model, (train, val), out, out.with_suffix(""), "cuda")
    print(f"{out}, and the weights it starts from, {out.with_suffix('.pth')}")
    print(f"  python tools/lazyconfig_train_net.py --config-file {out} --num-gpus N   # in detectron2's checkout")

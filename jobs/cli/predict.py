"""`mimbench predict RUN|CKPT IMAGES...`: what a detector finds, drawn into each image and written in COCO's form.

Writes NAME.png for each image and results.json, a list of COCO results whose `image_id` is the image's place among the
files named, from 0, to the output directory. Pictures are drawn where there is nothing to be found, too.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.commands import print_json
from mimbench.jobs.runs.control import path_of
from mimbench.jobs.runs.store import runs_root

if TYPE_CHECKING:
    from mimbench.det.evaluation.predict import Detector


def predict(source: str, images: Sequence[Path], out: Path, score: float, as_json: bool) -> int:
    """Detect, draw and say what was found; the exit code, 1 if a file is no image, which keeps no other from its turn.

    Raises:
        FileNotFoundError: for a detector or an image that is not there.
        ValueError: for what is no detector, and where nothing is named as an image.
    """
    from mimbench.engine.data.datasets import UnfitError
    from mimbench.engine.run.config import Compute
    from mimbench.engine.run.process import setup_process

    files = _files(images)
    detector = _detector(source)
    from mimbench.det.evaluation.draw import detected, draw_objects

    device = setup_process(Compute(), seed=0)
    names = _names(files)
    out.mkdir(parents=True, exist_ok=True)
    found, listing, code = [], [], 0
    for place, (seen, name) in enumerate(zip(detector.predict(files, device), names, strict=True)):
        if isinstance(seen, UnfitError):
            print(f"error: {seen}", file=sys.stderr)
            code = 1
            continue
        objects = detected(seen.results, detector.category_ids, detector.categories, score)
        draw_objects(seen.image.permute(1, 2, 0).numpy(), objects, out / name)
        found += seen.results
        listing.append({"image_id": place, "file": str(seen.file), "picture": str(out / name), "drawn": len(objects)})
        if not as_json:
            print(f"{seen.file}: {', '.join(drawn.text for drawn in objects) or 'nothing'}")
    write_json(out / "results.json", found)
    if as_json:
        print_json({"images": listing, "results": found})
    else:
        print(f"pictures and results.json: {out}", file=sys.stderr)
    return code


def _detector(source: str) -> Detector:
    from mimbench.det.evaluation.predict import from_file, from_run

    path = path_of(source, runs_root())
    return from_run(RunDir(path)) if path.is_dir() else from_file(path)


def _files(given: Sequence[Path]) -> list[Path]:
    """The images among `given`, and in directories among them."""
    from mimbench.engine.data.folders import SUFFIXES

    inside = (
        sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        for path in given
    )  # fmt: skip
    files = [file for some in inside for file in some]
    if not files:
        raise ValueError(
            f"there are no images in {', '.join(map(str, given))}; they end in {', '.join(sorted(SUFFIXES))}"
        )
    return files


def _names(files: Sequence[Path]) -> list[str]:
    """A name for the picture of each: its own, numbered where it is taken."""
    names: dict[str, None] = {}
    for file in files:
        numbered = (f"{file.stem}-{number}.png" for number in itertools.count(2))
        names[next(name for name in itertools.chain([f"{file.stem}.png"], numbered) if name not in names)] = None
    return list(names)

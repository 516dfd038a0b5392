"""`mimbench predict RUN|CKPT IMAGES...`: draw a detector's detections into each image and write them in COCO's form.

Writes NAME.png for each image and results.json, a list of COCO results whose `image_id` is the image's index among
the named files, from 0, to the output directory. An image without detections gets a picture too.

Only files of an earlier `mimbench predict` are replaced. If any other file, such as an input image, already has the
name of a picture, the picture gets a number.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.bar import working
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.task import DRAWN_BY, Predictor
from mimbench.jobs.cli.commands import print_json
from mimbench.jobs.runs.run_names import path_of
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.runs.tasks import tasks

RESULTS = "results.json"


def predict(source: str, images: Sequence[Path], out: Path, score: float, as_json: bool) -> int:
    """Detect, draw and print the detections; return the exit code: 1 if a file is not an image (the others still run).

    Raises:
        FileNotFoundError: if the detector or an image does not exist.
        ValueError: if `source` is not a detector, or `images` contains no images.
    """
    from mimbench.engine.run.config import Compute

    files, path = _files(images), path_of(source, runs_root())
    with working(f"reading {path.name}"):
        from mimbench.engine.run.process import setup_process

        predictor = _predictor(path)
        device = setup_process(Compute(), seed=0)
    names = _names(files, out)
    _require_free(out / RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    found, listing, code = [], [], 0
    for place, (seen, name) in enumerate(zip(predictor(files, device, score), names, strict=True)):
        if isinstance(seen, Exception):
            print(f"error: {seen}", file=sys.stderr)
            code = 1
            continue
        seen.draw(out / name)
        found += seen.results
        listing.append({"image_id": place, "file": str(seen.file), "picture": str(out / name), "drawn": seen.drawn})
        if not as_json:
            print(f"{seen.file}: {seen.text}")
    write_json(out / RESULTS, found)
    if as_json:
        print_json({"images": listing, "results": found})
    else:
        print(f"pictures and results.json: {out}", file=sys.stderr)
    return code


def _predictor(path: Path) -> Predictor:
    """Return the predictor of the task that made a run directory, or of the first task that reads a file.

    Raises:
        ValueError: if no task with predictions made it or reads it.
    """
    able = {name: task.predict for name, task in tasks().items() if task.predict is not None}
    if not path.is_dir():
        return _first_that_reads(path, list(able.values()))
    about = RunDir(path).read_about()
    if about["stage"] not in able:
        raise ValueError(
            f"{path} is a {about['stage']} run ({about['recipe']}), which predicts nothing to draw; name a run of "
            f"{' or '.join(able)}"
        )
    return able[about["stage"]](path)


def _first_that_reads(file: Path, able: Sequence[Callable[[Path], Predictor]]) -> Predictor:
    *others, last = able
    for read in others:
        with suppress(ValueError):
            return read(file)
    return last(file)


def _files(given: Sequence[Path]) -> list[Path]:
    """Return the image files in `given` and in its directories."""
    from mimbench.engine.data.folders import SUFFIXES

    inside = (
        sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        for path in given
    )  # fmt: skip
    files = [file for some in inside for file in some]
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, given))}; image files end in {', '.join(sorted(SUFFIXES))}")
    return files


def _names(files: Sequence[Path], out: Path) -> list[str]:
    """Return a picture's name for each file, numbered if another picture or a file in `out` has that name."""
    names: dict[str, None] = {}
    for file in files:
        numbered = (f"{file.stem}-{number}.png" for number in itertools.count(2))
        choices = itertools.chain([f"{file.stem}.png"], numbered)
        names[next(name for name in choices if name not in names and _is_free(out / name))] = None
    return list(names)


def _is_free(path: Path) -> bool:
    """Return whether `path` does not exist or is a picture written by this command."""
    if not path.is_file():
        return not path.exists()
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == DRAWN_BY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _require_free(path: Path) -> None:
    """Check that `path` does not exist or holds results in the form that this command writes.

    Raises:
        FileExistsError: if it holds anything else.
    """
    if not path.exists():
        return
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, list) or not all(isinstance(one, dict) and "image_id" in one for one in content):
        raise FileExistsError(
            f"{path} exists and was not written by `mimbench predict`; choose another directory with --output"
        )

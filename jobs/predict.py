"""`mimbench predict RUN|CKPT IMAGES...`: what a detector finds, drawn into each image and written in COCO's form.

Writes NAME.png for each image and results.json, a list of COCO results whose `image_id` is the image's place in `files`
of the same order, to the output directory. Pictures are drawn where there is nothing to be found, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.config import SIZES
from engine.atomic import write_json
from engine.rundir import RunDir
from jobs.commands import print_json
from jobs.evaluate import PUBLISHED
from jobs.recipes import find
from jobs.store import encoder_file

if TYPE_CHECKING:
    from backbones.config import ViT
    from det.predict import Detector


def predict(source: str, images: Sequence[Path], out: Path, score: float, recipe: str | None, as_json: bool) -> None:
    """Detect, draw and say what was found.

    Raises:
        FileNotFoundError: for a detector or an image that is not there.
        ValueError: for what is no detector, and for files that are no images.
    """
    from engine.config import Compute
    from engine.process import setup_process

    files = _files(images)
    detector = _detector(source, recipe)
    from det.draw import detected, draw_objects

    device = setup_process(Compute(), seed=0)
    names = _names(files)
    out.mkdir(parents=True, exist_ok=True)
    found, listing = [], []
    for seen, name in zip(detector.predict(files, device), names, strict=True):
        objects = detected(seen.results, detector.category_ids, detector.categories, score)
        draw_objects(seen.image.permute(1, 2, 0).numpy(), objects, out / name)
        found += seen.results
        listing.append({"file": str(seen.file), "picture": str(out / name), "drawn": len(objects)})
        if not as_json:
            print(f"{seen.file}: {', '.join(drawn.text for drawn in objects) or 'nothing'}")
    write_json(out / "results.json", found)
    if as_json:
        print_json({"images": listing, "results": found})
    else:
        print(f"pictures and results.json: {out}", file=sys.stderr)


def _detector(source: str, recipe: str | None) -> Detector:
    path = Path(source).expanduser()
    if path.is_dir():
        from det.predict import from_run

        return from_run(RunDir(path))
    file = encoder_file(path)
    from backbones.checkpoints.match import match
    from backbones.checkpoints.opening import open_checkpoint
    from det.predict import from_file

    encoder = match(open_checkpoint(file)).vit
    return from_file(str(file), find(recipe or _recipe(str(file), encoder)).build())


def _recipe(file: str, encoder: ViT) -> str:
    """The published recipe for a detector on an encoder of this shape."""
    for letter, vit in SIZES.items():
        if (vit.width, vit.depth) == (encoder.width, encoder.depth) and letter in PUBLISHED["coco"]:
            return PUBLISHED["coco"][letter]
    raise ValueError(
        f"{file}: no published detector has an encoder {encoder.width} wide and {encoder.depth} deep; name the recipe "
        "it was trained with: --recipe det/NAME"
    )


def _files(given: Sequence[Path]) -> list[Path]:
    """The images among `given`, and in directories among them."""
    from engine.folders import SUFFIXES

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
    """A name for the picture of each: its own, numbered where two have the same."""
    taken: dict[str, int] = {}
    names = []
    for file in files:
        taken[file.stem] = taken.get(file.stem, 0) + 1
        number = taken[file.stem]
        names.append(f"{file.stem}.png" if number == 1 else f"{file.stem}-{number}.png")
    return names

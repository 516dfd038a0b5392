"""Run a trained detector on image files.

    detector = from_run(RunDir(...))                 # a finished or unfinished detection run
    detector = from_file("model_final.pth")          # a whole detector, detectron2's or mimbench's
    for seen in detector.predict([Path("a.jpg")], device): ...

Category ids and names are those of the training data. detectron2's files do not store them: 80 categories are assumed
to be COCO's, and others are numbered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.augment import fitted, render
from mimbench.det.data.batches import padded
from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.draw import detected, draw_objects
from mimbench.det.evaluation.evaluate import coco_results
from mimbench.det.evaluation.results import Result
from mimbench.det.model.as_stored import as_stored
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import open_detector
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.model.test_time_augmentation import detections
from mimbench.engine.data.batches import move
from mimbench.engine.data.datasets import UnfitError, locate
from mimbench.engine.data.images import read_image
from mimbench.engine.run.bar import track
from mimbench.engine.run.config import from_text
from mimbench.engine.run.precision import evaluating_in
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.task import Predicted, Predictor
from mimbench.engine.training.state import load_state, newest_valid

COCO_CLASSES = 80


@dataclass(frozen=True)
class Seen:
    """An image, uint8 (3, H, W), and its detections, best first; `image_id` is its number in the list of files."""

    file: Path
    image: Tensor
    results: list[Result]


@dataclass(frozen=True)
class Detector:
    """A model in eval mode with its config and categories."""

    model: MaskRCNN
    config: MaskRCNNConfig
    category_ids: tuple[int, ...]
    categories: tuple[str, ...]

    @torch.no_grad()
    def predict(self, files: Sequence[Path], device: torch.device) -> Iterator[Seen | UnfitError]:
        """Yield the detections of each image, or the error of a file that is not an image.

        Raises:
            FileNotFoundError: if a file does not exist; raised before the first prediction.
        """
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; name image files or directories of images")
        model = self.model.to(device).eval()
        for number, file in enumerate(track(files, "detecting", len(files))):
            try:
                image = read_image(file, upright=True)
            except UnfitError as error:
                yield error
                continue
            size = (image.shape[1], image.shape[2])
            images, sizes = padded([render(image, fitted(size, self.config.image))])
            with evaluating_in(self.config.evaluate_precision, device):
                (found,) = detections(model, move(images, device), sizes, [size], self.config.test_time_augmentation)
            yield Seen(file, image, coco_results(found, number, self.category_ids, size))


def predictor(source: Path) -> Predictor:
    """Return what `mimbench predict` calls for the detector in a run directory or a file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as `from_run` and `from_file`.
    """
    detector = from_run(RunDir(source)) if source.is_dir() else from_file(source)

    def predict(files: Sequence[Path], device: torch.device, score: float) -> Iterator[Predicted | Exception]:
        for seen in detector.predict(files, device):
            yield seen if isinstance(seen, UnfitError) else _predicted(detector, seen, score)

    return predict


def _predicted(detector: Detector, seen: Seen, score: float) -> Predicted:
    objects = detected(seen.results, detector.category_ids, detector.categories, score)
    text = ", ".join(drawn.text for drawn in objects) or "nothing"
    draw = partial(draw_objects, seen.image.permute(1, 2, 0).numpy(), objects)
    return Predicted(seen.file, seen.results, text, len(objects), draw)


def from_run(run: RunDir) -> Detector:
    """Return the detector of a detection run, from its result or its newest checkpoint.

    Raises:
        ValueError: if it is another kind of run, or has no checkpoint yet.
    """
    about = run.read_about()
    if about["stage"] != "det":
        raise ValueError(
            f"{run.path} is a {about['stage']} run ({about['recipe']}), not a detection run; name a detection run"
        )
    if run.detector.is_file():
        return from_file(run.detector)
    config = from_text(MaskRCNNConfig, run.config.read_text(encoding="utf-8"), str(run.config))
    if not config.steps:
        config = as_stored(config, about["recipe"]).config
    newest = newest_valid(run.checkpoints)
    if newest is None and config.steps:
        raise ValueError(f"{run.path} has no checkpoint (it is {run.state()}); `mimbench run {run.path}` continues it")
    of = read_split(
        locate(config.data), "train", config.single_class, masks=config.heads.masks, benchmark=config.benchmark
    )
    model, _ = build_detector(config, len(of.categories), of.images_showing().tolist())
    if newest is not None:  # with steps=0 the run's checkpoint is the detector
        model.load_state_dict(load_state(newest)["stepper"]["model"])
    return Detector(model, config, of.category_ids, of.categories)


def from_file(file: str | Path) -> Detector:
    """Return the detector in a file of weights; `det.model.detector_config` has the defaults for missing settings.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds only an encoder, or an unsupported detector.
    """
    opened = open_detector(file)
    about = opened.about
    ids, names = about.category_ids, about.categories
    if not names:
        ids, names = _coco_names() if len(ids) == COCO_CLASSES else _numbered(len(ids))
    return Detector(opened.model, about.config, ids, names)


def _coco_names() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return COCO's 80 ids, which have gaps, and names."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    known = {identity: name for identity, name in listed if name not in ("__background__", "N/A")}
    return tuple(known), tuple(known.values())


def _numbered(classes: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    ids = tuple(range(1, classes + 1))
    return ids, tuple(f"category {identity}" for identity in ids)

"""What a trained detector finds in any images.

    detector = from_run(RunDir(...))                       # a finished or half-finished detection run
    detector = from_file("model_final.pth", config)        # a whole detector, detectron2's or ours
    for seen in detector.predict([Path("a.jpg")], device): ...

Category ids and names of a run are those of its data; a file has none, so 80 categories are taken for COCO's and others
are numbered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.checkpoints.detector import detector_in
from det.augment import fitted, render
from det.batches import padded
from det.build import build_detector
from det.coco import read_split
from det.config import MaskRCNN as Config
from det.evaluate import Result, coco_results
from det.mask_rcnn import MaskRCNN
from engine.bar import track
from engine.checkpoint import load_state, newest_valid
from engine.config import from_text
from engine.data import move
from engine.datasets import locate
from engine.images import read_image
from engine.rundir import RunDir

COCO_CLASSES = 80


@dataclass(frozen=True)
class Seen:
    """An image, uint8 (3, H, W), and what was found in it, best first; `image_id` is its number among those asked."""

    file: Path
    image: Tensor
    results: list[Result]


@dataclass(frozen=True)
class Detector:
    """A model in eval mode and what it takes to use it."""

    model: MaskRCNN
    image: int  # side of the square that images are fitted into
    category_ids: tuple[int, ...]
    categories: tuple[str, ...]

    @torch.no_grad()
    def predict(self, files: Sequence[Path], device: torch.device) -> Iterator[Seen]:
        """One image after another.

        Raises:
            FileNotFoundError: naming a file that is not there; before anything is predicted.
            UnfitError: (a ValueError) naming a file that is no image.
        """
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; name image files, or directories that hold some")
        model = self.model.to(device).eval()
        for number, file in enumerate(track(files, "detecting", len(files))):
            image = read_image(file, upright=True)
            size = (image.shape[1], image.shape[2])
            images, sizes = padded([render(image, fitted(size, self.image))])
            (found,) = model.detect(move(images, device), sizes)
            yield Seen(file, image, coco_results(found.rescaled(sizes[0], size), number, self.category_ids, size))


def from_run(run: RunDir) -> Detector:
    """The detector of a detection run, with the weights of its newest checkpoint.

    Raises:
        ValueError: if it is another kind of run, or has saved nothing yet.
    """
    about = run.read_about()
    if about["stage"] != "det":
        raise ValueError(f"{run.path} is a {about['stage']} run ({about['recipe']}); a detection run finds objects")
    config = from_text(Config, run.config.read_text(encoding="utf-8"), str(run.config))
    newest = newest_valid(run.checkpoints)
    if newest is None:
        raise ValueError(
            f"{run.path} has no checkpoint (it is {run.state()}); `mimbench run {run.path}` goes on with it"
        )
    ids, names = _categories(run, config)
    state = load_state(newest)["stepper"]["model"]
    model, _ = build_detector(config, len(ids), [1] * len(ids))  # for the mean and deviation of its encoder's images
    model.load_state_dict(state)
    return Detector(model, config.image, ids, names)


def _categories(run: RunDir, config: Config) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """As the finished run wrote them down, or else as its data has them."""
    file = run.path / "categories.json"
    if file.is_file():
        listed: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return tuple(one["id"] for one in listed), tuple(one["name"] for one in listed)
    split = read_split(
        locate(config.data), "val", config.single_class, masks=config.heads.masks, benchmark=config.benchmark
    )
    return split.category_ids, split.categories


def from_file(file: str, config: Config) -> Detector:
    """The detector in a file of weights. `config`, of a recipe for its size, says what the file does not.

    That is windows, image size and thresholds; masks, a cascade and the number of categories are the file's.

    Raises:
        ValueError: if the file holds an encoder alone, or another detector than `config` describes.
    """
    weights = detector_in(file)
    if weights is None:
        raise ValueError(
            f"{file} holds an encoder, not a detector; `mimbench evaluate {file} --on coco` trains one on it"
        )
    config = replace(config, checkpoint=file, heads=_heads_in(weights, config))
    classes = _classes_in(weights)
    model, _ = build_detector(config, classes, [1] * classes)
    ids, names = _coco_names() if classes == COCO_CLASSES else _numbered(classes)
    return Detector(model, config.image, ids, names)


def _heads_in(weights: Mapping[str, Tensor], config: Config) -> Any:
    """The heads of `config`, with masks and a cascade if the weights have them."""
    masks = any(key.startswith("roi_heads.mask_head.") for key in weights)
    cascade = any(key.startswith("roi_heads.box_predictor.0.") for key in weights)
    return replace(config.heads, masks=masks, cascade=cascade)


def _classes_in(weights: Mapping[str, Tensor]) -> int:
    for key in ("roi_heads.box_predictor.cls_score.bias", "roi_heads.box_predictor.0.cls_score.bias"):
        if key in weights:
            return len(weights[key]) - 1
    raise ValueError("the detector has no roi_heads.box_predictor.cls_score.bias, which tells its categories")


def _coco_names() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """COCO's 80 ids, which have gaps, and names."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    listed = enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    known = {identity: name for identity, name in listed if name not in ("__background__", "N/A")}
    return tuple(known), tuple(known.values())


def _numbered(classes: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    ids = tuple(range(1, classes + 1))
    return ids, tuple(f"category {identity}" for identity in ids)

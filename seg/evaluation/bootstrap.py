"""How sure is a segmentation's mIoU? Percentile intervals over resampled validation images: `mimbench intervals RUN`.

    intervals(run, 200)    # ({"miou": Spread(48.1, 46.9, 49.2)}, 2000) of a run with save_predictions=true

Every saved prediction is compared with its label map once; a draw adds the images' counts of pixels as often as each
image is drawn, so each draw is the mIoU of that set of images exactly.
"""

# I image, K class, N draw

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.engine.data.datasets import locate
from mimbench.engine.run.bar import track
from mimbench.engine.run.config import from_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.run.task import Spread
from mimbench.seg.config import LinearSegmentationConfig, UPerNetConfig
from mimbench.seg.data.pixels import look_up
from mimbench.seg.data.split import LabelledSplit, open_split
from mimbench.seg.evaluation.metric import IGNORED

Counts = NDArray[np.float64]  # (3, I, K): pixels of the class that are right, predicted, and labelled
NEAR = 0.005  # in mIoU: the recorded number and that of the predictions are equal but for rounding
LEVEL = 0.95


def intervals(run: RunDir, draws: int) -> tuple[dict[str, Spread], int]:
    """Return the interval of the run's mIoU by the metric's name, and the number of validation images.

    Raises:
        ValueError: in one line, if the run saved no predictions, or its recorded mIoU is not that of the predictions.
    """
    folder, result = run.path / "predictions", run.read_result()
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (UPerNetConfig, LinearSegmentationConfig)}
    kind = kinds.get(run.read_about()["config"])
    if result is None or kind is None or not folder.is_dir():
        raise ValueError(
            f"{run.path.name} has no predictions; a finished run of UperNet or a linear head with "
            f"save_predictions=true has them"
        )
    config = from_text(kind, run.config.read_text(encoding="utf-8"), str(run.config))
    split = open_split(locate(config.data), "val", background=config.background)
    counted = counts(split, run)
    value = float(miou(counted.sum(1)[None])[0])
    name = next((key for key, own in result["metrics"].items() if key.endswith("miou") and abs(own - value) < NEAR), "")
    if not name:
        raise ValueError(
            f"{run.path.name}: its predictions have mIoU {value:.2f} on {config.data}, which is none of its metrics; "
            f"the data changed since"
        )
    return {name: spread(counted, draws)}, len(split)


def predictions(split: LabelledSplit, folder: Path) -> list[Path]:
    """Return the file of each image's prediction. Earlier runs have all in one folder, if their names differ."""
    files = [folder / split.prediction_name(index) for index in range(len(split))]
    flat = [folder / file.name for file in files]
    earlier = len(set(flat)) == len(flat) and not any(file.is_file() for file in files)
    return flat if earlier else files


def counts(split: LabelledSplit, run: RunDir) -> Counts:
    """Return the counted pixels of all images of `split` in the run's predictions.

    Raises:
        ValueError: naming a prediction that is missing or has another size.
    """
    found = np.zeros((3, len(split), len(split.classes)))
    files = predictions(split, run.path / "predictions")
    for index in track(range(len(split)), "counting pixels", len(split)):
        file = files[index]
        if not file.is_file():
            raise ValueError(f"{file} is missing: the run predicted other images, or was changed")
        labels = split.labels(index)
        predicted = look_up(np.asarray(Image.open(io.BytesIO(file.read_bytes()))), split.table())
        if predicted.shape != labels.shape:
            raise ValueError(f"{file} has shape {predicted.shape}, its label map {labels.shape}")
        known = labels != IGNORED
        labels, predicted = labels[known], predicted[known]
        for place, values in enumerate((labels[labels == predicted], predicted, labels)):
            found[place, index] = np.bincount(values, minlength=len(split.classes))[: len(split.classes)]
    return found


def miou(counts_N3K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mIoU in percent of each of N sets of counts (right, predicted, labelled), without absent classes."""
    right, predicted, labelled = counts_N3K.swapaxes(0, 1)
    union = predicted + labelled - right
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = 100 * np.nanmean(right / union, axis=1)
    return found


def spread(counted: Counts, draws: int, seed: int = 0) -> Spread:
    """Return mIoU in percent, and its percentile interval over `draws` resamplings of the images."""
    images = counted.shape[1]
    generator = np.random.default_rng(seed)
    times_NI = np.stack(
        [np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(draws)]
    ).astype(np.float64)
    drawn = miou(np.stack([times_NI @ part for part in counted], axis=1))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(float(miou(counted.sum(1)[None])[0]), float(low), float(high))

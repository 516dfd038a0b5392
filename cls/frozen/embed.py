"""Write an encoder's features of images to a file: `mimbench embed CHECKPOINT DATA -o features.safetensors`.

    features.safetensors    features (N, D) float32 (or float16), label (N,) int64 (only for data with classes);
                            metadata "mimbench_features": JSON with encoder, data, names of images and classes

The features are those that `cls/knn` evaluates: of the centre crop, after the final norm, or standardised if the
encoder has none. The images are in the order of their names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.weights import open_weights
from mimbench.cls.config import Knn
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.cls.frozen.features import features_of
from mimbench.engine.data.datasets import locate, unfit
from mimbench.engine.data.folders import Paths, image_files, is_image
from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import setup_process
from mimbench.engine.run.task import Embedding

METADATA = "mimbench_features"
USUAL_IMAGE = 224  # pixels, for a user's encoder, whose pretraining is unknown

# N image, D width


class Pictures(ImageFolder):
    """The images of a directory without classes, at any depth, in the order of their names; every label is -1."""

    def __init__(self, root: Path) -> None:
        names = sorted(image_files(root, ""))
        if not names:
            raise unfit(root, "holds no images", "name a data set, or a directory with images")
        self.root, self.split, self.decoder = root, "val", "torchvision"
        self.paths, self.labels, self.classes = Paths(root, names), torch.full((len(names),), -1), []
        self.splitless, self.layout, self._made = True, "images", {}
        self._faults = {}
        self.pixels = None


def embed(asked: Embedding) -> dict[str, Any]:
    """Write the features and return what was written: images, width, feature, bytes.

    Raises:
        FileNotFoundError: if the data or the checkpoint does not exist.
        ValueError: if the checkpoint is no encoder, the data holds no images, or a feature is not finite in the file.
        OSError: if the file cannot be written.
    """
    folder = _folder(asked)
    code = user_code(asked.checkpoint) is not None
    side = asked.image or (USUAL_IMAGE if code else open_weights(asked.checkpoint).vit.image)
    pool: Any = asked.pool
    compute = Compute()
    config = Knn(data=asked.data, checkpoint=str(asked.checkpoint), image=side, pool=pool, compute=compute)
    encoder = frozen_encoder(config, setup_process(compute, config.seed))
    features_ND, label_N = features_of(encoder, folder, side, config.eval_crop, compute.workers)
    tensors = {"features": features_ND.to("cpu", torch.float16 if asked.half else torch.float32).contiguous()}
    _require_finite(tensors["features"], folder, asked)
    if folder.classes:
        tensors["label"] = label_N.cpu().long()
    feature = encoder.describe(encoder.source.pool, encoder.source.norm)
    about = {
        "schema": 1,
        "checkpoint": str(asked.checkpoint),
        "data": asked.data,
        "split": asked.split if folder.classes else None,
        "image": side,
        "feature": feature,
        "encoder": encoder.facts(config),
        "names": [_name(folder, place) for place in range(len(folder))],
        "classes": list(folder.classes),
    }
    _write(asked.output, tensors, about)
    width = features_ND.shape[1]
    return {"images": len(folder), "width": width, "feature": feature, "image": side, "file": str(asked.output)}


def _folder(asked: Embedding) -> ImageFolder:
    """Return the split of a data set; or all images of a directory that has some beside its folders, or no others."""
    root = locate(asked.data)
    if root.is_dir() and any(is_image(entry.name) for entry in root.iterdir()):
        return Pictures(root)
    try:
        return ImageFolder(root, asked.split, cache=False)
    except ValueError:
        if (root / "train").is_dir() or (root / "val").is_dir():
            raise  # a data set with a fault, which its message names
        return Pictures(root)


def _require_finite(features_ND: Tensor, folder: ImageFolder, asked: Embedding) -> None:
    """Raise ValueError naming the first image whose feature is NaN or infinite, in float32 or as float16."""
    if len(wrong := (~features_ND.isfinite()).any(1).nonzero()):
        way_out = "leave out --half" if asked.half else "the encoder's weights are broken, or it divides by zero"
        number = "NaN, infinite or above float16's maximum 65504" if asked.half else "NaN or infinite"
        name = _name(folder, int(wrong[0]))
        raise ValueError(f"{asked.checkpoint}: the feature of {name} is {number}, so no file is written: {way_out}")


def _name(folder: ImageFolder, place: int) -> str:
    return folder.paths.text(place).removeprefix(f"{folder.paths.root}/")


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    payload = save(tensors, {METADATA: json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda temporary: temporary.write_bytes(payload))

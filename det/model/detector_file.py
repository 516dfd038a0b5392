"""Write a trained detector to a file that mimbench and detectron2 can read, and open any ViTDet detector's file.

    save_detector(run.detector, model, config, split.category_ids, split.categories)
    detector = open_detector("model_final_61ccd1.pkl")          # a file of detectron2, or one written above
    detector.model.detect(images, sizes)

The file holds {"model": weights by detectron2's names, "detector": JSON}; `DetectionCheckpointer` loads all weights,
unless the JSON says why detectron2 cannot run the detector ("beyond_detectron2").
detectron2's files hold only weights (`det.model.detector_config`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mimbench.backbones.checkpoints.weight_sets import DETECTOR
from mimbench.backbones.vitdet import detectron2_reason
from mimbench.backbones.weights import open_weights
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.model.build import from_scratch
from mimbench.det.model.detector_config import Described, classes_of, config_of, described
from mimbench.det.model.load_weights import load_detector
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.config import to_text


@dataclass(frozen=True)
class Detector:
    """A detector loaded from a file."""

    model: MaskRCNN
    about: Described


def save_detector(
    file: Path, model: MaskRCNN, config: MaskRCNNConfig, category_ids: Sequence[int], categories: Sequence[str]
) -> None:
    """Write `model`, built from `config`, to `file` (.pth), atomically.

    Raises:
        OSError: if it cannot be written; an existing file is kept.
    """
    mean, std = ((value.flatten() / 255).tolist() for value in (model.pixel_mean, model.pixel_std))
    inside = replace(config.vitdet, patch=None, layer=None)  # the stored shape has both in it
    config = replace(config, checkpoint=None, encoder=model.backbone.net.vit, vitdet=inside)
    about: dict[str, Any] = {
        "config": to_text(config),
        "ids": list(category_ids),
        "names": list(categories),
        "mean": mean,
        "std": std,
    }
    net = model.backbone.net
    if not net.traits.mae_like:
        about |= {"traits": asdict(net.traits), "interpolation": net.interpolation}
    if (reason := _beyond_detectron2(config, model)) is not None:
        about["beyond_detectron2"] = reason
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    tree = {"model": weights, DETECTOR: json.dumps(about)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # a handle, because torch writes a path's name into the file
            torch.save(tree, handle)

    write_with(file, write)


def _beyond_detectron2(config: MaskRCNNConfig, model: MaskRCNN) -> str | None:
    """Return why detectron2 cannot run the detector, for `mimbench export --to detectron2`; None if it can."""
    settings = [f"proposals.norm={config.proposals.norm}"] if config.proposals.norm else []
    settings += config.vitdet.unlike_detectron2()
    if settings:
        return f"detectron2's detector cannot have {', '.join(settings)}; engine=mimbench runs it as it is"
    return detectron2_reason(model.backbone.net.traits)


def open_detector(path: str | Path) -> Detector:
    """Return the detector in the file at `path`, in eval mode on the CPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a whole ViTDet detector, or has unsupported sizes.
    """
    found = open_weights(path, "detector")
    if found.kind != "detector":
        raise ValueError(
            f"{path} is not a whole detector: it lacks a ViTDet backbone, proposal head, or box head; "
            f"`mimbench evaluate {path} --on coco` trains one on an encoder"
        )
    weights, about = found.tensors, described(found)
    if about is None:
        about = Described(config_of(weights, str(path)), tuple(range(classes_of(weights))), ())
    model = from_scratch(
        about.config,
        len(about.category_ids),
        about.config.encoder,
        mean=about.mean,
        std=about.std,
        traits=about.traits,
        interpolation=about.interpolation,
    )
    load_detector(model, weights, str(path))
    return Detector(model.eval(), about)

"""Detection for notebooks and scripts: backbones as modules, and COCO's metrics for any predictions.

    backbone = load_backbone("mae_vitb.pth", image=1024)
    maps = backbone(images)                              # {"p2": (B, 256, 256, 256), ..., "p6": (B, 256, 16, 16)}

    evaluate_coco("predictions.json", "annotations/instances_val2017.json")["box_ap"]

Models and metrics are those of `mimbench.det`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mimbench.backbones.weights import open_weights
from mimbench.det.config import MaskRCNNConfig, ViTDetConfig
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import open_detector
from mimbench.encoders import load_encoder
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.jobs.runs.store import encoder_file

CLASSES = 80  # of heads that are built with a backbone and discarded; the number does not matter


class Backbone(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, to a dictionary of maps (B, C, H / stride, W / stride).

    Attributes:
        body: the module that makes the maps.
        strides: stride of each map in pixels, by name.
        channels: channels of each map, by name.
        out_channels: the common number of channels, if all maps have the same; torchvision's detectors read it.
        mean, std: statistics of the images, as fractions of 255.
    """

    def __init__(
        self,
        body: nn.Module,
        strides: Mapping[str, int],
        channels: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.body, self.strides = body, dict(strides)
        self.channels, self.out_channels = dict.fromkeys(strides, channels), channels
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps by name, finest first.

        Raises:
            ValueError: if a side of the images is not a multiple of the stride of p5 (of last_feat, if kind="plain").
        """
        unit = self._unit()
        height, width = images.shape[-2:]
        if height % unit or width % unit:
            raise ValueError(
                f"images of {height} x {width} pixels do not fit the strides; pad both sides to multiples of {unit}"
            )
        maps = self._maps(images)
        return dict(zip(self.strides, maps, strict=True))

    def _unit(self) -> int:
        """Return the divisor of image sides: the coarsest stride, not counting the subsampled map."""
        strides = list(self.strides.values())
        return strides[-2] if len(strides) > 1 else strides[-1]

    def _maps(self, images: Tensor) -> list[Tensor]:
        made = self.body(images)
        return made if isinstance(made, list) else [made.grid.permute(0, 3, 1, 2)]


def load_backbone(
    checkpoint: str | Path,
    kind: Literal["vitdet", "plain"] = "vitdet",
    *,
    image: int = 1024,
    patch: int | None = None,
    window: int = 14,
    drop_path: float = 0.1,
    channels: int = 256,
    allow_partial: bool = False,
) -> Backbone:
    """Return a backbone with the weights of a checkpoint, as an `nn.Module` in training mode.

    kind="vitdet" is ViTDet with its simple feature pyramid, built as `mimbench evaluate --on coco` builds it. With 16
    pixel patches the maps are p2, p3, p4, p5, p6 at strides 4, 8, 16, 32, 64, each of `channels`. The pyramid has
    random weights and must be trained, unless the checkpoint is a whole detector: then pyramid and relative positions
    are taken too, and the detector decides the options below.

    kind="plain" is the encoder as pretrained, with global attention: one map, last_feat, at the stride of its patch
    (16), with its width as channels; of the options only `allow_partial` applies.

    Args:
        checkpoint: as in `load_encoder`; also a whole ViTDet detector, detectron2's or ours.
        kind: "vitdet" or "plain".
        image: side of the images in training, in pixels, for which relative positions are made. Other images work if
            their sides are multiples of 32 (with 16 pixel patches); relative positions are then interpolated.
        patch: resample the patch embedding to patches of this side (16 for a ViT-H/14); None keeps the encoder's.
        window: side of the attention windows, in patches.
        drop_path: stochastic depth of the last block; ViTDet trains B with 0.1, L with 0.4, H with 0.5.
        channels: of each map.
        allow_partial: as in `load_encoder`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a checkpoint, ViTDet does not support its encoder, or an option does not fit.
    """
    if kind == "plain":
        encoder = load_encoder(checkpoint, allow_partial=allow_partial)
        body, info = encoder.model.train(), encoder.info
        return Backbone(body, {"last_feat": encoder.patch}, encoder.width, info.mean, info.std)
    if kind != "vitdet":
        raise ValueError(f"kind={kind!r} is unknown; it must be 'vitdet' or 'plain'")
    file = encoder_file(Path(checkpoint))
    if open_weights(file, "detector").kind == "detector":
        detector = open_detector(file)
        model, channels = detector.model.train(), detector.about.config.vitdet.channels
    else:
        vitdet = replace(ViTDetConfig(), patch=patch, window=window, drop_path=drop_path, channels=channels)
        config = MaskRCNNConfig(data="", checkpoint=str(file), allow_partial=allow_partial, image=image, vitdet=vitdet)
        model = build_detector(config, CLASSES)[0]
    strides = {f"p{int(math.log2(stride))}": stride for stride in model.backbone.strides}
    mean, std = ((value.flatten() / 255).tolist() for value in (model.pixel_mean, model.pixel_std))
    return Backbone(model.backbone, strides, channels, mean, std)


def evaluate_coco(
    predictions: str | Path | Sequence[Mapping[str, Any]],
    annotations: str | Path,
    *,
    fast: bool = False,
    masks: bool | None = None,
    benchmark: Literal["coco", "lvis"] = "coco",
) -> dict[str, float]:
    """Return the metrics of predictions in COCO's format, in percent.

    The keys are box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, box_ar1, box_ar10, box_ar100,
    box_ar_small, box_ar_medium, box_ar_large, and the same for mask. A metric without objects in the annotations
    is left out.

    Args:
        predictions: a JSON file, or a list, of one dictionary for each detection: image_id, category_id (as in the
            annotation file), score, bbox (x, y, width, height in pixels) and, for masks, segmentation (RLE).
        annotations: the annotation file (JSON).
        fast: use hotcoco in place of pycocotools: the same values in a fraction of the time, without the ar
            metrics. For published numbers, use pycocotools.
        masks: whether to measure masks; None measures them if there are predictions and each has a segmentation.
        benchmark: "lvis" follows the rules of LVIS, and has box_ap_rare, box_ap_common, box_ap_frequent and box_ar300.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file has the wrong format, or a prediction lacks a key or names an image or a category that the
            annotation file does not list.
    """
    found = _predictions(predictions)
    with_masks = bool(found) and all("segmentation" in one for one in found) if masks is None else masks
    _check(found, with_masks)
    metrics = CocoMetrics(Path(annotations), masks=with_masks, benchmark=benchmark)
    known = set(metrics.category_ids)
    for index, one in enumerate(found):
        if one["category_id"] not in known:
            raise ValueError(
                f"predictions[{index}] has category_id {one['category_id']}, which {annotations} does not list; "
                f"its ids are {min(known)} to {max(known)}"
            )
    return metrics(found, fast=fast)


def _predictions(predictions: str | Path | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(predictions, str | Path):
        return [dict(one) for one in predictions]
    file = Path(predictions)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ValueError(f"{file} must hold a list with one dictionary for each detection, as COCO's results do")
    return content


def _check(predictions: Sequence[Mapping[str, Any]], masks: bool) -> None:
    wanted = ("image_id", "category_id", "score", "bbox", *(("segmentation",) if masks else ()))
    for index, one in enumerate(predictions):
        if lacking := [key for key in wanted if key not in one]:
            raise ValueError(f"predictions[{index}] has no {' and no '.join(lacking)}; COCO's results have them")
        if len(one["bbox"]) != 4:
            raise ValueError(f"predictions[{index}] has bbox {one['bbox']}; it must be x, y, width and height")

"""A trained detector as a file, for detectron2 as well as for us, and any ViTDet detector's file as a detector.

    save_detector(run.detector, model, config, split.category_ids, split.categories)
    detector = open_detector("model_final_61ccd1.pkl")          # detectron2's, or one of the above
    detector.model.detect(images, sizes)

What is written is {"model": weights by detectron2's names, "detector": JSON}; `DetectionCheckpointer` loads all of it.
Of a file that detectron2 wrote, weights are all there is: the sizes are read off them (`config_of`), and what leaves no
trace in weights is as in the published recipes: anchors, thresholds, the images' mean and deviation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.checkpoints.detector import detector_in
from backbones.checkpoints.opening import parse_location
from backbones.config import SIZES, ViT
from det.build import from_scratch
from det.config import Heads, MaskRCNN, Proposals, ViTDet
from det.mask_rcnn import MaskRCNN as Model
from det.start import load_detector
from engine.atomic import write_with
from engine.config import from_text, to_text
from engine.images import IMAGENET_MEAN, IMAGENET_STD

ABOUT = "detector"  # the key of what we write beside the weights
LVIS_CLASSES = 1203


@dataclass(frozen=True)
class Detector:
    """A detector from a file."""

    model: Model
    config: MaskRCNN
    category_ids: tuple[int, ...]  # of each label; its own number where the file does not say
    categories: tuple[str, ...]  # their names; empty where the file does not say


def save_detector(
    file: Path, model: Model, config: MaskRCNN, category_ids: Sequence[int], categories: Sequence[str]
) -> None:
    """Write `model`, which `config` describes, to `file` (.pth), atomically.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    mean, std = ((value.flatten() / 255).tolist() for value in (model.pixel_mean, model.pixel_std))
    config = replace(config, checkpoint=None, encoder=model.backbone.net.vit, vitdet=replace(config.vitdet, patch=None))
    about = {"config": to_text(config), "ids": list(category_ids), "names": list(categories), "mean": mean, "std": std}
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    tree = {"model": weights, ABOUT: json.dumps(about)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # a handle, for torch writes a path's name into the file
            torch.save(tree, handle)

    write_with(file, write)


def open_detector(path: str | Path) -> Detector:
    """The detector in the file at `path`, in eval mode on the CPU.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: in one line, if it is not a whole ViTDet detector, or one whose sizes are none that can be built.
    """
    weights = detector_in(path)
    if weights is None:
        raise ValueError(f"{path} is not a whole detector: it lacks a ViTDet backbone, proposal head, or box head")
    about = _about(parse_location(str(path))[0])
    if about is None:
        config = config_of(weights, str(path))
        classes = len(weights[_first(weights, r"roi_heads\.box_predictor\.(0\.)?cls_score\.bias")]) - 1
        about = {"ids": range(classes), "names": (), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    else:
        config = from_text(MaskRCNN, about["config"], str(path))
    model = from_scratch(config, len(about["ids"]), config.encoder, mean=about["mean"], std=about["std"])
    load_detector(model, weights, str(path))
    return Detector(model.eval(), config, tuple(about["ids"]), tuple(about["names"]))


def _about(file: Path) -> dict[str, Any] | None:
    """What `save_detector` wrote beside the weights; None of another's file."""
    if file.suffix == ".pkl":  # detectron2's own releases; nothing of ours, and not torch's format
        return None
    try:
        text = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(ABOUT)
    except (RuntimeError, AttributeError):  # safetensors, or torch's format of before 1.6
        return None
    return json.loads(text) if isinstance(text, str) else None


# ----------------------------------------------------------------------------------------- what weights say of a config


def config_of(weights: Mapping[str, Tensor], file: str) -> MaskRCNN:
    """The config of a detector, from the names and shapes of its weights.

    Raises:
        ValueError: if they are not those of a ViTDet detector that can be built, naming what does not fit.
    """
    try:
        vit, vitdet, image = _backbone(weights)
        maps = len(vitdet.scales) + 1
        return MaskRCNN(
            data="",
            encoder=vit,
            image=image,
            vitdet=vitdet,
            proposals=_proposals(weights, maps),
            heads=_heads(weights),
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file} is a detector, but not ViTDet's as mimbench can build it: {error}") from None


def _first(weights: Mapping[str, Tensor], pattern: str) -> str:
    found = next((key for key in weights if re.fullmatch(pattern, key)), None)
    if found is None:
        raise ValueError(f"it has no {pattern}".replace("\\", "").replace("(0.)?", ""))
    return found


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in weights)


def _backbone(weights: Mapping[str, Tensor]) -> tuple[ViT, ViTDet, int]:
    """Encoder, what detection adds to it, and the side of the images."""
    net = "backbone.net."
    width, _, patch, _ = weights[f"{net}patch_embed.proj.weight"].shape
    depth = _count(weights, rf"{net}blocks\.\d+\.norm1\.weight".replace("backbone.", r"backbone\."))
    tables = [weights.get(f"{net}blocks.{block}.attn.rel_pos_h") for block in range(depth)]
    positions = weights.get(f"{net}pos_embed")
    heads = _head_count(width, depth, tables)
    grid = 14 if positions is None else math.isqrt(positions.shape[1] - 1)
    vit = ViT(width, depth, heads, patch, patch * grid)
    pyramid = sorted({int(key.split(".")[1][6:]) for key in weights if key.startswith("backbone.simfp_")})
    vitdet = ViTDet(
        rel_pos=tables[0] is not None,
        abs_pos=positions is not None,
        channels=len(weights[_first(weights, r"backbone\.simfp_\d+\.\d+\.norm\.weight")]),
        scales=tuple(patch / 2**level for level in pyramid),
    )
    rows = [(len(table) + 1) // 2 for table in tables if table is not None]
    if len(set(rows)) < 2:  # nothing tells windows from the whole
        return vit, vitdet, rows[0] * patch if rows else 1024
    blocks = tuple(block for block, side in enumerate(rows) if side == max(rows))
    return vit, replace(vitdet, window=min(rows), global_blocks=blocks), max(rows) * patch


def _head_count(width: int, depth: int, tables: Sequence[Tensor | None]) -> int:
    if tables[0] is not None:
        return width // tables[0].shape[1]
    known = next((size for size in SIZES.values() if (size.width, size.depth) == (width, depth)), None)
    return known.heads if known else width // 64


def _proposals(weights: Mapping[str, Tensor], maps: int) -> Proposals:
    head, published = "proposal_generator.rpn_head.", Proposals()
    per_cell = len(weights[f"{head}objectness_logits.bias"])
    if per_cell != len(published.anchor_ratios) or maps > len(published.anchor_sizes):
        raise ValueError(
            f"{per_cell} anchors at each of {maps} maps are not the published ones, and no file says which"
        )
    convs = _count(weights, r"proposal_generator\.rpn_head\.conv\.(conv\d+\.)?weight")
    return replace(published, convs=convs, anchor_sizes=published.anchor_sizes[:maps])


def _heads(weights: Mapping[str, Tensor]) -> Heads:
    cascade = "roi_heads.box_head.0.fc1.weight" in weights
    box = "roi_heads.box_head." + ("0." if cascade else "")
    federated = any(key.endswith("fed_loss_cls_weights") for key in weights)
    lvis = len(weights[_first(weights, r"roi_heads\.box_predictor\.(0\.)?cls_score\.bias")]) == LVIS_CLASSES + 1
    return Heads(
        convs=_count(weights, re.escape(box) + r"conv\d+\.weight"),
        channels=len(weights[f"{box}conv1.weight"]),
        fc=len(weights[f"{box}fc1.bias"]),
        masks="roi_heads.mask_head.predictor.weight" in weights,
        cascade=cascade,
        class_loss="federated" if federated else "softmax",
        score_threshold=0.02 if lvis else 0.05,
        detections=300 if lvis else 100,
    )

"""The settings of a detector from its file: stored by mimbench with the weights, or inferred from the weights.

    found = open_weights(path, "detector")   # of kind "detector"
    about = described(found)                 # None for files with only weights, such as detectron2's
    config = config_of(weights, path)        # for any ViTDet detector, from names and shapes of its weights
    vit, mean, std = encoder_of(found)

Settings that cannot be inferred are those of the published recipes: anchors, thresholds, the images' mean and std.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from mimbench.backbones.checkpoints.detector import named
from mimbench.backbones.checkpoints.weight_sets import DETECTOR
from mimbench.backbones.config import SIZES, Interpolation, Traits, ViT
from mimbench.backbones.weights import Weights
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.engine.run.config import from_text

PLAIN = Traits()
LVIS_CLASSES = 1203
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Described:
    """The description of a detector without its weights."""

    config: MaskRCNNConfig
    category_ids: tuple[int, ...]  # id of each label; the label itself if not stored
    categories: tuple[str, ...]  # their names; empty if not stored
    mean: RGB = IMAGENET_MEAN  # of the images, as fractions of 255
    std: RGB = IMAGENET_STD
    traits: Traits = PLAIN  # of the encoder
    interpolation: Interpolation = "bicubic"  # of its position table


def described(found: Weights) -> Described | None:
    """Return what `det.model.detector_file` stored with the weights; None for other files.

    Raises:
        ValueError: if the file is from an incompatible version of mimbench.
    """
    text = found.opened.metadata.get(DETECTOR)
    if text is None:
        return None
    about = json.loads(text)
    config = from_text(MaskRCNNConfig, about["config"], str(found.file))
    return Described(
        config=config,
        category_ids=tuple(about["ids"]),
        categories=tuple(about["names"]),
        mean=_rgb(about["mean"]),
        std=_rgb(about["std"]),
        traits=Traits(**about.get("traits", {})),
        interpolation=about.get("interpolation", "bicubic"),
    )


def _rgb(values: Sequence[float]) -> RGB:
    red, green, blue = values
    return red, green, blue


def encoder_of(found: Weights) -> tuple[ViT, RGB, RGB]:
    """Return the encoder's shape in a whole detector's file, and the images' mean and std, without reading weights.

    Raises:
        ValueError: if it is not a supported ViTDet.
    """
    if (about := described(found)) is not None:
        return about.config.encoder, about.mean, about.std
    with _buildable(str(found.file)):
        return _backbone(named(found.opened))[0], IMAGENET_MEAN, IMAGENET_STD


def config_of(weights: Mapping[str, Tensor], file: str) -> MaskRCNNConfig:
    """Return the config of a detector, inferred from the names and shapes of its weights.

    Raises:
        ValueError: if they are not those of a supported ViTDet detector; names what does not fit.
    """
    with _buildable(file):
        vit, vitdet, image = _backbone(weights)
        maps = len(vitdet.scales) + 1
        return MaskRCNNConfig(
            data="",
            encoder=vit,
            image=image,
            vitdet=vitdet,
            proposals=_proposals(weights, maps),
            heads=_heads(weights),
        )


@contextmanager
def _buildable(file: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file} is a detector, but not a ViTDet that mimbench supports: {error}") from None


def classes_of(weights: Mapping[str, Tensor]) -> int:
    """Return the number of categories of a detector."""
    return len(weights[_first(weights, r"roi_heads\.box_predictor\.(0\.)?cls_score\.bias")]) - 1


def _first(weights: Mapping[str, Tensor], pattern: str) -> str:
    found = next((key for key in weights if re.fullmatch(pattern, key)), None)
    if found is None:
        raise ValueError(f"it has no {pattern}".replace("\\", "").replace("(0.)?", ""))
    return found


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in weights)


def _backbone(weights: Mapping[str, Tensor]) -> tuple[ViT, ViTDetConfig, int]:
    """Return the encoder's shape, the ViTDet settings, and the side of the images."""
    net = "backbone.net."
    width, _, patch, _ = weights[f"{net}patch_embed.proj.weight"].shape
    depth = _count(weights, rf"{net}blocks\.\d+\.norm1\.weight".replace("backbone.", r"backbone\."))
    tables = [weights.get(f"{net}blocks.{block}.attn.rel_pos_h") for block in range(depth)]
    positions = weights.get(f"{net}pos_embed")
    heads = _head_count(width, depth, tables)
    grid = 14 if positions is None else math.isqrt(positions.shape[1] - 1)
    vit = ViT(width, depth, heads, patch, patch * grid)
    pyramid = sorted({int(key.split(".")[1][6:]) for key in weights if key.startswith("backbone.simfp_")})
    vitdet = ViTDetConfig(
        rel_pos=tables[0] is not None,
        abs_pos=positions is not None,
        channels=len(weights[_first(weights, r"backbone\.simfp_\d+\.\d+\.norm\.weight")]),
        scales=tuple(patch / 2**level for level in pyramid),
    )
    rows = [(len(table) + 1) // 2 for table in tables if table is not None]
    if len(set(rows)) < 2:  # windowed and global blocks cannot be distinguished
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
            f"{per_cell} anchors at each of {maps} maps are not the published ones, and the file stores no settings"
        )
    convs = _count(weights, r"proposal_generator\.rpn_head\.conv\.(conv\d+\.)?weight")
    return replace(published, convs=convs, anchor_sizes=published.anchor_sizes[:maps])


def _heads(weights: Mapping[str, Tensor]) -> Heads:
    cascade = "roi_heads.box_head.0.fc1.weight" in weights
    box = "roi_heads.box_head." + ("0." if cascade else "")
    federated = any(key.endswith("fed_loss_cls_weights") for key in weights)
    lvis = classes_of(weights) == LVIS_CLASSES
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

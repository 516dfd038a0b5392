"""Build the detector of a config: `build_detector(config, classes)`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import vitdet_reason
from mimbench.backbones.weights import Weights, open_weights
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.model.detector_config import described, encoder_of
from mimbench.det.model.federated import class_weights
from mimbench.det.model.load_weights import load_detector, load_relative_positions
from mimbench.det.model.mask_rcnn import MaskRCNN, build_mask_rcnn
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD

PLAIN = Traits()
BLOCK = re.compile(r"blocks\.(\d+)\.")
WHOLE = "detectron2, the whole detector"  # family of a whole detector's checkpoint, from detectron2 or mimbench


def build_detector(
    config: MaskRCNNConfig, classes: int, images_showing: Sequence[int] | None = None
) -> tuple[MaskRCNN, EncoderInfo | None]:
    """Return the detector of `config` on its checkpoint's encoder or a random one, or the checkpoint's whole detector.

    A random encoder is initialised as in pretraining (fixed sin-cos positions, Xavier), like in every other evaluation,
    so a table's scratch row is one encoder; `start=detectron2` initialises it as detectron2 does. Relative positions,
    pyramid and heads always start from scratch, except from a checkpoint that is a whole detector.

    Args:
        config: the run's config.
        classes: number of categories in the data.
        images_showing: number of training images with each category, for the federated loss; not for inference.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if the file is not a checkpoint, or its encoder does not fit the detector.
    """
    found = None
    if config.checkpoint and user_code(config.checkpoint) is None:
        found = open_weights(config.checkpoint, "detector", allow_partial=config.allow_partial)
    if found is not None and found.kind == "detector":
        return _whole(config, found, classes, images_showing)
    encoder, info = found.build_encoder() if found else build_encoder(config.checkpoint, config.encoder)
    if config.checkpoint is None and config.vitdet.norm == "own":
        encoder = VisionTransformer(config.encoder, final_norm=True)
    if (reason := _reason(config, encoder)) is not None:
        raise ValueError(f"{config.checkpoint}: {reason}")
    model = from_scratch(
        config,
        classes,
        config.shape_for(info.vit if info else config.encoder),
        mean=config.pixel_mean or (info.mean if info else IMAGENET_MEAN),
        std=config.pixel_std or (info.std if info else IMAGENET_STD),
        images_showing=images_showing,
        traits=encoder.traits,
        # MAE's family is resized as in detectron2; other families as in their own evaluations
        interpolation="bicubic" if encoder.traits.mae_like else encoder.interpolation,
    )
    if info is not None or config.start == "pretraining":
        first = _first_blocks(encoder.state_dict(), len(model.backbone.net.blocks))
        model.backbone.net.load_encoder(first, encoder.traits, config.vitdet.kernel)
    if found is not None and info is not None and found.relative_positions:
        load_relative_positions(model, found.relative_positions, str(config.checkpoint))
        info = replace(info, family="detectron2, with its relative positions", partial=())
    return model, info


def _first_blocks(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return an encoder's weights with only its first `depth` blocks."""
    return {key: value for key, value in state.items() if not (found := BLOCK.match(key)) or int(found[1]) < depth}


def _reason(config: MaskRCNNConfig, encoder: VisionTransformer) -> str | None:
    """Return in one line why the detector of `config` does not support this encoder; None if it does."""
    if config.vitdet.norm == "own" and isinstance(encoder.norm, nn.Identity):
        return (
            "vitdet.norm=own needs an encoder with a final norm, which this encoder does not have; use vitdet.norm=off"
        )
    return vitdet_reason(encoder.traits, config.vitdet.prefix)


def _whole(
    config: MaskRCNNConfig, found: Weights, classes: int, images_showing: Sequence[int] | None
) -> tuple[MaskRCNN, EncoderInfo]:
    """Return the detector of `config` with all weights of its checkpoint, a whole detector."""
    vit, mean, std = encoder_of(found)
    mean, std = config.pixel_mean or mean, config.pixel_std or std
    about = described(found)
    traits, interpolation = (about.traits, about.interpolation) if about else (PLAIN, "bicubic")
    model = from_scratch(
        config,
        classes,
        config.shape_for(vit),
        mean=mean,
        std=std,
        images_showing=images_showing,
        traits=traits,
        interpolation=interpolation,
    )
    load_detector(model, found.tensors, str(config.checkpoint))
    return model, EncoderInfo(WHOLE, vit, final_norm=False, mean=mean, std=std, traits=traits)


def from_scratch(
    config: MaskRCNNConfig,
    classes: int,
    shape: ViT,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    images_showing: Sequence[int] | None = None,
    traits: Traits = PLAIN,
    interpolation: Interpolation = "bicubic",
) -> MaskRCNN:
    """Return the detector of `config` on an encoder of `shape`, both initialised as in detectron2.

    `mean` and `std` are those of the images; `traits` and `interpolation` the encoder's, as in
    `backbones.vitdet.ViTDet`.
    """
    weights = None
    if config.heads.class_loss == "federated":
        weights = class_weights(torch.ones(classes) if images_showing is None else torch.as_tensor(images_showing))
    return build_mask_rcnn(
        config,
        shape,
        classes=classes,
        mean=mean,
        std=std,
        class_weights=weights,
        traits=traits,
        interpolation=interpolation,
    )

"""The detector that a config describes: `build_detector(config, classes)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

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
WHOLE = "detectron2, the whole detector"  # the family of such a checkpoint, detectron2's or ours


def build_detector(
    config: MaskRCNNConfig, classes: int, images_showing: Sequence[int] | None = None
) -> tuple[MaskRCNN, EncoderInfo | None]:
    """The detector of `config` on its checkpoint's encoder; on a random one if it has none; or its checkpoint itself.

    The random one is what pretraining starts from (fixed sin-cos positions, Xavier), as in every other evaluation: a
    table's scratch row is one encoder; `start=detectron2` draws it as detectron2 does. Relative positions, pyramid and
    heads start from scratch in either case, but for a checkpoint that is a whole detector, of which all is taken.

    Args:
        config: of the run.
        classes: categories of the data.
        images_showing: how many training images show each category, for the federated loss; not for inference.

    Raises:
        FileNotFoundError: if the checkpoint is not there.
        ValueError: if it is not one, or its encoder does not fit the detector.
    """
    found = None
    if config.checkpoint and user_code(config.checkpoint) is None:
        found = open_weights(config.checkpoint, "detector", allow_partial=config.allow_partial)
    if found is not None and found.kind == "detector":
        return _whole(config, found, classes, images_showing)
    encoder, info = found.build_encoder() if found else build_encoder(config.checkpoint, config.encoder)
    if (reason := _reason(config, encoder)) is not None:
        raise ValueError(f"{config.checkpoint}: {reason}")
    model = from_scratch(
        config,
        classes,
        config.shape_for(info.vit if info else config.encoder),
        mean=info.mean if info else IMAGENET_MEAN,
        std=info.std if info else IMAGENET_STD,
        images_showing=images_showing,
        traits=encoder.traits,
        # MAE's relatives always were resized as in detectron2; others as in their own evaluations
        interpolation="bicubic" if encoder.traits.mae_like else encoder.interpolation,
    )
    if info is not None or config.start == "pretraining":
        model.backbone.net.load_encoder(encoder.state_dict(), encoder.traits, config.vitdet.kernel)
    if found is not None and info is not None and found.relative_positions:
        load_relative_positions(model, found.relative_positions, str(config.checkpoint))
        info = replace(info, family="detectron2, with its relative positions", partial=())
    return model, info


def _reason(config: MaskRCNNConfig, encoder: VisionTransformer) -> str | None:
    """Why the detector of `config` cannot stand on this encoder, in one line; None if it can."""
    if config.vitdet.norm == "own" and isinstance(encoder.norm, nn.Identity):
        return "this encoder has no final norm, which vitdet.norm=own asks for; take vitdet.norm=off"
    return vitdet_reason(encoder.traits, config.vitdet.prefix)


def _whole(
    config: MaskRCNNConfig, found: Weights, classes: int, images_showing: Sequence[int] | None
) -> tuple[MaskRCNN, EncoderInfo]:
    """The detector of `config` with all weights of its checkpoint, which is a detector itself."""
    vit, mean, std = encoder_of(found)
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
    """The detector of `config` on an encoder of `shape`, as detectron2 draws both; `mean` and `std` of the images.

    `traits` and `interpolation` are the encoder's, as of `backbones.vitdet.ViTDet`.
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

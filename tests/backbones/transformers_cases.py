"""Encoders of Hugging Face's transformers, tiny and random, for the tests of folders.

Heads, activation, eps and widths are not the defaults, and every weight is perturbed, so that each is seen in the
features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}


ODD = {**TINY, "intermediate_size": 80, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}


RATIO = {**TINY, "mlp_ratio": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}


BIASES = {"qkv_bias": True, "mlp_bias": True}


SAM = {"mlp_dim": 80, "window_size": 3, "global_attn_indexes": [1], "output_channels": 8}


GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


def last_hidden_state(model: Any, images: Tensor) -> Tensor:
    """All tokens (B, T, D) as most classes return them."""
    return model(images).last_hidden_state


def resized(model: Any, images: Tensor) -> Tensor:
    """All tokens, of classes that resize their positions when they are asked to."""
    return model(images, interpolate_pos_encoding=True).last_hidden_state


def post_normed(model: Any, images: Tensor) -> Tensor:
    """CLIP's tokens, of which the library norms the class token alone."""
    return model.post_layernorm(model(images).last_hidden_state)


def flat_patches(model: Any, images: Tensor) -> Tensor:
    """SigLIP 2's tokens: it takes flat patches (rows, columns, colours) with a mask and the grid."""
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
    grid = torch.tensor([patches.shape[1:3]]).expand(len(images), 2)
    flat = patches.flatten(3).flatten(1, 2)
    return model(flat, torch.ones(flat.shape[:2]), spatial_shapes=grid).last_hidden_state


def feature_map(model: Any, images: Tensor) -> Tensor:
    """ViTDet's map (B, D, h, w) as tokens."""
    return model(images).last_hidden_state.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Case:
    """A model type, its config, and how the library gives its tokens."""

    kind: str  # model_type
    family: str
    config: dict[str, Any]
    tokens: Callable[[Any, Tensor], Tensor] = last_hidden_state
    at: dict[int, Callable[[Any, Tensor], Tensor]] = field(default_factory=dict)  # other sizes of images, in pixels


def unmasked(model: Any, images: Tensor) -> Tensor:
    """ViTMAE's tokens in their order: nothing is masked, and the noise that orders the patches rises."""
    patches = (images.shape[2] // 8) * (images.shape[3] // 8)
    noise = torch.arange(patches).float().expand(len(images), patches)
    return model(images, noise=noise, interpolate_pos_encoding=True).last_hidden_state


def before_the_neck(model: Any, images: Tensor) -> Tensor:
    """SAM's tokens after its last block; `last_hidden_state` is the neck's map."""
    caught: list[Tensor] = []
    encoder = model.vision_encoder
    handle = encoder.layers[-1].register_forward_hook(lambda _module, _input, made: caught.append(made))
    encoder(images)
    handle.remove()
    return caught[0].flatten(1, 2)


BOTH = {48: last_hidden_state}


WINDOWS = {**RATIO, "image_size": 48, "pretrain_image_size": 32, "window_size": 4, "window_block_indices": [0]}


RELATIVE = {"use_relative_position_embeddings": True}


MAPS = {48: feature_map, 40: feature_map}


CASES = {
    "vit": Case("vit", "vit", ODD, at={48: resized}),
    "vit_without_bias": Case("vit", "vit", {**ODD, "qkv_bias": False, "hidden_act": "quick_gelu"}),
    "vit_mae": Case("vit_mae", "mae", {**ODD, "mask_ratio": 0.0}, unmasked),
    "vit_msn": Case("vit_msn", "msn", ODD, at={48: resized}),
    "deit": Case("deit", "deit", ODD, at={48: resized}),
    "ijepa": Case("ijepa", "ijepa", ODD, at={48: resized}),
    "beit_tables": Case("beit", "beit", {**ODD, "use_relative_position_bias": True}),
    "beit_normed": Case("beit", "beit", {**ODD, "use_relative_position_bias": True, "use_mean_pooling": False}),
    "beit_shared": Case("beit", "beit", {**ODD, "use_shared_relative_position_bias": True}),
    "beit_absolute": Case("beit", "beit", {**ODD, "use_absolute_position_embeddings": True}, at=BOTH),
    "beit_unplaced": Case("beit", "beit", {**ODD, "layer_scale_init_value": 0.0}),
    "data2vec": Case("data2vec-vision", "data2vec", {**ODD, "use_relative_position_bias": True}),
    "dinov2": Case("dinov2", "dinov2", RATIO, at=BOTH),
    "dinov2_gated": Case("dinov2", "dinov2", {**RATIO, "use_swiglu_ffn": True, "qkv_bias": False}),
    "dinov2_registers": Case("dinov2_with_registers", "dinov2", {**RATIO, "num_register_tokens": 3}),
    "dinov3": Case("dinov3_vit", "dinov3", {**ODD, "num_register_tokens": 2, "rope_theta": 30.0}, at=BOTH),
    "dinov3_gated": Case("dinov3_vit", "dinov3", {**ODD, **GATED, "mlp_bias": False, "proj_bias": False}, at=BOTH),
    "clip": Case("clip_vision_model", "clip", ODD, post_normed),
    "metaclip_2": Case("metaclip_2_vision_model", "clip", {**ODD, "hidden_act": "quick_gelu"}, post_normed),
    "chinese_clip": Case("chinese_clip_vision_model", "clip", ODD, post_normed),
    "clipseg": Case("clipseg_vision_model", "clip", ODD, post_normed),
    "altclip": Case("altclip_vision_model", "clip", ODD, post_normed),
    "siglip": Case("siglip_vision_model", "siglip", {**ODD, "hidden_act": "gelu"}, at={48: resized}),
    "siglip2": Case("siglip2_vision_model", "siglip", {**ODD, "num_patches": 16}, flat_patches, at={48: flat_patches}),
    "aimv2": Case("aimv2_vision_model", "aimv2", {**ODD, "hidden_act": "silu", "rms_norm_eps": 1e-3}, at={}),
    "aimv2_biases": Case("aimv2_vision_model", "aimv2", {**ODD, "hidden_act": "silu", **BIASES}),
    "aimv2_native": Case("aimv2_vision_model", "aimv2", {**ODD, "hidden_act": "silu", "is_native": True}, at=BOTH),
    "tipsv2": Case("tipsv2_vision_model", "tips", {**RATIO, "num_register_tokens": 1}),
    "sam": Case("sam_vision_model", "sam", {**ODD, **SAM}, before_the_neck),
    "sam_hq": Case("sam_hq_vision_model", "sam", {**ODD, **SAM, "mlp_ratio": 3.0, "mlp_dim": None}, before_the_neck),
    "vitdet": Case("vitdet", "vitdet", {**RATIO, "pretrain_image_size": 32}, feature_map, at={48: feature_map}),
    "vitdet_windows": Case("vitdet", "vitdet", {**WINDOWS, **RELATIVE}, feature_map, at=MAPS),
    "vitdet_without_tables": Case("vitdet", "vitdet", WINDOWS, feature_map, at=MAPS),
    "vitdet_everywhere": Case("vitdet", "vitdet", {**RATIO, **RELATIVE, "pretrain_image_size": 32}, feature_map),
}


TOWER_CLASSES = {  # of the model types that `AutoModel` does not build
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "altclip_vision_model": "AltCLIPVisionModel",
    "clipseg_vision_model": "CLIPSegVisionModel",
    "flava_image_model": "FlavaImageModel",
    "owlvit_vision_model": "OwlViTVisionModel",
}


def built(kind: str, config: dict[str, Any]) -> PreTrainedModel:
    """A tiny model of `model_type` kind."""
    settings = CONFIG_MAPPING[kind](**config)
    if kind in TOWER_CLASSES:
        model: PreTrainedModel = getattr(transformers, TOWER_CLASSES[kind])(settings)
        return model
    return AutoModel.from_config(settings)


def made(kind: str, config: dict[str, Any]) -> PreTrainedModel:
    """A tiny model, all of whose weights matter."""
    torch.manual_seed(0)
    model = built(kind, config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """The folder with other values in its config."""
    to.mkdir()
    (to / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **values}))
    return to

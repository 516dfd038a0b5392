"""The model types of transformers that mimbench supports, and what their config says of each.

A config may leave out what is the default of its class; `defaults` are transformers' own (5.24.0), of every key that
is read here. Whatever changes the arithmetic is read and never assumed; what is not supported is refused with its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mimbench.backbones.checkpoints.families.clip import MEAN as CLIP_MEAN
from mimbench.backbones.checkpoints.families.clip import STD as CLIP_STD
from mimbench.backbones.checkpoints.family import HALF, IMAGENET_MEAN, IMAGENET_STD
from mimbench.backbones.checkpoints.huggingface import names
from mimbench.backbones.checkpoints.huggingface.described import Described, said
from mimbench.backbones.checkpoints.huggingface.names import Names, Step
from mimbench.backbones.config import Interpolation, Traits, Windows

GATES = ("silu", "swish")  # the function of a gate, two names of one

_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3}
_IMAGES = {"image_size": 224, "patch_size": 16}
_VIT = {
    **_SIZES,
    **_IMAGES,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
_BEIT = {
    **{key: value for key, value in _VIT.items() if key != "qkv_bias"},
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
}
_DINOV2 = {
    **_SIZES,
    "image_size": 224,
    "patch_size": 14,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_DINOV3 = {
    **_SIZES,
    **_IMAGES,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}
_CLIP = {
    **_SIZES,
    "image_size": 224,
    "patch_size": 32,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {**_CLIP, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP2 = {**{key: value for key, value in _SIGLIP.items() if key != "image_size"}, "num_patches": 256}
_VITDET = {
    **_SIZES,
    **_IMAGES,
    "pretrain_image_size": 224,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "window_block_indices": (),
    "residual_block_indices": (),
    "use_absolute_position_embeddings": True,
    "use_relative_position_embeddings": False,
    "window_size": 0,
}
_AIMV2 = {
    **_SIZES,
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "image_size": 224, "patch_size": 14},
    "intermediate_size": 2816,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
    "mlp_bias": False,
    "is_native": False,
}
_SAM = {
    **_SIZES,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    **{"mlp_ratio": 4.0, "mlp_dim": 3072, "use_abs_pos": True, "use_rel_pos": True},
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
}


@dataclass(frozen=True)
class ModelType:
    """One `model_type` of transformers."""

    family: str  # in results; that of the authors' own files where we read those
    title: str
    defaults: Mapping[str, Any]
    names: Names
    traits: Callable[[Described], Traits]
    steps: tuple[Step, ...]
    final_norm: Callable[[Described], bool] = lambda _: True
    interpolation: Interpolation = "bicubic"  # of the authors' own protocol, as for their files
    mean: tuple[float, float, float] = IMAGENET_MEAN  # where no preprocessor_config.json lies beside it
    std: tuple[float, float, float] = IMAGENET_STD


def _beit_traits(config: Described) -> Traits:
    absolute, each, shared = (
        config[f"use_{kind}"]
        for kind in ("absolute_position_embeddings", "relative_position_bias", "shared_relative_position_bias")
    )
    if (absolute and (each or shared)) or (each and shared):
        kinds = ("absolute_position_embeddings", "relative_position_bias", "shared_relative_position_bias")
        both = " and ".join(f"use_{kind}=True" for kind in kinds if config[f"use_{kind}"])
        raise ValueError(f"config.json says {both}, and an encoder has one kind of positions")
    positions = "absolute" if absolute else "relative" if each or shared else "none"
    return config.traits(positions=positions, layer_scale=config["layer_scale_init_value"] > 0)


def _dinov2_traits(config: Described) -> Traits:
    registers = config["num_register_tokens"] if config.has("num_register_tokens") else 0
    if config["use_swiglu_ffn"]:
        return config.traits(layer_scale=True, registers=registers, mlp="swiglu", hidden=config.hidden)
    return config.traits(layer_scale=True, registers=registers)


def _dinov3_traits(config: Described) -> Traits:
    if config["key_bias"]:
        raise ValueError(f"{said('key_bias', True)}, and keys have no bias in DINOv3's blocks here")
    if config["query_bias"] != config["value_bias"]:
        raise ValueError(f"{said('query_bias', config['query_bias'])} and value_bias={config['value_bias']}")
    if config["use_gated_mlp"] and config["hidden_act"] not in GATES:
        raise ValueError(f"{said('hidden_act', config['hidden_act'])} of a gated MLP; supported is silu (SwiGLU)")
    if config.width // config["num_attention_heads"] % 4:
        raise ValueError(
            f"{said('num_attention_heads', config['num_attention_heads'])}: rotary positions need heads of a width "
            f"that 4 divides"
        )
    return config.traits(
        positions="rope",
        layer_scale=True,
        registers=config["num_register_tokens"],
        mlp="swiglu_split" if config["use_gated_mlp"] else "mlp",
        qkv_bias=config["query_bias"],
        proj_bias=config["proj_bias"],
        mlp_bias=config["mlp_bias"],
    )


def _vitdet_traits(config: Described) -> Traits:
    if config["residual_block_indices"]:
        raise ValueError(
            f"{said('residual_block_indices', list(config['residual_block_indices']))}: its convolutions between "
            f"blocks are not supported"
        )
    positions = "absolute" if config["use_absolute_position_embeddings"] else "none"
    return config.traits(class_token=False, positions=positions, windows=_vitdet_windows(config))


def _vitdet_windows(config: Described) -> Windows | None:
    """Return the windows of ViTDet's blocks; None where all attend globally without relative positions."""
    windowed = tuple(config["window_block_indices"]) if config["window_size"] else ()
    if not windowed and not config["use_relative_position_embeddings"]:
        return None
    grid = config.side("image_size") // config.side("patch_size")  # of global blocks; config.grid is the table's
    everywhere = tuple(block for block in range(config.number("num_hidden_layers")) if block not in windowed)
    side = config.number("window_size") if windowed else grid
    return Windows(side, everywhere, None if grid == config.grid else grid)


def _aimv2_traits(config: Described) -> Traits:
    if config["hidden_act"] not in GATES:
        raise ValueError(f"{said('hidden_act', config['hidden_act'])} of a gated MLP; supported is silu (SwiGLU)")
    return Traits(
        class_token=False,
        mlp="swiglu_split",
        hidden=config.hidden,
        qkv_bias=config["qkv_bias"],
        proj_bias=config["qkv_bias"],  # one setting for both
        mlp_bias=config["mlp_bias"],
        norm="rms",
        norm_eps=config["rms_norm_eps"],
        patch_norm=True,
    )


def _sam_traits(config: Described) -> Traits:
    for key in ("use_abs_pos", "use_rel_pos"):
        if not config[key]:
            raise ValueError(f"{said(key, False)}; SAM's image encoder has absolute and relative positions")
    windows = Windows(config.number("window_size"), tuple(config["global_attn_indexes"]))
    return config.traits(class_token=False, windows=windows)


_JOINED = (names.with_axes, names.joined_heads)
_SEPARATE = (names.separate_biases, names.joined_heads)
_BEIT_TYPE = ModelType(
    family="beit",
    title="BEiT or BEiT v2 (Bao et al., 2022; Peng et al., 2022)",
    defaults=_BEIT,
    names=names.VIT,
    traits=_beit_traits,
    steps=_SEPARATE,
    final_norm=lambda config: not config["use_mean_pooling"],
    mean=HALF,
    std=HALF,
)
_CLIP_TYPE = ModelType(
    family="clip",
    title="CLIP's image tower (Radford et al., 2021)",
    defaults=_CLIP,
    names=names.CLIP,
    traits=lambda config: config.traits(pre_norm=True, patch_bias=False),
    steps=_JOINED,
    interpolation="bicubic-antialias",
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
_SIGLIP_TYPE = ModelType(
    family="siglip",
    title="SigLIP's image tower (Zhai et al., 2023; Tschannen et al., 2025)",
    defaults=_SIGLIP,
    names=names.CLIP,
    traits=lambda config: config.traits(class_token=False),
    steps=_JOINED,
    interpolation="bicubic-antialias",
    mean=HALF,
    std=HALF,
)
_DINOV2_TYPE = ModelType(
    family="dinov2",
    title="DINOv2 (Oquab et al., 2023)",
    defaults=_DINOV2,
    names=names.VIT,
    traits=_dinov2_traits,
    steps=(*_JOINED, names.gated_in_one),
    interpolation="bicubic-offset",
)
_VIT_TYPE = ModelType(
    family="vit",
    title="ViT (Dosovitskiy et al., 2021)",
    defaults=_VIT,
    names=names.VIT,
    traits=lambda config: config.traits(),
    steps=_JOINED,
    interpolation="bicubic-antialias",
    mean=HALF,
    std=HALF,
)
_SAM_TYPE = ModelType(
    family="sam",
    title="SAM's image encoder (Kirillov et al., 2023)",
    defaults=_SAM,
    names=names.SAM,
    traits=_sam_traits,
    steps=(names.flat_table,),
    final_norm=lambda _: False,
)
_TIPS_TYPE = replace(
    _DINOV2_TYPE,
    family="tips",
    title="TIPS v2 (Maninis et al., 2024)",
    defaults={**_DINOV2, "image_size": 448, "num_register_tokens": 1},
    names=names.TIPS,
    steps=(),
    interpolation="bilinear-antialias",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
MODEL_TYPES: Mapping[str, ModelType] = {
    "vit": _VIT_TYPE,
    "vit_mae": replace(
        _VIT_TYPE,
        family="mae",
        title="MAE (He et al., 2022)",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "vit_msn": replace(
        _VIT_TYPE,
        family="msn",
        title="MSN (Assran et al., 2022)",
        defaults={**_VIT, "layer_norm_eps": 1e-6},
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "deit": replace(
        _VIT_TYPE,
        family="deit",
        title="DeiT (Touvron et al., 2021), distilled",
        traits=lambda config: config.traits(registers=1),
        steps=(names.distillation_token, *_JOINED),
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "ijepa": replace(
        _VIT_TYPE,
        family="ijepa",
        title="I-JEPA (Assran et al., 2023)",
        traits=lambda config: config.traits(class_token=False),
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "beit": _BEIT_TYPE,
    "data2vec-vision": replace(_BEIT_TYPE, family="data2vec", title="data2vec for images (Baevski et al., 2022)"),
    "dinov2": _DINOV2_TYPE,
    "dinov2_with_registers": replace(
        _DINOV2_TYPE,
        title="DINOv2 with registers (Darcet et al., 2023)",
        defaults={**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
        interpolation="bicubic-antialias",
    ),
    "dinov3_vit": ModelType(
        family="dinov3",
        title="DINOv3 (Simeoni et al., 2025)",
        defaults=_DINOV3,
        names=names.VIT,
        traits=_dinov3_traits,
        steps=(*_SEPARATE, names.gated_in_two),
    ),
    "clip_vision_model": _CLIP_TYPE,
    "metaclip_2_vision_model": replace(_CLIP_TYPE, title="MetaCLIP 2's image tower (Chuang et al., 2025)"),
    "chinese_clip_vision_model": replace(_CLIP_TYPE, title="Chinese CLIP's image tower (Yang et al., 2022)"),
    "clipseg_vision_model": replace(_CLIP_TYPE, title="CLIPSeg's image tower (Lueddecke et al., 2022)"),
    "altclip_vision_model": replace(_CLIP_TYPE, title="AltCLIP's image tower (Chen et al., 2022)"),
    "siglip_vision_model": _SIGLIP_TYPE,
    "siglip2_vision_model": replace(
        _SIGLIP_TYPE,
        title="SigLIP 2's image tower for any aspect ratio (Tschannen et al., 2025)",
        defaults=_SIGLIP2,
        steps=(names.patches_as_kernel, *_JOINED),
        interpolation="bilinear-antialias",
    ),
    "vitdet": ModelType(
        family="vitdet",
        title="ViTDet's backbone (Li et al., 2022)",
        defaults=_VITDET,
        names=names.VITDET,
        traits=_vitdet_traits,
        steps=(),
        final_norm=lambda _: False,
    ),
    "aimv2_vision_model": ModelType(
        family="aimv2",
        title="AIMv2 (Fini et al., 2024)",
        defaults=_AIMV2,
        names=names.AIMV2,
        traits=_aimv2_traits,
        steps=(*_JOINED, names.gated_in_two),
        interpolation="bicubic-antialias",
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "tipsv2_vision_model": _TIPS_TYPE,
    "sam_vision_model": _SAM_TYPE,
    "sam_hq_vision_model": replace(_SAM_TYPE, title="SAM-HQ's image encoder (Ke et al., 2023)"),
}
TOWERS: Mapping[str, str] = {  # models of image and text, or prompts: the model type of their `vision_config`
    "clip": "clip_vision_model",
    "metaclip_2": "metaclip_2_vision_model",
    "chinese_clip": "chinese_clip_vision_model",
    "altclip": "altclip_vision_model",
    "clipseg": "clipseg_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "aimv2": "aimv2_vision_model",
    "tipsv2": "tipsv2_vision_model",
    "sam": "sam_vision_model",
    "sam_hq": "sam_hq_vision_model",
}

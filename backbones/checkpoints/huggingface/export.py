"""A folder that `AutoModel.from_pretrained` of transformers loads, with the features that the encoder has here.

The class is chosen by the encoder's traits: the config that would describe it is written down, read again as any
config is, and must say exactly the same. What no class can be is refused with the trait in the way. Weights have the
names of transformers 4, which version 5 reads as well.

    config.json                the sizes, heads, activation, eps, ...
    preprocessor_config.json   mean and deviation of the images
    model.safetensors          the weights; queries, keys and values are separate
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mimbench.backbones.checkpoints.huggingface.described import Described
from mimbench.backbones.checkpoints.huggingface.folder import EXPORTED
from mimbench.backbones.checkpoints.huggingface.models import MODEL_TYPES
from mimbench.backbones.checkpoints.info import EncoderInfo, to_json
from mimbench.backbones.config import Activation, Traits, ViT, Windows
from mimbench.backbones.rotary import rotary_periods
from mimbench.engine.run.atomic import write_json, write_with

State = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]

FUNCTIONS: dict[Activation, str] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
HEADS = {"siglip_vision_model": "vision_use_head", "aimv2_vision_model": "use_head"}  # keys of attention pools
RATIOS = range(1, 17)  # of the MLP's width to the encoder's; transformers takes whole numbers where it takes a ratio
POOLER = "transformers adds a pooler that nobody trained; take last_hidden_state"

_EMBEDDINGS: Rules = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"^norm\.", "layernorm."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative_position", ".attention.attention.relative_position_bias.relative_position"),
)
_VIT: Rules = (
    *_EMBEDDINGS,
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.gamma_([12])$", r".lambda_\1"),
)
_DINOV2: Rules = (*_EMBEDDINGS, (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"))
_DINOV2_GATED: Rules = (*_DINOV2, (r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out."))
_DINOV3: Rules = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "layer."),
    (r"\.attn\.(q|k|v)[a-z]+\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
    (r"\.mlp\.fc1(_x)?\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
)
_CLIP: Rules = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm_pre\.", "pre_layrnorm."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.(q|k|v)[a-z]+\.", r".self_attn.\1_proj."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^", "vision_model."),
)
_AIMV2: Rules = (
    (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embed."),
    (r"^patch_embed\.norm\.", "embeddings.rms_norm."),
    (r"^norm\.", "rms_norm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.(q|k|v)[a-z]+\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.norm([12])\.", r".rms_norm\1."),
    (r"\.mlp\.fc1_g\.", ".ffn.gate_proj."),
    (r"\.mlp\.fc1_x\.", ".ffn.up_proj."),
    (r"\.mlp\.fc2\.", ".ffn.down_proj."),
)
_VITDET: Rules = (
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.", ".attention."),
)


@dataclass(frozen=True)
class Target:
    """A class of transformers that an encoder can become."""

    architecture: str
    names: Rules  # from ours to theirs
    notes: tuple[str, ...] = ()


TARGETS: Mapping[str, Target] = {  # by model type, the usual first
    "vit": Target("ViTModel", _VIT, (POOLER,)),
    "deit": Target("DeiTModel", _VIT, (POOLER, "its second token is in the place of DeiT's distillation token")),
    "dinov2": Target("Dinov2Model", _DINOV2),
    "dinov2_with_registers": Target("Dinov2WithRegistersModel", _DINOV2),
    "dinov3_vit": Target("DINOv3ViTModel", _DINOV3),
    "beit": Target("BeitModel", _VIT),
    "clip_vision_model": Target(
        "CLIPVisionModel",
        _CLIP,
        ("the norm is applied to pooler_output alone: take post_layernorm(last_hidden_state)",),
    ),
    "ijepa": Target("IJepaModel", _VIT),
    "siglip_vision_model": Target("SiglipVisionModel", _CLIP),
    "vitdet": Target("VitDetModel", _VITDET),
    "aimv2_vision_model": Target("Aimv2VisionModel", _AIMV2),
}


@dataclass(frozen=True)
class Written:
    """What was written."""

    architecture: str
    notes: tuple[str, ...]


def write_folder(folder: Path, state: State, info: EncoderInfo) -> Written:
    """Write the encoder `state` to the new folder `folder`, all or nothing.

    Raises:
        ValueError: if no class of transformers can be this encoder, saying what is in the way.
        OSError: if the folder cannot be written.
    """
    name, config = config_for(state, info)
    target = TARGETS[name]
    names = _DINOV2_GATED if info.traits.mlp == "swiglu" else target.names
    tensors = {_named(key, names): value for key, value in _separated(dict(state), name, info).items()}
    data = save({key: tensors[key].contiguous() for key in sorted(tensors)}, {"format": "pt", EXPORTED: to_json(info)})
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_json(temporary / "config.json", config)
        write_json(temporary / "preprocessor_config.json", _image_processor(info))
        write_with(temporary / "model.safetensors", lambda file: file.write_bytes(data))
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    resizing = f"positions for images of another size: transformers resizes bicubic, here it is {info.interpolation}"
    images = f"images: mean {info.mean}, standard deviation {info.std}, also in preprocessor_config.json"
    more = (resizing,) if info.traits.positions == "absolute" and info.interpolation != "bicubic" else ()
    return Written(target.architecture, (images, *target.notes, *more))


def config_for(state: State, info: EncoderInfo) -> tuple[str, dict[str, Any]]:
    """Return the model type that is exactly this encoder, and its config.

    Raises:
        ValueError: if there is none, naming the nearest class and what it cannot be.
    """
    faults: dict[str, list[str]] = {}
    order = sorted(TARGETS, key=lambda name: MODEL_TYPES[name].family != info.family)
    for name in order if info.family == "siglip" else TARGETS:
        config = _config(name, state, info)
        faults[name] = _differences(name, config, state, info)
        if not faults[name]:
            about = {"architectures": [TARGETS[name].architecture], "model_type": name, "dtype": "float32"}
            return name, about | config
    nearest = min(faults, key=lambda name: (len(faults[name]), MODEL_TYPES[name].family != info.family))
    raise ValueError(
        f"no class of transformers is this encoder; nearest is {TARGETS[nearest].architecture}, "
        f"which cannot have {', '.join(faults[nearest])}"
    )


def _differences(name: str, config: Mapping[str, Any], state: State, info: EncoderInfo) -> list[str]:
    """Return what the encoder has and a model of this type and config has not, as `trait=value`."""
    kind, traits = MODEL_TYPES[name], _explicit(info.traits, info.vit.width)
    described = Described(config, kind.defaults)
    try:
        read = _explicit(kind.traits(described), info.vit.width)
    except ValueError as error:
        return [str(error)]
    found = [
        f"{field.name}={getattr(traits, field.name)}"
        for field in fields(Traits)
        if getattr(read, field.name) != getattr(traits, field.name)
    ]
    if kind.final_norm(described) != info.final_norm:
        found.append(f"final_norm={info.final_norm}")
    if traits.positions == "rope" and not found:
        found += _rope_differences(described, state, info)
    return found


def _rope_differences(described: Described, state: State, info: EncoderInfo) -> list[str]:
    periods = state["rope.periods"].float()
    computed = rotary_periods(info.vit.width // info.vit.heads, described["rope_theta"])
    if torch.allclose(periods, computed, rtol=1e-6, atol=0):
        return []
    off = float(((periods - computed) / computed).abs().max())
    return [
        f"these rotary periods: it computes them from rope_theta, and those in the file are off by up to {off:.1e} "
        f"(the authors' files hold them in bfloat16's precision)"
    ]


def _explicit(traits: Traits, width: int) -> Traits:
    """Return equal traits with the MLP's width explicit, and without an activation where a gate has its own."""
    gated = traits.mlp != "mlp"
    return replace(traits, hidden=traits.hidden or 4 * width, activation="gelu" if gated else traits.activation)


def _config(name: str, state: State, info: EncoderInfo) -> dict[str, Any]:
    """Return the config of a model type for this encoder."""
    vit, traits = info.vit, info.traits
    hidden = traits.hidden or 4 * vit.width
    gated = name == "aimv2_vision_model" or (name == "dinov3_vit" and traits.mlp == "swiglu_split")
    known: dict[str, Any] = {
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "num_channels": 3,
        "image_size": vit.image,
        "pretrain_image_size": vit.image,
        "patch_size": vit.patch,
        "intermediate_size": hidden,
        "mlp_ratio": _ratio(hidden, vit.width, traits.mlp == "swiglu"),
        "hidden_act": "silu" if gated else FUNCTIONS[traits.activation],
        "layer_norm_eps": traits.norm_eps,
        "rms_norm_eps": traits.norm_eps,
        "is_native": info.interpolation == "regenerate",  # positions computed for the grid of each image
        "qkv_bias": traits.qkv_bias,
        "query_bias": traits.qkv_bias,
        "value_bias": traits.qkv_bias,
        "key_bias": False,
        "proj_bias": traits.proj_bias,
        "mlp_bias": traits.mlp_bias,
        "use_swiglu_ffn": traits.mlp == "swiglu",
        "use_gated_mlp": traits.mlp == "swiglu_split",
        "num_register_tokens": traits.registers,
        "use_relative_position_bias": traits.positions == "relative",
        "use_absolute_position_embeddings": name == "vitdet" and traits.positions == "absolute",
        "layer_scale_init_value": 0.1 if traits.layer_scale else 0.0,
        "use_mean_pooling": not info.final_norm,
        "rope_theta": _theta(state),
    }
    if name == "vitdet" and traits.windows is not None:
        known |= _windows(traits.windows, vit)
    config = {key: known.get(key, value) for key, value in MODEL_TYPES[name].defaults.items()}
    if name in ("dinov2", "dinov2_with_registers"):
        config["use_mask_token"] = False
    if name in HEADS:
        config[HEADS[name]] = False
    return config


def _windows(windows: Windows, vit: ViT) -> dict[str, Any]:
    """Return what VitDet's config says of blocks that attend in windows, with decomposed relative positions."""
    return {
        "window_size": windows.side,
        "window_block_indices": [block for block in range(vit.depth) if block not in windows.global_blocks],
        "use_relative_position_embeddings": True,
        "image_size": (windows.grid or vit.grid) * vit.patch,
    }


def _ratio(hidden: int, width: int, gated: bool) -> int:
    """Return the whole ratio that gives an MLP of this width, by DINOv2's rule for a gate; 4 if none does."""
    given = {ratio: (int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio for ratio in RATIOS}
    fitting = [ratio for ratio, inside in given.items() if inside == hidden]
    return 4 if not fitting or 4 in fitting else fitting[0]


def _theta(state: State) -> float:
    """Return the base of the rotary periods: the second of them to the power of their number."""
    periods = state.get("rope.periods")
    if periods is None or len(periods) < 2:
        return 100.0
    return float(f"{float(periods[1].double()) ** len(periods):.5g}")


# ------------------------------------------------------------------------------------------------------- the weights


def _separated(state: dict[str, Tensor], name: str, info: EncoderInfo) -> dict[str, Tensor]:
    """Return the weights with separate queries, keys and values, and tokens as this model type has them."""
    state.pop("rope.periods", None)  # computed there
    if name == "deit":
        table = state["pos_embed"]
        state["dist_token"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([table[:, :1], torch.zeros_like(table[:, :1]), table[:, 1:]], dim=1)
    if name == "vitdet":
        if "pos_embed" in state:  # with a row for a class token, which it does not use
            row = state["pos_embed"].new_zeros(1, 1, info.vit.width)
            state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
        return state
    if name == "aimv2_vision_model" and info.interpolation == "regenerate":
        del state["pos_embed"]  # computed there
    if name in ("clip_vision_model", "siglip_vision_model", "aimv2_vision_model"):
        for key in ("cls_token", "pos_embed"):
            if key in state:
                state[key] = state[key].flatten() if key == "cls_token" else state[key][0]
    for key in [key for key in state if ".attn.qkv." in key]:
        for part, value in zip(("query", "key", "value"), state.pop(key).chunk(3), strict=True):
            state[key.replace(".qkv.", f".{part}.")] = value
    for part, own in (("query", "q_bias"), ("value", "v_bias")):
        for key in [key for key in state if key.endswith(f".attn.{own}")]:
            state[key.replace(own, f"{part}.bias")] = state.pop(key)
    return state


def _named(key: str, names: Rules) -> str:
    for rule, replacement in names:
        key = re.sub(rule, replacement, key)
    return key


def _image_processor(info: EncoderInfo) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": info.vit.image, "width": info.vit.image},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
    }

"""The family of a file beside which transformers' `config.json` lies: what its weights are called, and what it is.

The config tells what shapes cannot: heads, activation, eps, kinds of positions, statistics of images. Where it
contradicts the tensors the file is refused, naming key and value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.families.beit import SHARED, TABLE, shared_table
from mimbench.backbones.checkpoints.family import Converted, Family, Signature, matches
from mimbench.backbones.checkpoints.huggingface.described import Described, said
from mimbench.backbones.checkpoints.huggingface.folder import EXPORTED, WEIGHTS, Config
from mimbench.backbones.checkpoints.huggingface.models import MODEL_TYPES, TOWERS, ModelType
from mimbench.backbones.checkpoints.huggingface.names import PATCH, converted
from mimbench.backbones.checkpoints.huggingface.refused import REASONS
from mimbench.backbones.checkpoints.info import from_json
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.config import Traits, Windows
from mimbench.backbones.rotary import rotary_periods

Triple = tuple[float, float, float]
DECOMPOSED = "use_relative_position_embeddings"  # ViTDet's, which SAM always has
OWN_NAMES = {"aimv2_vision_model": r"preprocessor\.patchifier\..*"}  # of files with the authors' own code on the hub


def family_of(opened: Opened) -> Family | None:
    """Return the family of a file with a config beside it; None without one, or where the config is another file's.

    A folder that mimbench exported keeps the family it came from, and its way to bring positions to other sizes.

    It is another file's where the file has a name of its own and no weight that the config's model type has, and it is
    the authors' own code's where the file has their names.

    Raises:
        ValueError: in one line, if the model type or something in the config is not supported.
    """
    config = opened.config
    if config is None:
        return None
    named = opened.file.name in WEIGHTS
    name, values = _own(config)
    kind = MODEL_TYPES.get(name)
    known = kind is not None and any(matches(kind.names.patches, key) for key in opened.weights)
    if not known and (not named or any(matches(OWN_NAMES.get(name, ""), key) for key in opened.weights)):
        return None
    if kind is None:
        reason = REASONS.get(name, f"known model types are {', '.join((*TOWERS, *MODEL_TYPES))}")
        raise ValueError(f"{opened.file}: config.json says model_type={name}, which is not supported: {reason}")
    if not known:
        keys = ", ".join(list(opened.weights)[:3])
        raise ValueError(
            f"{opened.file}: config.json says model_type={name}, and the file has no patch embedding of it; "
            f"it begins with {keys}"
        )
    try:
        family = _family(name, kind, Described(values, kind.defaults), config)
        written = from_json(opened.metadata[EXPORTED]) if EXPORTED in opened.metadata else None
    except ValueError as error:
        raise ValueError(f"{opened.file}: {error}") from None
    if written is None:
        return family
    return replace(family, name=written.family, interpolation=written.interpolation, unsure=written.assumed)


def _own(config: Config) -> tuple[str, Mapping[str, Any]]:
    """Return the model type and values of the encoder itself, which models of image and text keep in a part."""
    if config.model_type not in TOWERS:
        return config.model_type, config.values
    part = config.values.get("vision_config")
    return TOWERS[config.model_type], part if isinstance(part, dict) else {}


def _family(name: str, kind: ModelType, config: Described, beside: Config) -> Family:
    traits = kind.traits(config)
    mean, std, note = image_statistics(beside.images, kind)
    dropped = kind.names.dropped
    if traits.positions == "rope" and not traits.registers:
        dropped = (*dropped, (r"(.*\.)?embeddings\.register_tokens", "registers, of which there are none"))

    native = config.has("is_native") and bool(config["is_native"])

    def convert(weights: dict[str, Tensor]) -> Converted:
        return _converted(weights, kind, config, traits)

    def checked(weights: Mapping[str, Tensor]) -> Traits:
        for fault in _contradictions(weights, kind, config, traits):
            raise ValueError(fault)
        return traits

    return Family(
        name=kind.family,
        title=f"{kind.title}, by Hugging Face",
        signature=Signature(has=(kind.names.patches,)),
        source=f"Hugging Face's transformers, model_type {name}",
        renames=kind.names.renames,
        convert=convert,
        dropped=dropped,
        missing=("pos_embed",) if native else (),
        positions="learned" if traits.positions == "absolute" else traits.positions,
        interpolation="regenerate" if native else kind.interpolation,
        mean=mean,
        std=std,
        notes=("heads, activation and eps are those of config.json", *note),
        unsure=("mean", "std") if note else (),
        heads=lambda _width: config.number("num_attention_heads"),
        grid=lambda _weights: config.grid,
        traits=checked,
    )


def image_statistics(images: Mapping[str, Any], kind: ModelType) -> tuple[Triple, Triple, tuple[str, ...]]:
    """Return mean and standard deviation of pixels in 0..1, and what to note of them.

    Raises:
        ValueError: if the image processor's numbers are not three each.
    """
    if not images:
        return kind.mean, kind.std, ("no preprocessor_config.json beside it tells the images' mean: it is assumed",)
    if images.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ()
    if "image_mean" not in images or "image_std" not in images:
        return kind.mean, kind.std, ("preprocessor_config.json does not tell the images' mean: it is assumed",)
    scale = 255 * (images.get("rescale_factor", 1 / 255) if images.get("do_rescale", True) else 1.0)
    mean, std = (_triple(key, images[key], scale) for key in ("image_mean", "image_std"))
    return mean, std, ()


def _triple(key: str, value: object, scale: float) -> Triple:
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"preprocessor_config.json says {key}={value}, which is not a number for each of 3 colours")
    published = abs(scale - 1) < 1e-6  # pixels in 0..1: the numbers stay as they are, to the last bit
    first, second, third = (float(number) / (1.0 if published else scale) for number in numbers)
    return first, second, third


# ------------------------------------------------------------------------------------------------- the file's tensors


def _converted(weights: dict[str, Tensor], kind: ModelType, config: Described, traits: Traits) -> Converted:
    made, how = converted(weights, kind.steps)
    if traits.positions in ("absolute", "none"):  # BEiT's without a table have the plain block's one bias
        made, how = _plain_block(made, how)
    if traits.windows is not None and config.has(DECOMPOSED) and not config[DECOMPOSED]:
        made, how = _with_zero_tables(made, how, config, traits.windows)
    if SHARED in made:
        tables, copies = shared_table(made)
        made, how = tables, {**how, **copies}
    if traits.positions == "rope":
        heads = config.width // config.number("num_attention_heads")
        made["rope.periods"] = rotary_periods(heads, float(config["rope_theta"]))
        how["rope.periods"] = f"computed from rope_theta={config['rope_theta']}, as transformers does"
    return made, how


def _with_zero_tables(made: dict[str, Tensor], how: dict[str, str], config: Described, windows: Windows) -> Converted:
    """Give blocks that attend in windows without relative positions tables of zeros, which is equal."""
    tables = dict[str, Tensor]()
    for block in range(config.number("num_hidden_layers")):
        rows = 2 * windows.side_of(block, config.grid) - 1
        width = config.width // config.number("num_attention_heads")
        tables |= {f"blocks.{block}.attn.rel_pos_{axis}": torch.zeros(rows, width) for axis in "hw"}
    if (key := next((key for key in tables if key in made), None)) is not None:
        raise ValueError(f"{said(DECOMPOSED, False)}, and the file has {key}")
    return {**made, **tables}, {**how, **dict.fromkeys(tables, "zeros: it has no relative positions")}


def _plain_block(made: dict[str, Tensor], how: dict[str, str]) -> Converted:
    for key in [key for key in made if key.endswith((".gamma_1", ".gamma_2"))]:
        renamed = key.replace(".gamma_", ".ls") + ".gamma"
        made[renamed], how[renamed] = made.pop(key), "LayerScale"
    for key in [key for key in made if key.endswith(".attn.q_bias")]:
        value = key.replace(".q_bias", ".v_bias")
        if value in made:
            parts = made.pop(key), made.pop(value)
            joined = key.replace(".q_bias", ".qkv.bias")
            made[joined] = torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]])
            how = {name: note for name, note in how.items() if name not in (key, value)}
            how[joined] = "queries' and values' bias, and zeros for the keys, which have none"
    return made, how


def _contradictions(weights: Mapping[str, Tensor], kind: ModelType, config: Described, traits: Traits) -> Iterator[str]:
    """Yield what the config says and the tensors contradict."""
    kernel = weights.get(PATCH)
    if kernel is None or kernel.ndim != 4:
        return  # `match` says so
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    first = weights.get("blocks.0.mlp.fc1.weight", weights.get("blocks.0.mlp.fc1_g.weight"))
    held: list[tuple[str, int, int, str]] = [
        ("hidden_size", config.width, len(kernel), "patches are embedded in {} channels"),
        ("num_channels", config.number("num_channels"), kernel.shape[1], "images have {} channels"),
        ("patch_size", config.side("patch_size"), kernel.shape[2], "patches have sides of {} pixels"),
        ("num_hidden_layers", config.number("num_hidden_layers"), len(blocks), "there are {} blocks"),
    ]
    if first is not None:
        key = "mlp_ratio" if config.has("mlp_ratio") else "intermediate_size"
        inside = config.hidden * (2 if traits.mlp == "swiglu" else 1)
        held.append((key, inside, len(first), f"the MLP's first matrix has {{}} rows, not {inside}"))
    if config.has("num_register_tokens") and "reg_token" in weights:
        registers = weights["reg_token"].shape[1]
        held.append(("num_register_tokens", config["num_register_tokens"], registers, "there are {} registers"))
    for key, wanted, found, what in held:
        if wanted != found:
            yield f"{said(key, config[key])}, and in the file {what.format(found)}"
    yield from _of_positions(weights, config, traits)
    yield from _of_parts(weights, kind, config, traits)


def _of_positions(weights: Mapping[str, Tensor], config: Described, traits: Traits) -> Iterator[str]:
    key = next(key for key in ("num_patches", "pretrain_image_size", "image_size") if config.has(key))
    table = weights.get("pos_embed")
    if traits.positions == "absolute" and table is not None and table.ndim == 3:
        extra = 0 if config.has("num_patches") or (not traits.class_token and key == "image_size") else 1
        if table.shape[1] != config.grid**2 + extra:
            yield (
                f"{said(key, config[key])} with patch_size={config['patch_size']}, and the position table has "
                f"{table.shape[1]} rows, not {config.grid**2 + extra}"
            )
    if traits.windows is not None:
        yield from _of_windows(weights, config, traits.windows)
    biases = weights.get(f"blocks.0.{TABLE}")
    if traits.positions == "relative" and biases is not None and biases.ndim == 2:
        rows = (2 * config.grid - 1) ** 2 + 3
        if len(biases) != rows:
            yield f"{said(key, config[key])}, and the table of relative positions has {len(biases)} rows, not {rows}"
        if biases.shape[1] != config["num_attention_heads"]:
            heads = config["num_attention_heads"]
            yield f"{said('num_attention_heads', heads)}, and relative positions are of {biases.shape[1]} heads"


def _of_windows(weights: Mapping[str, Tensor], config: Described, windows: Windows) -> Iterator[str]:
    for block in range(config.number("num_hidden_layers")):
        table, rows = weights.get(f"blocks.{block}.attn.rel_pos_h"), 2 * windows.side_of(block, config.grid) - 1
        if table is not None and len(table) != rows:
            key = "image_size" if block in windows.global_blocks else "window_size"
            yield f"{said(key, config[key])}, and block {block}'s relative positions have {len(table)} rows, not {rows}"


def _of_parts(weights: Mapping[str, Tensor], kind: ModelType, config: Described, traits: Traits) -> Iterator[str]:
    """Yield weights whose presence contradicts the config."""
    bias = "blocks.0.attn.q_bias" if traits.separate_bias or traits.positions == "rope" else "blocks.0.attn.qkv.bias"
    gamma = "blocks.0.gamma_1" if traits.gammas else "blocks.0.ls1.gamma"
    shared = config.has("use_shared_relative_position_bias") and config["use_shared_relative_position_bias"]
    relative = "use_shared_relative_position_bias" if shared else "use_relative_position_bias"
    parts: list[tuple[str, bool, str]] = [
        ("qkv_bias", traits.qkv_bias, bias),
        ("query_bias", traits.qkv_bias, bias),
        ("proj_bias", traits.proj_bias, "blocks.0.attn.proj.bias"),
        ("mlp_bias", traits.mlp_bias, "blocks.0.mlp.fc2.bias"),
        ("use_gated_mlp", traits.mlp == "swiglu_split", "blocks.0.mlp.fc1_g.weight"),
        ("layer_scale_init_value", traits.layer_scale, gamma),
        (DECOMPOSED, traits.windows is not None, "blocks.0.attn.rel_pos_h"),
        ("use_absolute_position_embeddings", traits.positions == "absolute", "pos_embed"),
        (relative, traits.positions == "relative", f"blocks.0.{TABLE}"),
    ]
    for key, wanted, name in parts:
        if config.has(key) and wanted != (name in weights):
            yield f"{said(key, config[key])}, and the file has {'no ' if wanted else ''}{name}"
    if kind.final_norm(config) and "norm.weight" not in weights:
        yield f"{said('model_type', kind.family)}, which has a final norm, and the file has none"

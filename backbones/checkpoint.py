"""Encoder checkpoints in and out.

Ours is a safetensors file that holds the encoder alone and says in its metadata what it is; the same weights give
the same bytes. Taken in as well: the .pth files of the methods in `FAMILIES`, of which the encoder's part is kept.
The family is told by the names of the weights, the sizes by their shapes.

Files are data, never code: pickles are opened with torch's safe loading, and may hold nothing beyond tensors, plain
values and `argparse.Namespace` (the options that MAE and CrossMAE keep in their files).
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backbones.config import ViT
from backbones.positions import square_side
from backbones.vit import VisionTransformer
from engine.atomic import write_with

METADATA = "mimbench"  # the one metadata key of our files; its value is EncoderInfo as JSON
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderInfo:
    """What an encoder is: enough to build it, to feed it, and to say where it came from."""

    family: str  # of FAMILIES
    vit: ViT
    final_norm: bool  # it has a final norm with learned scale, `norm.*`
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the images it was pretrained on, in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    positions: str = "sincos"
    recipe: str | None = None
    identity: str | None = None  # of the run that pretrained it


@dataclass(frozen=True)
class Family:
    """How the files of a pretraining method are recognised, and which of their weights are not the encoder's."""

    name: str
    signature: tuple[str, ...]  # a file with any of these keys is of this family
    dropped: tuple[str, ...]  # beginnings of keys that belong to pretraining


FAMILIES = (  # the first whose signature matches
    Family(
        "crossmae",
        ("wfm.linear.weight", "decoder_blocks.0.cross_attn.q.weight"),
        ("decoder_", "dec_norms.", "wfm.", "mask_token"),
    ),
    Family("mae", ("decoder_embed.weight", "norm.weight"), ("decoder_", "mask_token")),
    Family("plain", ("cls_token",), ()),  # an encoder without final norm whose origin the file does not tell
)


def save_encoder(path: str | Path, state: Mapping[str, Tensor], about: EncoderInfo) -> None:
    """Write the encoder `state` to `path`, atomically; the same weights and `about` give the same bytes.

    Keys of `state` that are not the encoder's (a decoder's) are left out.

    Raises:
        ValueError: if a weight of the encoder is missing or has another shape than `about` says.
        OSError: if it cannot be written; what was at `path` before stays.
    """
    wanted = _shapes(about.vit, about.final_norm)
    tensors = {key: state[key].detach().cpu().contiguous().clone() for key in sorted(wanted) if key in state}
    _require(tensors, about.vit, about.final_norm, Path(path))
    data = save(tensors, {METADATA: json.dumps(asdict(about), sort_keys=True)})
    write_with(Path(path), lambda temporary: temporary.write_bytes(data))


def load_encoder(path: str | Path) -> tuple[dict[str, Tensor], EncoderInfo]:
    """The encoder weights in the file at `path`, on the CPU, and what they are.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line, if the file is not a checkpoint, is not safe to open, is of no known family, or lacks
            weights of the encoder or holds unexpected ones.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint {file} does not exist")
    if file.suffix == ".safetensors":
        return _load_ours(file)
    return _encoder_of(_load_pickled(file), file)


def build_encoder(
    checkpoint: str | Path | None, vit: ViT, pool: Literal["avg", "cls"] = "avg"
) -> tuple[VisionTransformer, EncoderInfo | None]:
    """The encoder in `checkpoint`; without one, a random encoder shaped like `vit`, drawn from torch's generator."""
    if checkpoint is None:
        return VisionTransformer(vit, pool=pool), None
    state, info = load_encoder(checkpoint)
    model = VisionTransformer(info.vit, info.final_norm, pool)
    model.load_state_dict(state)
    return model, info


def _load_ours(file: Path) -> tuple[dict[str, Tensor], EncoderInfo]:
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    if METADATA not in metadata:
        return _encoder_of(state, file)
    info = _info_from_json(metadata[METADATA], file)
    _require(state, info.vit, info.final_norm, file)
    return state, info


def _info_from_json(text: str, file: Path) -> EncoderInfo:
    try:
        values = json.loads(text)
        pairs = {key: tuple(values[key]) for key in ("mean", "std")}
        return EncoderInfo(**{**values, **pairs, "vit": ViT(**values["vit"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} has metadata of another version of mimbench, or none of ours: {error}") from None


def _load_pickled(file: Path) -> dict[str, Any]:
    """The state dictionary in a .pth file, itself or under "model"; memory-mapped where the format allows."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle's protocol; what matters is raised
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipfile.is_zipfile(file) else []
            if foreign:
                raise ValueError(_refusal(file, foreign))
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        found = re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))
        why = _refusal(file, found) if found else f"{file} is not a checkpoint that torch can read"
        raise ValueError(why) from None
    except (RuntimeError, EOFError, KeyError, zipfile.BadZipFile):
        raise ValueError(f"{file} is not a checkpoint that torch can read, or is cut short") from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no weights: neither a state dictionary nor one under 'model'")
    return state


def _refusal(file: Path, foreign: list[str]) -> str:
    return (
        f"{file} is refused: it holds objects of {', '.join(sorted(foreign)[:5])}, and opening it would run "
        "their code; save its state_dict alone and give that"
    )


def _encoder_of(state: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], EncoderInfo]:
    """The encoder's part of a foreign state dictionary, its family and its sizes."""
    family = next((family for family in FAMILIES if any(key in state for key in family.signature)), None)
    if family is None:
        known = ", ".join(f"{known.name} (by {known.signature[0]})" for known in FAMILIES)
        raise ValueError(f"{file} is of no known family: {known}; it begins with {', '.join(list(state)[:3])}")
    kept = {key: value for key, value in state.items() if not key.startswith(family.dropped)}
    weights = {key: value.float().clone() for key, value in kept.items() if isinstance(value, Tensor)}
    vit, final_norm = _sizes(weights, file), "norm.weight" in weights
    _require(weights, vit, final_norm, file)
    return weights, EncoderInfo(family.name, vit, final_norm)


def _sizes(state: Mapping[str, Tensor], file: Path) -> ViT:
    """The sizes that the shapes tell. Heads leave no trace: 64 channels each, but 80 in ViT-H (1280), in all papers."""
    for key, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if key not in state or state[key].ndim != axes:
            raise ValueError(f"{file} is not a plain ViT encoder: {key} is missing or has not {axes} axes")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    if width % 64:
        raise ValueError(
            f"{file}: an encoder {width} wide does not tell its heads; the papers' widths are of 64 a head"
        )
    depth = 1 + max((int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key)), default=-1)
    try:
        return ViT(width, depth, 16 if width == 1280 else width // 64, patch, square_side(state["pos_embed"]) * patch)
    except ValueError as error:
        raise ValueError(f"{file} is not a plain ViT encoder: {error}") from None


def _shapes(vit: ViT, final_norm: bool) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in VisionTransformer(vit, final_norm).state_dict().items()}


def _require(state: Mapping[str, Tensor], vit: ViT, final_norm: bool, file: Path) -> None:
    """Refuse a state that is not exactly an encoder of these sizes."""
    wanted = _shapes(vit, final_norm)
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    misshapen = [key for key in sorted(wanted.keys() & state.keys()) if state[key].shape != wanted[key]]
    faults = {"lacks": missing, "holds unexpected": unexpected, "has the wrong shape in": misshapen}
    said = [f"{fault} {', '.join(keys[:3])}" for fault, keys in faults.items() if keys]
    if said:
        raise ValueError(f"{file} is not a plain ViT encoder: it {' and '.join(said)}")

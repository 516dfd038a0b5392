"""Encoder checkpoints in and out.

    state, info = load_encoder("mae_pretrain_vit_base_full.pth")     # any family of backbones/checkpoints/families
    model, info = build_encoder("crossmae_vitb.pth", vit)            # the same, as a model
    save_encoder("encoder.safetensors", model.state_dict(), info)    # ours: the same weights give the same bytes

A short interface to `backbones.weights`. The names and shapes of the weights tell which family a file belongs to. Every
key must be accounted for; otherwise loading stops and names the key (`backbones/checkpoints/match.py`). No code in a
file is ever run (`backbones/checkpoints/opening.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mimbench.backbones.checkpoints.info import EncoderInfo, to_json
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA
from mimbench.backbones.config import Interpolation, ViT
from mimbench.backbones.shapes import encoder_shapes
from mimbench.backbones.user_encoder import load_user_encoder
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import Pool, open_weights
from mimbench.engine.run.atomic import write_with

__all__ = ["EncoderInfo", "build_encoder", "load_encoder", "save_encoder"]


def save_encoder(path: str | Path, state: Mapping[str, Tensor], about: EncoderInfo) -> None:
    """Write the encoder `state` to `path`, atomically; the same weights and `about` give the same bytes.

    Keys of `state` that do not belong to the encoder (a decoder's, for example) are left out.

    Raises:
        ValueError: if a weight of the encoder is missing, or its shape differs from `about`.
        OSError: if the file cannot be written; an existing file at `path` is then unchanged.
    """
    wanted = encoder_shapes(about.vit, about.final_norm, about.traits)
    lacking = [key for key in sorted(wanted) if key not in state]
    misshapen = [key for key in sorted(wanted) if key in state and state[key].shape != wanted[key]]
    for fault, keys in (("lacks", lacking), ("has the wrong shape in", misshapen)):
        if keys:
            raise ValueError(f"{path} is not written: the encoder {fault} {', '.join(keys[:3])}")
    tensors = {key: state[key].detach().cpu().contiguous().clone() for key in sorted(wanted)}
    data = save(tensors, {METADATA: to_json(about)})
    write_with(Path(path), lambda temporary: temporary.write_bytes(data))


def load_encoder(
    path: str | Path, *, allow_partial: bool = False, copy: str | None = None
) -> tuple[dict[str, Tensor], EncoderInfo]:
    """Load the encoder weights in the file at `path`, in float32 on the CPU, with their description.

    Args:
        path: a file of any known family, or any other location that `checkpoints.location` accepts. The function in
            `my_encoder.py:build` must return a `VisionTransformer` of mimbench.
        allow_partial: accept keys that are not accounted for. Missing weights are drawn at random, the same each time;
            unknown ones are left out; `EncoderInfo.partial` names both.
        copy: the set of weights to take from a file that holds several ("ema", "teacher", ...).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if the file is not a checkpoint, is not safe to open, belongs to no known family, has
            keys that are not accounted for, contradicts itself, or holds weights that are not finite.
    """
    if user_code(path) is not None:
        model, info = load_user_encoder(path).build()
        return dict(model.state_dict()), info
    found = open_weights(path, allow_partial=allow_partial, copy=copy)
    return found.encoder, found.info


def build_encoder(
    checkpoint: str | Path | None,
    vit: ViT,
    pool: Pool = "avg",
    *,
    allow_partial: bool = False,
    interpolation: Interpolation | None = None,
) -> tuple[VisionTransformer, EncoderInfo | None]:
    """Build the encoder in `checkpoint`; without one, a random encoder shaped like `vit`, from torch's generator.

    `interpolation` resizes its positions to other grids; the default is the method of the checkpoint's family.
    A user's function (`my_encoder.py:build`) must return a `VisionTransformer` of mimbench; `backbones.user_encoder`
    accepts other encoders.

    Raises:
        FileNotFoundError, ValueError: as `load_encoder`.
    """
    if checkpoint is None:
        return VisionTransformer(vit, pool=pool, interpolation=interpolation or "bicubic"), None
    if user_code(checkpoint) is not None:
        return load_user_encoder(checkpoint).build(pool, interpolation)
    return open_weights(checkpoint, allow_partial=allow_partial).build_encoder(pool, interpolation)

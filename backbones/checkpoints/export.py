"""Write an encoder as a file for another library, with the metadata to restore the encoder exactly.

    safetensors   mimbench's format: canonical names, and `EncoderInfo` as JSON in the metadata `mimbench`
    timm          the same, and as JSON in the metadata `timm`: the architecture and the arguments of
                  `timm.create_model` that build exactly this encoder (`timm_model`); it loads with strict=True
    detectron2    {"model": ...} for its `DetectionCheckpointer`, with a ViTDet detector's names (`backbone.net.*`)
    mae           {"model": ...}, for the fine-tuning and the linear probing of MAE's repository
    huggingface   a folder for `AutoModel.from_pretrained` of transformers (`huggingface.export`)

No weight is invented, left out or resampled. ViTDet has neither class token nor final norm: the file keeps them beside
"model", under "mimbench", where detectron2 ignores them. Relative positions and the pyramid are not part of an encoder;
they are absent, and the detector initialises them. An encoder without a final norm (CrossMAE) is exported without one:
timm gets `final_norm=False`; MAE's code has no such setting, but needs no norm when it averages the patches
(`--global_pool`).

The same encoder gives the same bytes. `load_encoder` reads the written file back bit for bit, with the same
`EncoderInfo` and the same `content_hash`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from mimbench.backbones.checkpoints.digest import Hashes, tensors_hash
from mimbench.backbones.checkpoints.huggingface.export import write_folder
from mimbench.backbones.checkpoints.huggingface.folder import WEIGHTS, weights_file
from mimbench.backbones.checkpoints.info import EncoderInfo, meaning, to_json
from mimbench.backbones.checkpoints.location import parse_location
from mimbench.backbones.checkpoints.safetensors_header import METADATA
from mimbench.backbones.checkpoints.timm_model import timm_model
from mimbench.backbones.checkpoints.weight_sets import DETECTOR
from mimbench.backbones.config import SIZES, Traits, ViT
from mimbench.backbones.positions import resize_kernel, resize_positions
from mimbench.backbones.vitdet import NOT_IN_VITDET, detectron2_reason
from mimbench.backbones.weights import Weights, open_weights
from mimbench.engine.run.atomic import write_with

Target = Literal["safetensors", "timm", "detectron2", "mae", "huggingface"]
SUFFIX: dict[Target, str] = {"safetensors": ".safetensors", "timm": ".safetensors", "detectron2": ".pth", "mae": ".pth"}
IN_DETECTOR = "backbone.net."  # prefix of the encoder's names in a ViTDet detector
MAE_MODELS = {"B": "vit_base_patch16", "L": "vit_large_patch16", "H": "vit_huge_patch14"}
LEAST_PATCH = 4  # pixels; the stride of the finest level of ViTDet's pyramid is a quarter of the patch

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Export:
    """The written file, and how the other library reads it."""

    file: str
    target: Target
    family: str
    tensors: int
    bytes: int
    content: str  # the encoder's `content_hash`, the same for source and export
    usage: str  # a line of Python or of a shell
    notes: tuple[str, ...]  # facts that the file cannot tell the other library


@dataclass(frozen=True)
class _Content:
    """The content of a file."""

    tensors: dict[str, Any]  # of a safetensors file, or everything that is pickled
    usage: str  # with FILE in place of its name
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None  # of a safetensors file


def export_encoder(source: str | Path, target: str, out: str | Path | None = None, patch: int | None = None) -> Export:
    """Write the encoder in the checkpoint `source` for `target`, to `out` or to `default_name` in this directory.

    With `patch` it is first resampled to patches of that side in pixels, which changes the encoder (see `resampled`).

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: if `source` is not an encoder, `target` is unknown or cannot hold it, or `out` has a wrong suffix.
        OSError: if `out` exists or cannot be written.
    """
    to = _known(target)
    if to == "huggingface":
        return _folder(source, Path(out).expanduser() if out is not None else Path(default_name(source, to)), patch)
    file = _free(Path(out).expanduser() if out is not None else Path(default_name(source, to)), to)
    if to == "detectron2" and patch is None and (detector := open_weights(source, "detector")).kind == "detector":
        if (reason := _unlike_detectron2(detector)) is not None:
            raise ValueError(f"{source} cannot be exported for {to}: {reason}")
        return _whole_detector(detector.tensors, file)
    found = open_weights(source)
    state, info = found.encoder, found.info
    try:
        state, info = (state, info) if patch is None else resampled(state, info, patch)
        content = WRITERS[to](dict(sorted(state.items())), info)
    except ValueError as error:
        raise ValueError(f"{source} cannot be exported for {to}: {error}") from None
    write_with(file, lambda temporary: _write(temporary, content))
    return Export(
        file=str(file),
        target=to,
        family=info.family,
        tensors=len(state),
        bytes=file.stat().st_size,
        content=Hashes.of(tensors_hash(state), meaning(info)).content,
        usage=content.usage.replace("FILE", str(file)),
        notes=content.notes,
    )


def _unlike_detectron2(detector: Weights) -> str | None:
    """Return why detectron2 cannot run a whole detector, by what mimbench stored beside its weights; None if it can."""
    about = json.loads(detector.opened.metadata.get(DETECTOR, "{}"))
    reason: str | None = about.get("beyond_detectron2")
    return reason or detectron2_reason(Traits(**about.get("traits", {})))


def _folder(source: str | Path, folder: Path, patch: int | None) -> Export:
    """Export the encoder as a folder for transformers."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it, or name another folder with --output")
    found = open_weights(source)
    state, info = found.encoder, found.info
    try:
        state, info = (state, info) if patch is None else resampled(state, info, patch)
        written = write_folder(folder, state, info)
    except ValueError as error:
        raise ValueError(f"{source} cannot be exported for huggingface: {error}") from None
    return Export(
        file=str(folder),
        target="huggingface",
        family=info.family,
        tensors=len(state),
        bytes=sum(file.stat().st_size for file in folder.iterdir()),
        content=Hashes.of(tensors_hash(state), meaning(info)).content,
        usage=f"transformers.AutoModel.from_pretrained('{folder}')  # {written.architecture}",
        notes=written.notes,
    )


def _whole_detector(weights: State, file: Path) -> Export:
    """Export a detector as detectron2 saves one: all its weights with their own names."""
    content = _Content({"model": dict(sorted(weights.items()))}, "DetectionCheckpointer(model).load('FILE')")
    write_with(file, lambda temporary: _write(temporary, content))
    return Export(
        file=str(file),
        target="detectron2",
        family="the whole detector",
        tensors=len(weights),
        bytes=file.stat().st_size,
        content=tensors_hash(weights),
        usage=content.usage.replace("FILE", str(file)),
        notes=("build the detector with the sizes it was trained with; then no weight is missing or unexpected",),
    )


def default_name(source: str | Path, target: Target) -> str:
    """Return the default name: `encoder-timm.safetensors` for encoder.pth and timm, a folder for huggingface."""
    file = weights_file(parse_location(str(source))[0])
    stem = file.absolute().parent.name if file.name in WEIGHTS else file.stem
    return f"{stem}-{target}{SUFFIX.get(target, '')}"


def _free(file: Path, target: Target) -> Path:
    if file.suffix != SUFFIX[target]:
        raise ValueError(f"--output {file}: a file for {target} must end in {SUFFIX[target]}")
    if file.exists():
        raise FileExistsError(f"{file} exists; remove it, or give another file with --output")
    return file


def _known(target: str) -> Target:
    for known in get_args(Target):
        if target == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"--to {target}: it must be one of {', '.join(get_args(Target))}")


# --------------------------------------------------------------------------------------------------- what goes into it


def _ours(state: State, info: EncoderInfo) -> _Content:
    usage = "mimbench evaluate FILE --on knn,linear,finetune,coco"
    return _Content(dict(state), usage, metadata={METADATA: to_json(info)})


def _timm(state: State, info: EncoderInfo) -> _Content:
    name, arguments = timm_model(state, info)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    images = {"input_size": [3, info.vit.image, info.vit.image], "mean": info.mean, "std": info.std}
    about = json.dumps({"architecture": name, "model_args": arguments, "pretrained_cfg": images}, sort_keys=True)
    notes = [f"images: mean {info.mean}, standard deviation {info.std}"]
    if not info.final_norm:
        notes.append("final_norm=False, because this encoder has none; otherwise timm adds an untrained norm")
    return _Content(
        dict(state),
        f"timm.create_model('{name}', checkpoint_path='FILE', {given})",
        tuple(notes),
        {METADATA: to_json(info), "timm": about},
    )


def _mae(state: State, info: EncoderInfo) -> _Content:
    if not info.traits.plain:
        raise ValueError(f"MAE's code supports only the plain ViT, and this encoder has {_departures(info.traits)}")
    name = next((name for size, name in MAE_MODELS.items() if _body(SIZES[size]) == _body(info.vit)), None)
    notes = [] if name else ["MAE's code has no model of this size; add one to its models_vit.py"]
    if not info.final_norm:
        notes.append("no final norm: MAE's code works with --global_pool, but --cls_token needs norm.* and stops")
    usage = (
        f"python main_finetune.py --finetune FILE --model {name or 'MODEL'} --input_size {info.vit.image} --global_pool"
    )
    return _Content({"model": dict(state), METADATA: {"about": to_json(info)}}, usage, tuple(notes))


def _body(vit: ViT) -> tuple[int, int, int, int]:
    return vit.width, vit.depth, vit.heads, vit.patch


def _departures(traits: Traits) -> str:
    """Return the differences from the plain ViT, as `field=value`."""
    plain = asdict(Traits())
    return ", ".join(f"{name}={value}" for name, value in asdict(traits).items() if value != plain[name])


def _detectron2(state: State, info: EncoderInfo) -> _Content:
    vit = info.vit
    reason = detectron2_reason(info.traits)
    if reason is not None:
        raise ValueError(reason)
    if vit.patch < LEAST_PATCH or vit.patch & (vit.patch - 1):
        raise ValueError(
            f"patches of {vit.patch} pixels give ViTDet's pyramid strides that are not powers of 2; --patch 16 "
            "resamples them, as for detectron2's own ViT-H, which changes the encoder"
        )
    named = {f"{IN_DETECTOR}{key}": value for key, value in state.items()}
    beside = {f"{IN_DETECTOR}{key}": state[key] for key in NOT_IN_VITDET if key in state}
    model = {key: value for key, value in named.items() if key not in beside}
    sizes = f"patch_size={vit.patch}, embed_dim={vit.width}, depth={vit.depth}, num_heads={vit.heads}"
    table = f"pretrain_img_size={vit.image}, pretrain_use_cls_token={info.traits.class_token}"
    notes = (
        f"the detector's ViT must have {sizes}, {table}",
        "detectron2 reports as missing, correctly: rel_pos_*, the pyramid and the heads; unexpected: nothing",
        f"the detector must have pixel_mean={_of_255(info.mean)}, pixel_std={_of_255(info.std)}",
    )
    tree = {"model": model, METADATA: {"about": to_json(info), **beside}}
    return _Content(tree, "DetectionCheckpointer(model).load('FILE')", notes)


def _of_255(values: Iterable[float]) -> list[float]:
    return [round(255 * value, 3) for value in values]


WRITERS: Mapping[Target, Callable[[State, EncoderInfo], _Content]] = {
    "safetensors": _ours,
    "timm": _timm,
    "detectron2": _detectron2,
    "mae": _mae,
}


def resampled(state: State, info: EncoderInfo, patch: int) -> tuple[dict[str, Tensor], EncoderInfo]:
    """Resample the encoder to another patch size at the same image size: kernel and positions bicubic, as in ViTDet.

    Raises:
        ValueError: if the side of the pretraining image is not a multiple of `patch`.
    """
    vit = replace(info.vit, patch=patch)
    resized = dict(state)
    resized["patch_embed.proj.weight"] = resize_kernel(state["patch_embed.proj.weight"], patch)
    if "pos_embed" in state:
        resized["pos_embed"] = resize_positions(state["pos_embed"], (vit.grid, vit.grid), "bicubic")
    return resized, replace(info, vit=vit)


# ---------------------------------------------------------------------------------------------------------- the file


def _write(file: Path, content: _Content) -> None:
    if content.metadata is None:
        with file.open("wb") as handle:  # a handle, because torch writes a path's name into the file
            torch.save(content.tensors, handle)
        return
    data = memoryview(save(content.tensors, dict(content.metadata)))
    length = 8 + int.from_bytes(data[:8], "little")
    with file.open("wb") as handle:
        handle.write(data[:8])
        handle.write(_sorted(bytes(data[8:length])))
        handle.write(data[length:])


def _sorted(header: bytes) -> bytes:
    """Return the header of a safetensors file with sorted metadata; the library's order differs from run to run."""
    entries = json.loads(header)
    entries = {"__metadata__": dict(sorted(entries.pop("__metadata__").items())), **entries}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header))
    assert len(text) == len(header), "the same entries in another order take the same room"
    return text

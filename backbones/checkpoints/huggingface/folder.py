"""A folder as transformers' `save_pretrained` writes it: which file holds the weights, and what `config.json` says.

    weights_file(Path("dinov2-base"))     dinov2-base/model.safetensors
    config_beside(file)                   the values of config.json and of preprocessor_config.json beside it, or None

A config counts only if it names a `model_type`, as transformers' do; timm's config.json, for one, does not, and
transformers' wrapper of timm's models writes timm's (`checkpoints.stated` reads it). C-RADIO's files have its authors'
names, which tell more than the config. Without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WEIGHTS = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG = "config.json"
IMAGES = ("preprocessor_config.json", "processor_config.json")  # of which the second holds the first in a part
EXPORTED = "mimbench_exported"  # the metadata key of folders that mimbench wrote; its value is `EncoderInfo` as JSON
NOT_THEIRS = ("timm_wrapper", "radio")  # model types whose files are read as those of timm and of NVIDIA
LARGEST = 2**22  # bytes of a JSON file that are read


@dataclass(frozen=True)
class Config:
    """What lies beside a file of weights."""

    file: Path  # of config.json
    values: Mapping[str, Any]  # of config.json
    images: Mapping[str, Any] = field(default_factory=dict)  # of the image processor; empty where there is none

    @property
    def model_type(self) -> str:
        """transformers' name of the model's kind: "dinov2"."""
        return str(self.values["model_type"])


def weights_file(path: Path) -> Path:
    """Return the file of weights in the folder `path`; `path` itself if it is no folder, or holds none by these names.

    Raises:
        ValueError: if the folder holds shards of a checkpoint and not their index.
    """
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        shards = sorted(path.glob(f"{stem}-*-of-*.{suffix}"))
        if shards:
            raise ValueError(
                f"{path} holds {shards[0].name} and no {stem}.{suffix}.index.json, which names all shards; fetch it too"
            )
    return path


def is_weights_folder(path: Path) -> bool:
    """Return whether `path` is a folder with a file of weights by one of transformers' names."""
    return path.is_dir() and any((path / name).is_file() for name in WEIGHTS)


def shown_name(file: Path) -> str:
    """Return the name by which people know the checkpoint `file`: of transformers' files, the folder's name."""
    return file.parent.name if file.name in WEIGHTS else file.name


def config_beside(file: Path) -> Config | None:
    """Return what lies beside the file of weights `file`; None without a `config.json` that names a `model_type`.

    Raises:
        ValueError: naming the JSON file that cannot be read.
    """
    described = file.parent / CONFIG
    if not described.is_file():
        return None
    values = _read(described, file.name in WEIGHTS)
    of_transformers = "model_type" in values and values["model_type"] not in NOT_THEIRS
    return Config(described, values, _images(file.parent)) if of_transformers else None


def version_beside(file: Path) -> tuple[tuple[int, int], ...]:
    """Return size and time of each JSON file that `config_beside` reads."""
    stats = (part.stat() for name in (CONFIG, *IMAGES) if (part := file.parent / name).is_file())
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _images(folder: Path) -> Mapping[str, Any]:
    whole, part = (folder / name for name in IMAGES)
    if whole.is_file():
        return _read(whole, True)
    found = _read(part, True).get("image_processor") if part.is_file() else None
    return found if isinstance(found, dict) else {}


def _read(file: Path, required: bool) -> Mapping[str, Any]:
    """The object in a JSON file; one that is none is empty, or refused where it is `required`."""
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= LARGEST else None
    except (OSError, ValueError):
        values = None
    if isinstance(values, dict):
        return values
    if required:
        raise ValueError(f"{file} is not a JSON object, as transformers writes it; fetch it again")
    return {}

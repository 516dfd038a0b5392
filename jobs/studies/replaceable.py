"""Check a checkpoint that stands in for a pretraining of a study: it must have the size that the recipes are for.

mimbench plan crossmae/table1 --from pretrained=vit_small.pth     refused: the study is of ViT-B
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mimbench.backbones.checkpoints.info import from_json
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.checkpoints.safetensors_header import METADATA, read_header
from mimbench.backbones.config import SIZES, ViT


def require_shape(file: Path, wanted: ViT, name: str) -> None:
    """Check that the encoder in `file` has the width and depth of the encoder that pretraining `name` makes.

    A file that does not exist, user code and what is no encoder are left to whoever opens them.

    Raises:
        ValueError: if it has another size.
    """
    found = _shape(file)
    if found is not None and (found.width, found.depth) != (wanted.width, wanted.depth):
        raise ValueError(
            f"--from {name}={file}: the file holds {_called(found)}, but the recipes of this study are for "
            f"{_called(wanted)}; `mimbench evaluate {file}` chooses recipes for its size"
        )


def _called(vit: ViT) -> str:
    sizes = (size for size in SIZES.items() if (size[1].width, size[1].depth) == (vit.width, vit.depth))
    letter = next((letter for letter, _ in sizes), None)
    return f"a ViT-{letter}" if letter else f"an encoder of width {vit.width} and depth {vit.depth}"


def _shape(file: Path) -> ViT | None:
    if user_code(file) is not None or not file.is_file():
        return None
    try:
        metadata: Any = read_header(file).metadata
        if METADATA in metadata:
            return from_json(metadata[METADATA]).vit
    except ValueError:
        pass  # a file of another kind
    from mimbench.backbones.weights import open_weights  # imports torch

    try:
        return open_weights(file).vit
    except ValueError:
        return None

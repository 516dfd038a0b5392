"""Our own files: safetensors whose metadata say what they are. They are told by that, never by their keys."""

from __future__ import annotations

from backbones.checkpoints.family import Family, Signature
from backbones.checkpoints.info import EncoderInfo


def ours(info: EncoderInfo) -> Family:
    """The family of one file of ours, by its metadata `info`: every key is the encoder's own."""
    return Family(
        name=info.family,
        title="an encoder that mimbench wrote",
        signature=Signature(),
        source=" ".join(filter(None, (info.recipe, info.identity))) or "mimbench",
        mean=info.mean,
        std=info.std,
        interpolation=info.interpolation,
        heads=lambda _width: info.vit.heads,
        grid=lambda _weights: info.vit.grid,
        traits=lambda _weights: info.traits,
    )

"""Our own files: safetensors whose metadata say what they are. They are told by that, never by their keys.

A fine-tuned one holds a classifier's head and perhaps its norm beside the encoder.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.families.plain import HEAD
from mimbench.backbones.checkpoints.family import Family, Signature
from mimbench.backbones.checkpoints.info import EncoderInfo


def ours(info: EncoderInfo, tuned: bool) -> Family:
    """The family of one file of ours, by its metadata `info`: every key is the encoder's, or a `tuned` one's head's."""
    return Family(
        name=info.family,
        title="a classifier that mimbench wrote" if tuned else "an encoder that mimbench wrote",
        signature=Signature(),
        source=" ".join(filter(None, (info.recipe, info.identity))) or "mimbench",
        mean=info.mean,
        std=info.std,
        dropped=HEAD if tuned else (),
        interpolation=info.interpolation,
        heads=lambda _width: info.vit.heads,
        grid=lambda _weights: info.vit.grid,
        traits=lambda _weights: info.traits,
    )

"""Files that mimbench wrote: safetensors recognised by their metadata, never by their keys.

A fine-tuned file also holds a classifier's head and possibly its norm.
"""

from __future__ import annotations

from mimbench.backbones.checkpoints.families.plain import HEAD
from mimbench.backbones.checkpoints.family import Family, Signature
from mimbench.backbones.checkpoints.info import EncoderInfo


def ours(info: EncoderInfo, tuned: bool) -> Family:
    """Return the family of a file with metadata `info`: all keys are the encoder's, or a head's if `tuned`."""
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

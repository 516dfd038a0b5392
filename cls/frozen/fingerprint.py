"""What tells an encoder and a split of images from others: stored features are never taken for those of another.

An encoder goes by its weights as they are evaluated (their content hash, `backbones.content.tensors_hash`), its shape
and traits, and the statistics its images are normalised by; a user's own by its source file as well. A split goes by
the names of its images in order, their labels, and what `SAMPLED` files spread over it hold: where they lie makes no
difference.
"""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np

from mimbench.cls.frozen.features import FrozenEncoder
from mimbench.engine.data.images import ImageFolder

SAMPLED = 1024  # files read: 0.1 GB of ImageNet


def encoder_fingerprint(encoder: FrozenEncoder) -> str:
    """The same for encoders that give the same features, in hexadecimal."""
    return hashlib.sha256(json.dumps(encoder.identity(), sort_keys=True).encode()).hexdigest()


def split_fingerprint(folder: ImageFolder) -> str:
    """The same for the same images, in hexadecimal.

    Raises:
        OSError: if a file cannot be read.
    """
    root = f"{folder.paths.root}/"
    digest = hashlib.sha256(json.dumps([folder.classes, folder.facts()], sort_keys=True).encode())
    for index in range(len(folder)):
        digest.update(os.fsencode(folder.paths.text(index).removeprefix(root)) + b"\0")
    digest.update(np.ascontiguousarray(folder.labels.numpy(), dtype="<i8").tobytes())
    for index in spread(len(folder), SAMPLED):
        digest.update(folder.paths.encoded(index))
    return digest.hexdigest()


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()

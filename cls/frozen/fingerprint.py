"""Fingerprints of encoders and image splits, so that stored features are never used for another encoder or split.

An encoder's fingerprint covers its evaluated weights (their content hash, `backbones.content.tensors_hash`), shape,
traits and the statistics that normalise its images; a user's encoder also its source file. A split's fingerprint
covers the names of its images in order, their labels, and the contents of `SAMPLED` evenly spread files, but not its
location.
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
    """Return the fingerprint of an encoder in hexadecimal; equal if the features are equal."""
    return hashlib.sha256(json.dumps(encoder.identity(), sort_keys=True).encode()).hexdigest()


def split_fingerprint(folder: ImageFolder) -> str:
    """Return the fingerprint of a split in hexadecimal; equal for the same images.

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
    """Return at most `most` evenly spread numbers below `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()

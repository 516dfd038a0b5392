"""A file that passes for an encoder of ours, without torch."""

from __future__ import annotations

import hashlib
import json

from mimbench.backbones.checkpoints.info import EncoderInfo, to_json
from mimbench.backbones.config import ViT

B16 = ViT()


def encoder_bytes(text: str, vit: ViT = B16) -> bytes:
    """A safetensors file of ours with one tensor, whose values depend on `text`."""
    values = hashlib.sha256(text.encode()).digest()
    header = {
        "__metadata__": {"mimbench": to_json(EncoderInfo("mae", vit, True))},
        "w": {"dtype": "F32", "shape": [8], "data_offsets": [0, len(values)]},
    }
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + values

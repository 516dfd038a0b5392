"""Writes detectron2.json beside this file: what detectron2's ViTDet makes of known weights and images.

    python -m tests.backbones.golden.make_detectron2 CHECKOUT       facebookresearch/detectron2 02b5c4e2

Its own `SimpleFeaturePyramid` on its own `ViT`, as a detector's `backbone`, in float64 on a CPU. The file holds the
names and shapes of the state dictionary (filled by `sine.filled`) and what comes of two images, as `sine.summary`
keeps it:

    windows      as trained: blocks in windows, relative positions
    plain        the same weights, every block over the whole image, no relative positions
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.backbones.golden.sine import filled, image, summary

HERE = Path(__file__).parent
SWING = 0.2
NORM = partial(nn.LayerNorm, eps=1e-6)
SIZES = [(64, 64), (96, 160)]
VIT = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1, "pretrain_img_size": 64}


def backbone(**options: Any) -> nn.Module:
    """detectron2's ViTDet with its pyramid, 16 channels wide."""
    from detectron2.modeling import SimpleFeaturePyramid, ViT
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    net = ViT(img_size=128, window_size=3, norm_layer=NORM, out_feature="last_feat", **VIT, **options)
    return SimpleFeaturePyramid(net, "last_feat", 16, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool(), "LN").double().eval()


def main() -> None:
    """See the top of the file."""
    sys.path.append(sys.argv[1])
    windows = backbone(use_rel_pos=True, window_block_indexes=[0])
    plain = backbone(use_rel_pos=False, window_block_indexes=[])
    shapes = {f"backbone.{name}": list(value.shape) for name, value in windows.state_dict().items()}
    state = {name.removeprefix("backbone."): value for name, value in filled(shapes, swing=SWING).items()}
    windows.load_state_dict(state)
    plain.load_state_dict({name: value for name, value in state.items() if ".rel_pos_" not in name})
    features: dict[str, list[Any]] = {"windows": [], "plain": []}
    for how, model in (("windows", windows), ("plain", plain)):
        for size in SIZES:
            with torch.no_grad():
                tokens = model.net(image(*size))["last_feat"].flatten(2).transpose(1, 2)
            features[how].append({"size": size, **summary(tokens, 0)})
    about = {"source": "facebookresearch/detectron2 02b5c4e2", "swing": SWING, "state": shapes, **features}
    (HERE / "detectron2.json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()

"""The classifier that fine-tuning and linear probing put on an encoder: timm's own VisionTransformer.

With `pool="avg"` the mean of the patch tokens goes through `fc_norm` to the head and there is no other final norm
(MAE's fine-tuning default); with `pool="cls"` the class token goes through `norm` to the head. Positions are learned
from the sin-cos table on. `layer_of` and `no_decay` are MAE's rules for layer decay and weight decay.
"""

from __future__ import annotations

from typing import Literal

import timm.layers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbones.config import ViT
from backbones.positions import resize_positions
from backbones.vit import LayerNorm

Pool = Literal["avg", "cls"]
HEAD = {"head.weight", "head.bias"}
FC_NORM = {"fc_norm.weight", "fc_norm.bias"}
NORM = {"norm.weight", "norm.bias"}


def build_classifier(vit: ViT, classes: int, drop_path: float, pool: Pool, image: int) -> VisionTransformer:
    """A classifier of `classes` on an encoder shaped like `vit`, for images of side `image`.

    Drop path rises linearly over the blocks from 0 to `drop_path`. The head starts near zero (std 2e-5).
    """
    model = VisionTransformer(
        img_size=image,
        patch_size=vit.patch,
        embed_dim=vit.width,
        depth=vit.depth,
        num_heads=vit.heads,
        num_classes=classes,
        global_pool="avg" if pool == "avg" else "token",
        drop_path_rate=drop_path,
        norm_layer=LayerNorm,
        weight_init="skip",
    )
    initialise_head(model)
    return model


def initialise_head(model: VisionTransformer) -> None:
    """MAE's start of fine-tuning: head weights from a truncated normal of std 2e-5, bias zero."""
    assert isinstance(model.head, nn.Linear)
    timm.layers.trunc_normal_(model.head.weight, std=2e-5)
    nn.init.zeros_(model.head.bias)


def load_encoder_into(model: VisionTransformer, state: dict[str, Tensor]) -> None:
    """Load an encoder's `state` (from `load_encoder` or an encoder's state_dict) into a classifier.

    Positions are resized to the classifier's grid. The head and `fc_norm` stay as they are, and so does `norm`, at
    scale 1 and shift 0, when the encoder has none (CrossMAE with `pool="cls"`). An encoder's own final norm is left
    out with `pool="avg"`, which has no place for it.

    Raises:
        ValueError: if any other key is missing, unexpected or of another shape.
    """
    averaging = model.global_pool == "avg"
    loaded = {key: value for key, value in state.items() if not (averaging and key in NORM)}
    loaded["pos_embed"] = resize_positions(state["pos_embed"], model.patch_embed.grid_size)
    allowed = HEAD | FC_NORM if averaging else HEAD | NORM
    try:
        missing, unexpected = model.load_state_dict(loaded, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the encoder does not fit the classifier: {' '.join(str(error).split())}") from None
    wrong = sorted(set(missing) - allowed) + sorted(unexpected)
    if wrong:
        raise ValueError(f"the encoder does not fit the classifier: missing or unexpected {', '.join(wrong[:5])}")


def layer_of(name: str, depth: int) -> int:
    """The layer of parameter `name` for layer decay: 0 embedding, i + 1 block i, depth + 1 everything after.

    A layer's learning rate is scaled by decay ** (depth + 1 - layer).
    """
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def no_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether fine-tuning leaves `parameter` out of weight decay: vectors, the positions and the class token."""
    return parameter.ndim == 1 or name in ("pos_embed", "cls_token")

"""The classifier that fine-tuning trains: an encoder with a linear head.

A plain ViT becomes timm's VisionTransformer. An encoder with other traits (backbones/config.py) keeps its own blocks
and gets the same head. With `pool="avg"` the mean of the patch tokens goes through `fc_norm` to the head, and there is
no other final norm (MAE's fine-tuning default). With `pool="cls"` the class token goes through `norm` to the head. The
position table starts as the encoder's and is trained. `layer_of` and `no_decay` are MAE's rules for layer decay and
weight decay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import timm.layers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.positions import resize_positions
from mimbench.backbones.vit import PLAIN, LayerNorm, Trunk
from mimbench.backbones.window_attention import resize_decomposed

Pool = Literal["avg", "cls"]
HEAD = {"head.weight", "head.bias"}
FC_NORM = {"fc_norm.weight", "fc_norm.bias"}
NORM = {"norm.weight", "norm.bias"}
EMBEDDED = ("cls_token", "reg_token", "pos_embed")


class TraitsClassifier(Trunk):
    """A classifier on an encoder that is not a plain ViT; the parts around the encoder have timm's names."""

    def __init__(self, shape: ViT, traits: Traits, classes: int, drop_path: float, pool: Pool) -> None:
        super().__init__(shape, traits, drop_path=drop_path)
        if pool == "cls" and not traits.class_token:
            raise ValueError("pool=cls needs a class token, and this encoder has none; use pool=avg")
        self.global_pool = "avg" if pool == "avg" else "token"
        norm = nn.LayerNorm(shape.width, traits.norm_eps)
        self.norm: nn.Module = nn.Identity() if pool == "avg" else norm
        self.fc_norm: nn.Module = norm if pool == "avg" else nn.Identity()
        self.head = nn.Linear(shape.width, classes)
        self.initialise()
        if traits.positions == "absolute":
            self.pos_embed.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, 3, H, W)."""
        tokens = self.norm(self.encode(images))
        pooled = tokens[:, self.traits.prefix :].mean(dim=1) if self.global_pool == "avg" else tokens[:, 0]
        logits: Tensor = self.head(self.fc_norm(pooled))
        return logits


Classifier = VisionTransformer | TraitsClassifier


def build_classifier(
    vit: ViT, classes: int, drop_path: float, pool: Pool, image: int, traits: Traits = PLAIN
) -> Classifier:
    """Build a classifier of `classes` classes on an encoder shaped like `vit`, for images of side `image`.

    Drop path rises linearly over the blocks from 0 to `drop_path`. The head starts near zero (std 2e-5).

    Raises:
        ValueError: if `pool` needs a class token that the encoder lacks, or its relative positions do not fit `image`.
    """
    if traits.positions == "relative" and image != vit.image:
        raise ValueError(
            f"image={image}: this encoder learned its table of relative positions at {vit.image} pixels, and resizing "
            f"the table would change the encoder; use image={vit.image}"
        )
    model: Classifier
    if traits.plain:
        model = _plain(vit, classes, drop_path, pool, image)
    else:
        model = TraitsClassifier(replace(vit, image=image), traits, classes, drop_path, pool)
    initialise_head(model)
    return model


def _plain(vit: ViT, classes: int, drop_path: float, pool: Pool, image: int) -> VisionTransformer:
    return VisionTransformer(
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


def initialise_head(model: Classifier) -> None:
    """Initialise the head as MAE does for fine-tuning: weights from a truncated normal of std 2e-5, bias zero."""
    assert isinstance(model.head, nn.Linear)
    timm.layers.trunc_normal_(model.head.weight, std=2e-5)
    nn.init.zeros_(model.head.bias)


def load_encoder_into(model: Classifier, state: dict[str, Tensor], interpolation: Interpolation = "bicubic") -> None:
    """Load an encoder's `state` (from `load_encoder` or an encoder's state_dict) into a classifier.

    `interpolation` resizes the positions to the classifier's grid. The head and `fc_norm` are not changed. If the
    encoder has no final norm (CrossMAE with `pool="cls"`), `norm` keeps scale 1 and shift 0. With `pool="avg"` the
    classifier has no `norm`, and an encoder's final norm is left out.

    Raises:
        ValueError: if any other key is missing, unexpected or of the wrong shape.
    """
    averaging = model.global_pool == "avg"
    loaded = {key: value for key, value in state.items() if not (averaging and key in NORM)}
    if "pos_embed" in state:
        side = model.shape.grid if isinstance(model, Trunk) else model.patch_embed.grid_size[0]
        loaded["pos_embed"] = resize_positions(state["pos_embed"], (side, side), interpolation)
    own = model.state_dict()
    for key in [key for key in loaded if ".rel_pos_" in key and key in own]:  # of an encoder with windows
        loaded[key] = resize_decomposed(loaded[key], len(own[key]))
    allowed = HEAD | FC_NORM if averaging else HEAD | NORM
    try:
        missing, unexpected = model.load_state_dict(loaded, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the encoder does not fit the classifier: {' '.join(str(error).split())}") from None
    wrong = sorted(set(missing) - allowed) + sorted(unexpected)
    if wrong:
        raise ValueError(f"the encoder does not fit the classifier: missing or unexpected {', '.join(wrong[:5])}")


def layer_of(name: str, depth: int) -> int:
    """Return the layer of parameter `name` for layer decay: 0 embedding, i + 1 block i, depth + 1 everything after.

    A layer's learning rate is scaled by decay ** (depth + 1 - layer).
    """
    if name in EMBEDDED or name.startswith(("patch_embed.", "norm_pre.")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def no_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether fine-tuning excludes `parameter` from weight decay: vectors, positions, class token and registers."""
    return parameter.ndim == 1 or name in EMBEDDED

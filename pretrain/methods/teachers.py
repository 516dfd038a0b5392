"""Teachers: frozen encoders that return features of whole images, and their attention to patches.

    teacher = load_teacher("vit_base_patch16_clip_quickgelu_224.openai", checkpoint=None, grid=14, image=None)
    layers, importance_BN = teacher(images, (7, 8, 9, 10, 11))

A teacher is one of timm's plain ViTs by name, with weights in timm's cache or in a file; or any encoder that
`backbones.checkpoint.load_encoder` reads. Nothing is downloaded: a run on a compute node without a network would hang.
If weights are missing, the error names the command that downloads them.

timm's names of MaskAlign's three teachers differ from those on Hugging Face, which its code uses:

    openai/clip-vit-base-patch16    vit_base_patch16_clip_quickgelu_224.openai
    openai/clip-vit-large-patch14   vit_large_patch14_clip_quickgelu_224.openai, on images of 196 pixels
    facebook/dino-vitb16            vit_base_patch16_224.dino

(`..._clip_224.openai`, without quickgelu, computes another function with the same weights.)

Attention is needed for only one query, the class token's, in the last block. It is computed from that block's input,
so that all blocks run fused attention and no full attention map is stored.

Shapes: B image, N patch (row-major), R token before the patches (class token, then registers), T token
(R and N), C width of the teacher, H head, c channel of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from timm.layers import Attention
from timm.models import VisionTransformer as TimmViT
from timm.models import clean_state_dict, get_pretrained_cfg, is_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from mimbench.backbones.checkpoint import build_encoder
from mimbench.backbones.config import SIZES
from mimbench.backbones.positions import interpolate_rows
from mimbench.backbones.vit import Trunk
from mimbench.backbones.weights import open_weights
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD

Colours = tuple[float, float, float]

AVERAGES = ("state_dict_ema", "model_ema")  # timm's names of the moving average of the weights
CACHED = ("model.safetensors", "pytorch_model.bin")  # a model's files in timm's cache


class Layer(NamedTuple):
    """The output of a teacher's block, not normalised."""

    before: Tensor  # (B, R, C): class token, registers
    patches: Tensor  # (B, N, C)


class Teacher(nn.Module):
    """A network of plain attention blocks, applied to whole images.

    Args:
        network: one of timm's plain ViTs, or one of our encoders.
        patches: N, the number of an image's patches.
        image: side in pixels of the images that `network` takes; others are resized to it.
        mean, std: normalisation of colours (0..1) that `network` expects; inputs are normalised by ImageNet's.
    """

    def __init__(self, network: TimmViT | Trunk, patches: int, image: int, mean: Colours, std: Colours) -> None:
        super().__init__()
        self.network, self.patches, self.image = network, patches, image
        last: Any = network.blocks[-1]
        self.depth, self.width = len(network.blocks), int(last.attn.proj.out_features)
        ours_mean, ours_std, its_mean, its_std = (
            torch.tensor(colours).view(3, 1, 1) for colours in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
        )
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", ours_std / its_std, persistent=False)
        self.register_buffer("shift", (ours_mean - its_mean) / its_std, persistent=False)

    def forward(self, images: Tensor, layers: Sequence[int]) -> tuple[list[Layer], Tensor]:
        """Return features of `layers` and the attention to patches.

        Args:
            images: (B, 3, H, W), normalised by ImageNet's statistics.
            layers: numbers of blocks, from 0.

        Returns:
            The outputs of those blocks, and `importance_BN`: each patch's share of the class token's attention in the
            last block, averaged over heads. The shares sum to less than 1, because other tokens also get attention.
        """
        if images.shape[-1] != self.image:
            images = F.interpolate(images, (self.image, self.image), mode="bicubic", align_corners=False)
        before_last = self.depth - 2
        found = self._after(images * self.scale + self.shift, sorted({*layers, before_last}))
        return [found[layer] for layer in layers], self._importance(found[before_last])

    def _after(self, images: Tensor, blocks: list[int]) -> dict[int, Layer]:
        """Return the outputs of `blocks` (ascending); later blocks are not computed."""
        if isinstance(self.network, Trunk):
            maps = self.network.forward_tokens(images, blocks=blocks[-1] + 1)[1:]
            return {block: Layer(maps[block][:, : -self.patches], maps[block][:, -self.patches :]) for block in blocks}
        pairs: Any = self.network.forward_intermediates(
            images,
            indices=blocks,
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return {block: Layer(before, patches) for block, (patches, before) in zip(blocks, pairs, strict=True)}

    def _importance(self, tokens: Layer) -> Tensor:
        """Return the class token's attention to patches in the last block, for its input `tokens`."""
        block: Any = self.network.blocks[-1]
        attn = block.attn
        tokens_BTC = block.norm1(torch.cat(tokens, dim=1))
        weights = attn.qkv.weight.chunk(3)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        q_BHc = F.linear(tokens_BTC[:, 0], weights[0], biases[0]).unflatten(1, (attn.num_heads, -1))
        k_BTHc = F.linear(tokens_BTC, weights[1], biases[1]).unflatten(2, (attn.num_heads, -1))
        scores_BHT = torch.einsum("bhc,bthc->bht", attn.q_norm(q_BHc) * attn.scale, attn.k_norm(k_BTHc))
        exact = torch.promote_types(scores_BHT.dtype, torch.float32)
        importance_BN: Tensor = scores_BHT.softmax(dim=-1, dtype=exact)[..., -self.patches :].mean(dim=1)
        return importance_BN


# ------------------------------------------------------------------------------------------------------- where it is


def load_teacher(name: str | None, checkpoint: str | Path | None, grid: int, image: int | None) -> Teacher:
    """Return a teacher with the student's grid of patches.

    Args:
        name: timm's name with the tag of the weights. None: the encoder in `checkpoint`.
        checkpoint: a file of weights; None: those in timm's cache.
        grid: patches along one side of the student's images.
        image: side in pixels of the teacher's images; None: its training size.

    Raises:
        FileNotFoundError: if the weights are missing; the message says how to get them.
        ValueError: if they cannot be read or belong to another model, if the model lacks a class token or plain
            attention, or if its grid is not the student's.
    """
    with torch.random.fork_rng(devices=[]):  # the teacher must not change the student's random weights
        if name is not None:
            return _timm_teacher(name, checkpoint, grid, image)
        if checkpoint is None:
            raise ValueError("method.teacher=none needs the encoder's file: set checkpoint=FILE or a run")
        network, info = build_encoder(checkpoint, SIZES["B"], interpolation="bicubic")
    assert info is not None
    image = image or info.vit.image
    _require_readable(str(checkpoint), network, info.traits.class_token)
    _require_grid(str(checkpoint), image, info.vit.patch, grid)
    return Teacher(network, grid**2, image, info.mean, info.std)


def _timm_teacher(name: str, checkpoint: str | Path | None, grid: int, image: int | None) -> Teacher:
    about = get_pretrained_cfg(name) if is_model(name) else None
    if about is None:
        raise ValueError(
            f"method.teacher={name!r} is not a timm model with weights; MaskAlign's are "
            "vit_base_patch16_clip_quickgelu_224.openai, vit_large_patch14_clip_quickgelu_224.openai and "
            "vit_base_patch16_224.dino; method.teacher=none uses the encoder in checkpoint"
        )
    image = image or about.input_size[-1]
    with torch.device("meta"):
        trained: Any = timm.create_model(name, num_classes=0)
        _require_readable(name, trained, isinstance(trained, TimmViT) and trained.cls_token is not None)
        _require_grid(name, image, trained.patch_embed.patch_size[0], grid)
        network: Any = timm.create_model(name, num_classes=0, img_size=image)
    file = Path(checkpoint) if checkpoint else _cached(name, about)
    network.norm = network.fc_norm = network.head = nn.Identity()  # the layers after the last block
    _fill(network, _timm_weights(file, trained), name, file)
    mean, std = ((red, green, blue) for red, green, blue in (about.mean, about.std))
    return Teacher(network, grid**2, image, mean, std)


def _require_readable(name: str, network: Any, has_token: bool) -> None:
    """Check that the network has a class token and at least two blocks, the last with plain attention."""
    blocks: Any = getattr(network, "blocks", [])
    if not has_token or len(blocks) < 2 or not isinstance(getattr(blocks[-1], "attn", None), Attention):
        raise ValueError(
            f"teacher {name} must be a plain ViT with a class token and at least two blocks, for its attention"
        )


def _require_grid(name: str, image: int, patch: int, grid: int) -> None:
    if image % patch or image // patch != grid:
        found = f"{image // patch} x {image // patch} patches" if image % patch == 0 else "no whole number of patches"
        raise ValueError(
            f"teacher {name} has {found} of {patch} pixels in images of {image}, but the student has {grid} x {grid}: "
            f"use method.teacher_image={grid * patch}"
        )


def _cached(name: str, about: Any) -> Path:
    """Return the file of a timm model's weights in timm's download cache."""
    names = (about.hf_hub_filename,) if about.hf_hub_filename else CACHED
    for file in names if about.hf_hub_id else ():
        found = try_to_load_from_cache(about.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found)
    raise FileNotFoundError(
        f"the weights of teacher {name} are not in timm's cache, and a run downloads nothing: on a machine with a "
        f"network, run  python -c \"import timm; timm.create_model('{name}', pretrained=True)\"  (HF_HOME sets the "
        "cache's directory), or give a file with checkpoint=FILE"
    )


def _timm_weights(file: Path, trained: TimmViT) -> dict[str, Tensor]:
    """Return the weights in `file` under timm's names, opened safely; `trained` has their training sizes.

    timm itself converts the names of the authors' files (OpenAI's).
    """
    try:
        state = checkpoint_filter_fn(clean_state_dict(_held(file)), trained)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {file} holds no weights of a timm model that can be opened safely (a state dictionary of "
            f"tensors in .pth or .safetensors); for another encoder use method.teacher=none: {error}"
        ) from None
    return {
        key: value.to(torch.float32, copy=True)
        for key, value in state.items()
        if not key.startswith(("head.", "norm.", "fc_norm."))
    }


def _held(file: Path) -> dict[str, Tensor]:
    """Return the weights in `file`; from timm's training states, the moving average if there is one, as timm does."""
    opened = open_weights(file, "teacher").opened
    average = next((name for name in AVERAGES if name in opened.copies), None)
    return dict(opened.weights if average is None else open_weights(file, "teacher", copy=average).opened.weights)


def _fill(network: TimmViT, state: dict[str, Tensor], name: str, file: Path) -> None:
    """Load `state` into a network without weights, with positions interpolated to the network's grid."""
    if "pos_embed" in state:
        before = 0 if network.no_embed_class else network.num_prefix_tokens
        rows = state["pos_embed"][:, before:]
        side = round(rows.shape[1] ** 0.5)
        if (side, side) != network.patch_embed.grid_size:
            rows = interpolate_rows(rows, side, network.patch_embed.grid_size)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :before], rows], dim=1)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ValueError(f"checkpoint {file} is not {name}: {lines[:200]}") from None

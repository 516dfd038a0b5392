"""CrossMAE's loss in its plain form, and in the authors' own, for benchmarks and tests to compare with.

The plain form follows the papers' description step by step: embed every patch and then gather, boolean selection,
patchify everything, stack the maps on the last axis. The authors' form is their code, from a checkout of
github.com/TonyLianLong/CrossMAE that the caller has; nothing of it is here.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm.layers
import torch
from torch import Tensor, nn

from mimbench.backbones.blocks import Mlp
from mimbench.pretrain.methods.crossmae import CrossMAE

# ------------------------------------------------------------------------------------------------------- plain form


def plain_loss(model: CrossMAE, images: Tensor, noise: Tensor, hidden: float = 0.75, predict: float = 0.25) -> Tensor:
    """CrossMAE's loss in its plain form, with the weights of `model`."""
    tokens, mask = plain_tokens(model, images, noise, hidden, predict)
    with patch.object(Mlp, "forward", timm.layers.Mlp.forward):  # keeps what comes out of the GELU
        prediction = _plain_decoder(model, _plain_maps(model, tokens), mask)
    target = plain_targets(images, mask, model.patch, model.config.norm_pix)
    return ((prediction - target) ** 2).mean()


def plain_tokens(
    model: CrossMAE, images: Tensor, noise: Tensor, hidden: float, predict: float
) -> tuple[Tensor, Tensor]:
    """Tokens of the shown patches (B, 1 + V, D), and which patches are predicted (B, N)."""
    length = noise.shape[1]
    shown, skipped = int(length * (1 - hidden)), int(length * (hidden - predict))
    tokens = model.patch_embed.proj(images).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    order = torch.argsort(noise, dim=1)
    restore = torch.argsort(order, dim=1)
    tokens = torch.gather(tokens, 1, order[:, :shown, None].repeat(1, 1, tokens.shape[2]))
    mask = torch.ones_like(noise)
    mask[:, : shown + skipped] = 0
    mask = torch.gather(mask, 1, restore).bool()
    return torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1), mask


def plain_queries(model: CrossMAE, mask: Tensor) -> Tensor:
    """Mask tokens at the predicted positions (B, Q, E)."""
    positions = model.decoder_pos_embed[:, 1:].masked_select(mask[..., None])
    return model.mask_token + positions.view(len(mask), -1, model.config.width)


def plain_targets(images: Tensor, mask: Tensor, patch_side: int, norm_pix: bool) -> Tensor:
    """Values of the predicted patches (B, Q, P)."""
    target = plain_patchify(images, patch_side)
    target = target.masked_select(mask[..., None]).view(len(images), -1, target.shape[2])
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    return target


def plain_patchify(images: Tensor, patch_side: int) -> Tensor:
    """Every patch of square images (B, 3, S, S) as (B, N, P), P in the order row, column, colour."""
    batch, side = len(images), images.shape[2] // patch_side
    cut = images.reshape(batch, 3, side, patch_side, side, patch_side)
    return torch.einsum("nchpwq->nhwpqc", cut).reshape(batch, side * side, -1)


def _plain_maps(model: CrossMAE, tokens: Tensor) -> list[Tensor]:
    maps = [tokens]
    for block in model.blocks:
        maps.append(block(maps[-1]))
    return [maps[index] for index in model.maps]


def _plain_decoder(model: CrossMAE, maps: list[Tensor], mask: Tensor) -> Tensor:
    mixed = model.wfm.linear(torch.stack(maps, dim=-1))
    queries = plain_queries(model, mask)
    for index, (block, norm) in enumerate(zip(model.decoder_blocks, model.dec_norms, strict=True)):
        queries = block(queries, norm(mixed[..., index]))
    prediction: Tensor = model.decoder_pred(model.decoder_norm(queries))
    return prediction


# ---------------------------------------------------------------------------------------------------- authors' form


def authors_model(checkout: Path, model: CrossMAE) -> nn.Module:
    """The authors' CrossMAE with the weights of `model`, from their code at `checkout`."""
    models = _authors_module(checkout, "models_cross")
    shape, config = model.shape, model.config
    theirs = models.MaskedAutoencoderViT(
        img_size=shape.image, patch_size=shape.patch, embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads,
        decoder_embed_dim=config.width, decoder_depth=config.depth, decoder_num_heads=config.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=config.norm_pix, weight_fm=True,
        use_input=config.use_input, self_attn=config.self_attention,
    )  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    return theirs


def _authors_module(checkout: Path, name: str) -> Any:
    if not (checkout / f"{name}.py").is_file():
        raise FileNotFoundError(f"{checkout} is no checkout of CrossMAE: it has no {name}.py")
    sys.path.insert(0, str(checkout))
    warnings.filterwarnings("ignore", message=".*cuda.*autocast.*|.*CUDA is not available.*")
    return importlib.import_module(name)


def authors_loss(theirs: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
    """Their loss, predicting a quarter, with `noise` where their code draws some."""
    with patch("torch.rand", lambda *_, **__: noise):
        loss: Tensor = theirs(images, 0.75, 0.25)
    return loss

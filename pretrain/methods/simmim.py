"""SimMIM (Xie et al., arXiv 2111.09886) on a ViT: the model and its loss.

The encoder gets all patches, with mask tokens instead of hidden ones, and one linear layer predicts the pixels of a
hidden patch from the encoder's output. The loss is their mean absolute error. Patches that the masking drops (thrown
away by AMT) have no tokens and no targets.

    loss = model(images, masked)      # pure except for stochastic depth

Numbers and parameter names equal those of the authors' code, so their checkpoints load. Less is computed: hidden
patches are not embedded, and only predicted ones are decoded. AMT's SimMIM could not be run, because the authors' code
stops with a shape error after its 40th epoch. This file implements its description with one correction: the factors
after attention are applied like those after the MLP.

Shapes: B image, N patch (row-major), K patch kept (shown or predicted), V shown, Q predicted, T token (class token,
kept patches), D width, H head, P value of a patch (colour, row, column: the decoder's order).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.beit import Block, RelativePositionBias
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import LayerNorm, PatchEmbed, patch_view, pick_patches
from mimbench.pretrain.masking.attention import first_row
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.configs import SimMIMConfig
from mimbench.pretrain.methods.method import Context, Method


class Encoder(nn.Module):
    """BEiT's ViT with a mask token: one shared table of relative biases, or learned absolute positions."""

    def __init__(self, shape: ViT, config: SimMIMConfig) -> None:
        super().__init__()
        self.patch, self.grid = shape.patch, shape.grid
        self.recompute = False  # trade time for memory, as `Trunk.through` does
        self.patch_embed = PatchEmbed(shape.patch, shape.width)
        self.cls_token = Parameter(torch.zeros(1, 1, shape.width))
        absolute = config.positions == "absolute"
        self.pos_embed = Parameter(torch.zeros(1, 1 + shape.grid**2, shape.width)) if absolute else None
        self.rel_pos_bias = None if absolute else RelativePositionBias((shape.grid, shape.grid), shape.heads)
        self.blocks = nn.ModuleList(
            Block(
                shape.width,
                shape.heads,
                qkv_bias=True,
                drop_path=config.drop_path * index / max(shape.depth - 1, 1),
                init_values=config.layer_scale,
                norm_layer=LayerNorm,  # type: ignore[arg-type]
            )
            for index in range(shape.depth)
        )
        self.norm = LayerNorm(shape.width)
        self.mask_token = Parameter(torch.zeros(1, 1, shape.width))
        self.initialise()

    def initialise(self) -> None:
        """Initialise as BEiT: normal, deviation .02; the last layer of each branch is divided by sqrt(2 * depth)."""
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)
        self.apply(_initialise)
        block: Any
        for number, block in enumerate(self.blocks, start=1):
            for branch in (block.attn.proj, block.mlp.fc2):
                branch.weight.data.div_(math.sqrt(2 * number))
        trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, images: Tensor, shown_BV: Tensor | None, kept_BK: Tensor | None) -> Tensor:
        """Return the normalised output (B, T, D): class token, then patches `kept_BK` (None: all, row-major).

        Args:
            shown_BV: patches to embed; all others are mask tokens. None embeds all.
        """
        tokens_BTD = self.embed(images, shown_BV, kept_BK)
        bias_BHTT = self.bias(kept_BK)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                tokens_BTD = checkpoint(block, tokens_BTD, bias_BHTT, use_reentrant=False)
            else:
                tokens_BTD = block(tokens_BTD, bias_BHTT)
        normalised: Tensor = self.norm(tokens_BTD)
        return normalised

    def embed(self, images: Tensor, shown_BV: Tensor | None, kept_BK: Tensor | None) -> Tensor:
        """Return the first block's input; see `forward`."""
        embedded_BVD = self.patch_embed(pick_patches(patch_view(images, self.patch), shown_BV))
        batch, width = len(images), embedded_BVD.shape[2]
        tokens_BND = embedded_BVD
        if shown_BV is not None:
            masks_BND = self.mask_token.to(embedded_BVD.dtype).expand(batch, self.grid**2, -1)
            tokens_BND = masks_BND.scatter(1, shown_BV[..., None].expand(-1, -1, width), embedded_BVD)
        class_B1D = self.cls_token.to(tokens_BND.dtype).expand(batch, -1, -1)
        if self.pos_embed is not None:
            class_B1D, tokens_BND = class_B1D + self.pos_embed[:, :1], tokens_BND + self.pos_embed[:, 1:]
        if kept_BK is not None:
            tokens_BND = tokens_BND.gather(1, kept_BK[..., None].expand(-1, -1, width))
        return torch.cat([class_B1D, tokens_BND], dim=1)

    def bias(self, kept_BK: Tensor | None) -> Tensor | None:
        """Return relative biases of the scores (1 or B, H, T, T); None with absolute positions."""
        if self.rel_pos_bias is None:
            return None
        index_TT: Any = self.rel_pos_bias.relative_position_index
        if kept_BK is not None:
            token_BT = F.pad(kept_BK + 1, (1, 0))  # the class token is the first
            index_TT = index_TT[token_BT[:, :, None], token_BT[:, None, :]]
        bias = self.rel_pos_bias.relative_position_bias_table[index_TT]
        return bias.permute(0, 3, 1, 2) if bias.ndim == 4 else bias.permute(2, 0, 1)[None]

    def class_attention(self, images: Tensor) -> Tensor:
        """Return the class token's attention to the patches of whole images in the last block: (B, H, N)."""
        tokens_BTD, bias_1HTT = self.embed(images, None, None), self.bias(None)
        for block in self.blocks[:-1]:
            tokens_BTD = block(tokens_BTD, bias_1HTT)
        last: Any = self.blocks[-1]
        attn, normed_BTD = last.attn, last.norm1(tokens_BTD)
        bias_HT = None if bias_1HTT is None else bias_1HTT[0, :, 0]
        return first_row(normed_BTD, attn.qkv.weight, attn.q_bias, attn.k_bias, attn.num_heads, bias_HT)[..., 1:]


class SimMIM(Method):
    """The model: `encoder`, and `decoder`, a linear layer from the encoder's output to pixels.

    Args:
        shape: sizes of the encoder.
        config: its positions and its regularisation.
    """

    final_norm = True

    def __init__(self, shape: ViT, config: SimMIMConfig) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.traits = Traits(
            positions="relative" if config.positions == "relative" else "absolute",
            layer_scale=config.layer_scale is not None,
        )
        self.positions = "relative" if config.positions == "relative" else "learned"
        self.encoder = Encoder(shape, config)
        self.decoder = nn.Sequential(nn.Conv2d(shape.width, 3 * shape.patch**2, 1))  # as checkpoints hold it

    def no_decay(self, name: str, parameter: Parameter) -> bool:
        """See `Method`: the class token and learned positions get no weight decay either."""
        return super().no_decay(name, parameter) or name.endswith(("cls_token", "pos_embed"))

    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """Return the loss: the mean absolute error over all values of the predicted patches."""
        prediction_BQP = self.predict(images, masked)
        target_BQP = pick_patches(patch_view(images, self.shape.patch), masked.predicted).flatten(2)
        return F.l1_loss(prediction_BQP, target_BQP)

    def predict(self, images: Tensor, masked: Masked) -> Tensor:
        """Return the values (B, Q, P) of the predicted patches."""
        kept_BK = None
        place_BQ = masked.predicted
        if masked.dropped.shape[1]:
            kept_BK = torch.cat([masked.shown, masked.predicted], dim=1).sort(dim=1).values
            place_BQ = torch.searchsorted(kept_BK, masked.predicted)
        tokens_BTD = self.encoder(images, masked.shown, kept_BK)
        hidden_BQD = tokens_BTD.gather(1, 1 + place_BQ[..., None].expand(-1, -1, tokens_BTD.shape[2]))
        decode: Any = self.decoder[0]
        return F.linear(hidden_BQD, decode.weight.flatten(1), decode.bias)

    def rebuild(self, images: Tensor, masked: Masked) -> Tensor:
        """See `Method`."""
        prediction_BQP = self.predict(images, masked).float()
        return prediction_BQP.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)  # rows, columns, colours

    def class_attention(self, images: Tensor) -> Tensor:
        """Return the last block's class-token attention for whole images (B, 3, H, W): (B, heads, patches)."""
        return self.encoder.class_attention(images)

    def encoder_state(self) -> dict[str, Tensor]:
        """See `Method`. The shared table of biases is copied into each block, as evaluations' encoders expect."""
        state = self.encoder.state_dict()
        shared = state.pop("rel_pos_bias.relative_position_bias_table", None)
        for number in range(self.shape.depth):
            block = f"blocks.{number}."
            if shared is not None:
                state[f"{block}attn.relative_position_bias_table"] = shared
                continue
            q_bias, v_bias = (state.pop(f"{block}attn.{name}") for name in ("q_bias", "v_bias"))
            state[f"{block}attn.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
            for ours, theirs in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
                if block + ours in state:
                    state[block + theirs] = state.pop(block + ours)
        return state


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""CrossMAE (Fu et al., arXiv 2401.14391): the model and its loss.

The encoder sees the shown patches only. Each decoder block mixes the maps of the encoder (its input and every
block's output) with weights of its own, and its queries, mask tokens at the predicted positions, attend to that
mixture. Queries do not attend to each other, so only as many are computed as are predicted.

    loss = model(images, noise)      # pure: the noise decides the mask

Numbers are those of the authors' code, and so are parameter names: their checkpoints load. What differs is work that
need not be done: patches that are not shown are not embedded, targets are cut out before they are standardised, no
shape depends on data, and maps are stacked on the first axis, so that each block's mixture lies in one piece.

Shapes: B image, N patch, V patch shown, T token of the encoder (class token, shown patches), Q patch predicted,
D encoder width, E decoder width, H head, K map, L decoder block, P value of a patch (rows, columns, colours).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from backbones.config import ViT
from backbones.positions import sincos_2d
from backbones.vit import LayerNorm, Trunk, patch_view, pick_patches
from pretrain.config import CrossMAE as Config
from pretrain.masking import counts, mask_patches


class FeatureMixing(nn.Module):
    """For each decoder block a weighted sum of the encoder's maps: one scalar for each pair, nothing else."""

    def __init__(self, maps: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(maps, blocks, bias=False)
        self.draw()

    def draw(self) -> None:
        """Weights from N(0, 1 / maps), as the paper has it."""
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(self.linear.in_features))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, T, D) to mixtures (L, B, T, D)."""
        stacked_KBTD = torch.stack(maps)
        return (self.linear.weight @ stacked_KBTD.flatten(1)).unflatten(1, stacked_KBTD.shape[1:])


class CrossAttention(nn.Module):
    """Attention of queries on the encoder's tokens; keys and values come from the encoder's width to the decoder's."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BQE: Tensor, memory_BTD: Tensor) -> Tensor:
        """What each query reads (B, Q, E)."""
        q_BHQe = self.q(queries_BQE).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BHTe, v_BHTe = self.kv(memory_BTD).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        read_BHQe = F.scaled_dot_product_attention(q_BHQe, k_BHTe, v_BHTe)
        read_BQE: Tensor = self.proj(read_BHQe.transpose(1, 2).flatten(2))
        return read_BQE


class CrossBlock(nn.Module):
    """A pre-norm decoder block: cross-attention, then an MLP; self-attention among the queries before, if asked."""

    def __init__(self, width: int, memory_width: int, heads: int, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = self_attention
        if self_attention:
            self.norm0 = LayerNorm(width)
            self.self_attn = Attention(width, heads, qkv_bias=True)
        self.norm1 = LayerNorm(width)
        self.cross_attn = CrossAttention(width, memory_width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, queries_BQE: Tensor, memory_BTD: Tensor) -> Tensor:
        """Queries (B, Q, E) after reading `memory_BTD`, which is normalised already."""
        if self.self_attention:
            queries_BQE = queries_BQE + self.self_attn(self.norm0(queries_BQE))
        queries_BQE = queries_BQE + self.cross_attn(self.norm1(queries_BQE), memory_BTD)
        return queries_BQE + self.mlp(self.norm2(queries_BQE))


class CrossMAE(Trunk):
    """The model: an encoder (`Trunk`) and a cross-attention decoder.

    Weights are drawn as by the authors' code: the same seed gives the same weights.

    Args:
        shape: sizes of the encoder.
        config: masking, decoder and target.
    """

    def __init__(self, shape: ViT, config: Config) -> None:
        super().__init__(shape)
        self.config = config
        counts(shape.grid**2, config.mask, config.predict)  # here, not in the first step, is where to complain
        blocks = range(shape.depth) if config.feature_maps is None else config.feature_maps
        self.maps = [0] * config.use_input + [1 + block for block in sorted(set(blocks))]
        self.dec_norms = nn.ModuleList(LayerNorm(shape.width) for _ in range(config.depth))
        self.wfm = FeatureMixing(len(self.maps), config.depth)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.decoder_blocks = nn.ModuleList(
            CrossBlock(config.width, shape.width, config.heads, config.self_attention) for _ in range(config.depth)
        )
        self.decoder_norm = LayerNorm(config.width)
        self.decoder_pred = nn.Linear(config.width, 3 * shape.patch**2)
        table = sincos_2d(config.width, (shape.grid, shape.grid))
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.initialise(self.mask_token)
        if config.mixing_init == "normal":
            self.wfm.draw()  # the sweep of `initialise` has put Xavier's weights there

    def forward(self, images: Tensor, noise_BN: Tensor) -> Tensor:
        """The loss: mean squared error over all values of the predicted patches.

        Args:
            images: (B, 3, H, W), normalised, of the pretraining size.
            noise_BN: uniform noise, one value for each patch.
        """
        shown_BV, predicted_BQ = mask_patches(noise_BN, self.config.mask, self.config.predict)
        prediction_BQP = self.predict(images, shown_BV, predicted_BQ)
        target_BQP = pixels(images, predicted_BQ, self.patch)
        return F.mse_loss(prediction_BQP, standardised(target_BQP) if self.config.norm_pix else target_BQP)

    def predict(self, images: Tensor, shown_BV: Tensor, predicted_BQ: Tensor) -> Tensor:
        """The decoder's values (B, Q, P) of patches `predicted_BQ`, given those in `shown_BV`.

        Any number of patches can be predicted, each independently of the others (but with self-attention).
        """
        tokens = self.forward_tokens(images, shown_BV)
        mixtures_LBTD = self.wfm([tokens[index] for index in self.maps])
        queries_BQE = self.mask_token + self.decoder_pos_embed[0, 1:][predicted_BQ]
        for block, norm, mixture_BTD in zip(self.decoder_blocks, self.dec_norms, mixtures_LBTD.unbind(0), strict=True):
            queries_BQE = block(queries_BQE, norm(mixture_BTD))
        prediction_BQP: Tensor = self.decoder_pred(self.decoder_norm(queries_BQE))
        return prediction_BQP


def pixels(images: Tensor, index_BQ: Tensor, patch: int) -> Tensor:
    """The values of patches at `index_BQ` as targets hold them: (B, Q, P), P in the order row, column, colour."""
    return pick_patches(patch_view(images, patch).permute(0, 1, 2, 4, 5, 3), index_BQ).flatten(2)


def moments(patches_BQP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, Q, 1) of each patch as the target is standardised by: unbiased, plus 1e-6."""
    variance, mean = torch.var_mean(patches_BQP, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def standardised(patches_BQP: Tensor) -> Tensor:
    """Patches with mean 0 and variance 1 each."""
    mean, deviation = moments(patches_BQP)
    return (patches_BQP - mean) / deviation

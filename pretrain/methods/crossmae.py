"""CrossMAE (Fu et al., arXiv 2401.14391): the model and its loss.

The encoder sees only the shown patches. Each decoder block mixes the encoder's maps (its input and every block's
output) with its own weights, and its queries, mask tokens at the predicted positions, attend to that mixture. Queries
do not attend to each other, so only the predicted patches are computed.

    loss = model(images, masked)      # pure: the mask comes from outside

Numbers and parameter names equal those of the authors' code, so their checkpoints load. Only unnecessary work is left
out: patches that are not shown are not embedded, targets are extracted before they are standardised, no shape depends
on data, and maps are stacked on the first axis, so that each block's mixture is contiguous.

Shapes: B image, N patch, V patch shown, T token of the encoder (class token, shown patches), Q patch predicted,
D encoder width, E decoder width, H head, K map, L decoder block, P value of a patch (rows, columns, colours).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from mimbench.backbones.blocks import Mlp
from mimbench.backbones.config import ViT
from mimbench.backbones.positions import sincos_2d
from mimbench.backbones.vit import LayerNorm, Trunk
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.configs import CrossMAEConfig
from mimbench.pretrain.methods.method import Context, Method
from mimbench.pretrain.methods.pixels import painted, pixel_loss


class FeatureMixing(nn.Module):
    """A weighted sum of the encoder's maps for each decoder block: one scalar weight per block and map."""

    def __init__(self, maps: int, blocks: int, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax
        self.linear = nn.Linear(maps, blocks, bias=False)
        self.draw()

    def draw(self) -> None:
        """Draw the weights from N(0, 1 / maps), as in the paper."""
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(self.linear.in_features))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the mixtures (L, B, T, D) of maps (B, T, D)."""
        weight_LK = self.linear.weight.softmax(dim=1) if self.softmax else self.linear.weight
        stacked_KBTD = torch.stack(maps)
        return (weight_LK @ stacked_KBTD.flatten(1)).unflatten(1, stacked_KBTD.shape[1:])


class CrossAttention(nn.Module):
    """Attention of queries to the encoder's tokens; keys and values are projected to the decoder's width."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BQE: Tensor, memory_BTD: Tensor) -> Tensor:
        """Return the output of each query (B, Q, E)."""
        q_BHQe = self.q(queries_BQE).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BHTe, v_BHTe = self.kv(memory_BTD).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        read_BHQe = F.scaled_dot_product_attention(q_BHQe, k_BHTe, v_BHTe)
        read_BQE: Tensor = self.proj(read_BHQe.transpose(1, 2).flatten(2))
        return read_BQE


class CrossBlock(nn.Module):
    """A pre-norm decoder block: optional self-attention among the queries, then cross-attention and an MLP."""

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
        """Return the queries (B, Q, E) after attending to `memory_BTD`, which is already normalised."""
        if self.self_attention:
            queries_BQE = queries_BQE + self.self_attn(self.norm0(queries_BQE))
        queries_BQE = queries_BQE + self.cross_attn(self.norm1(queries_BQE), memory_BTD)
        return queries_BQE + self.mlp(self.norm2(queries_BQE))


class CrossMAE(Method, Trunk):
    """The model: an encoder (`Trunk`) and a cross-attention decoder.

    Weights are drawn as in the authors' code: the same seed produces the same weights. Encoder blocks after the last
    one in `feature_maps` are neither computed nor trained.

    Args:
        shape: sizes of the encoder.
        config: decoder and target.
    """

    def __init__(self, shape: ViT, config: CrossMAEConfig) -> None:
        super().__init__(shape)
        self.config = config
        self.final_norm = config.mixing == "none"
        self._add_reading(shape, config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.decoder_blocks = nn.ModuleList(
            CrossBlock(config.width, shape.width, config.heads, config.self_attention) for _ in range(config.depth)
        )
        self.decoder_norm = LayerNorm(config.width)
        self.decoder_pred = nn.Linear(config.width, 3 * shape.patch**2)
        table = sincos_2d(config.width, (shape.grid, shape.grid))
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.initialise(self.mask_token)
        if config.mixing != "none" and config.mixing_init == "normal":
            self.wfm.draw()  # `initialise` has drawn Xavier's weights

    def _add_reading(self, shape: ViT, config: CrossMAEConfig) -> None:
        """Build the decoder blocks' input: mixtures of maps, or (`mixing=none`) the encoder's last map, normalised."""
        if config.mixing == "none":
            self.maps = [shape.depth]
            self.norm = LayerNorm(shape.width)
            return
        blocks = range(shape.depth) if config.feature_maps is None else config.feature_maps
        self.maps = [0] * config.use_input + [1 + block for block in sorted(set(blocks))]
        self.dec_norms = nn.ModuleList(LayerNorm(shape.width) for _ in range(config.depth))
        self.wfm = FeatureMixing(len(self.maps), config.depth, softmax=config.mixing == "softmax")
        self.blocks[self.maps[-1] :].requires_grad_(False)

    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """Return the loss: the mean squared error over the predicted patches of normalised images (B, 3, H, W)."""
        prediction_BQP = self.predict(images, masked.shown, masked.predicted)
        return pixel_loss(prediction_BQP, images, masked.predicted, self.patch, self.config.norm_pix)

    def predict(self, images: Tensor, shown_BV: Tensor, predicted_BQ: Tensor) -> Tensor:
        """Return the decoder's values (B, Q, P) of patches `predicted_BQ`, given the patches `shown_BV`.

        Any number of patches can be predicted, each independently of the others (except with self-attention).
        """
        memories = self._memories(self.forward_tokens(images, shown_BV, blocks=self.maps[-1]))
        queries_BQE = self.mask_token + self.decoder_pos_embed[0, 1:][predicted_BQ]
        for block, memory_BTD in zip(self.decoder_blocks, memories, strict=True):
            queries_BQE = self.through(block, queries_BQE, memory_BTD)
        prediction_BQP: Tensor = self.decoder_pred(self.decoder_norm(queries_BQE))
        return prediction_BQP

    def _memories(self, tokens: list[Tensor]) -> list[Tensor]:
        """Return the normalised tokens (B, T, D) that each decoder block attends to."""
        if self.config.mixing == "none":
            return [self.norm(tokens[-1])] * self.config.depth
        mixtures_LBTD = self.wfm([tokens[index] for index in self.maps])
        return [norm(mixture_BTD) for norm, mixture_BTD in zip(self.dec_norms, mixtures_LBTD.unbind(0), strict=True)]

    def rebuild(self, images: Tensor, masked: Masked) -> Tensor:
        """See `Method`."""
        prediction_BQP = self.predict(images, masked.shown, masked.predicted).float()
        return painted(prediction_BQP, images, masked.predicted, self.patch, self.config.norm_pix)

"""MAE (He et al., arXiv 2111.06377): the model and its loss.

The encoder sees only the shown patches and ends in a norm. The decoder uses self-attention over the encoder's tokens,
projected to its width, and mask tokens at the predicted positions. Dropped patches (thrown away by AMT) are in neither.

    loss = model(images, masked)      # pure: the mask comes from outside

Numbers and parameter names equal those of the authors' code, so their full checkpoints load. Only unnecessary work is
left out: patches that are not shown are not embedded, only predicted patches are decoded, and tokens are not reordered,
since each carries its position.

Shapes: B image, V patch shown, T token of the decoder (class token, shown and predicted patches), Q patch predicted,
D encoder width, E decoder width, P value of a patch (rows, columns, colours).
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimbench.backbones.config import ViT
from mimbench.backbones.positions import sincos_2d
from mimbench.backbones.vit import LayerNorm, Trunk
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.configs import MAEConfig
from mimbench.pretrain.methods.method import Context, Method
from mimbench.pretrain.methods.pixels import painted, pixel_loss


class MAE(Method, Trunk):
    """The model: an encoder (`Trunk`) with a final norm, and a decoder of self-attention.

    Weights are drawn as in the authors' code: the same seed produces the same weights.

    Args:
        shape: sizes of the encoder.
        config: decoder and target.
    """

    final_norm = True

    def __init__(self, shape: ViT, config: MAEConfig) -> None:
        super().__init__(shape)
        self.config = config
        self.norm = LayerNorm(shape.width)
        self.decoder_embed = nn.Linear(shape.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        table = sincos_2d(config.width, (shape.grid, shape.grid))
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(config.width, config.heads, qkv_bias=True, norm_layer=LayerNorm)  # type: ignore[arg-type]
            for _ in range(config.depth)
        )
        self.decoder_norm = LayerNorm(config.width)
        self.decoder_pred = nn.Linear(config.width, 3 * shape.patch**2)
        self.initialise(self.mask_token)

    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """Return the loss: the mean squared error over the predicted patches of normalised images (B, 3, H, W)."""
        prediction_BQP = self.predict(images, masked.shown, masked.predicted)
        return pixel_loss(prediction_BQP, images, masked.predicted, self.patch, self.config.norm_pix)

    def predict(self, images: Tensor, shown_BV: Tensor, predicted_BQ: Tensor) -> Tensor:
        """Return the decoder's values (B, Q, P) of patches `predicted_BQ`, given the patches `shown_BV`."""
        tokens_BTE = self.decoder_embed(self.norm(self.forward_tokens(images, shown_BV)[-1]))
        positions_NE = self.decoder_pos_embed[0, 1:]  # the class token's is zero
        class_B1E, seen_BVE = tokens_BTE[:, :1], tokens_BTE[:, 1:] + positions_NE[shown_BV]
        asked_BQE = (self.mask_token + positions_NE[predicted_BQ]).to(seen_BVE.dtype)
        tokens_BTE = torch.cat([class_B1E, seen_BVE, asked_BQE], dim=1)
        for block in self.decoder_blocks:
            tokens_BTE = self.through(block, tokens_BTE)
        prediction_BQP: Tensor = self.decoder_pred(self.decoder_norm(tokens_BTE[:, -predicted_BQ.shape[1] :]))
        return prediction_BQP

    def rebuild(self, images: Tensor, masked: Masked) -> Tensor:
        """See `Method`."""
        prediction_BQP = self.predict(images, masked.shown, masked.predicted).float()
        return painted(prediction_BQP, images, masked.predicted, self.patch, self.config.norm_pix)

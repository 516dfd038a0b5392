"""MaskAlign (Xue et al., arXiv 2211.08887): the model and its loss.

A frozen teacher sees the whole image, the student (the encoder) only some of its patches. For each teacher layer in the
loss, the student's blocks are mixed with learned weights and projected to the teacher's width by a head. This must
match the teacher's features at the patches shown to the student and at the class token. There is no decoder.

    context = method.compute_context(images)     # the teacher's targets, and its attention to patches
    loss = method(images, masked, context)       # pure

Numbers and parameter names equal those of the authors' code. Only unnecessary work is left out: heads and mixtures of
layers outside the loss, the final norm, whose output is unused, and the teacher's attention maps
(pretrain/methods/teachers.py). Student and teacher may differ in depth: the student's block "at the height" of teacher
layer i of T is block ceil((i + 1) S / T) of S (counted from 1).

Shapes: B image, N patch, V patch shown, T token of the student (class token, patches shown), D width of the student,
C width of the teacher, X either width, S block of the student, L layer of the teacher, K teacher layer in the loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.backbones.config import ViT
from mimbench.backbones.vit import LayerNorm, Trunk
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.configs import MaskAlignConfig
from mimbench.pretrain.methods.method import Context, Frozen, Method
from mimbench.pretrain.methods.teachers import Teacher


class MaskAlign(Method, Trunk):
    """The student (`Trunk`), its mixing weights and its heads; the teacher is not part of the module.

    Weights are drawn as in the authors' code: the same seed produces the same weights.

    Args:
        shape: sizes of the student.
        config: the teacher's layers, the target, the loss and the alignment.
        teacher: a network with the student's grid of patches.

    Raises:
        ValueError: if the teacher lacks the layers that the config names.
    """

    def __init__(self, shape: ViT, config: MaskAlignConfig, teacher: Teacher) -> None:
        super().__init__(shape, drop_path=config.drop_path)
        self.config, self.teacher = config, Frozen(teacher)
        self.layers, self.weights = counting_layers(config.layers, teacher.depth)
        self.heights = [-(-(layer + 1) * shape.depth // teacher.depth) - 1 for layer in range(teacher.depth)]
        heads = range(teacher.depth if config.order == "mix_adapt" else shape.depth)
        self.distill_heads = nn.ModuleDict(
            {str(index): build_head(config.head, shape.width, teacher.width) for index in heads}
        )
        if config.fusion != "simple":
            self.distill_weights = nn.Parameter(self._first_weights())
        self.initialise()
        self._leave_out_what_nobody_reads()
        self.rows: Tensor  # on the device: a list used as an index would be copied there at every step
        self.register_buffer("rows", torch.tensor(self.layers), persistent=False)

    def _first_weights(self) -> Tensor:
        """Return the initial mixing weights (L, S)."""
        layers, blocks = len(self.heights), self.shape.depth
        if self.config.fusion == "sum":
            return torch.ones(layers, blocks) / blocks
        return F.one_hot(torch.tensor(self.heights), blocks) + 0.01

    def _leave_out_what_nobody_reads(self) -> None:
        """Remove unused heads, after all were drawn as in the authors' code; blocks stay: they are the encoder's."""
        simple = self.config.fusion == "simple"
        self.read = sorted({self.heights[layer] for layer in self.layers}) if simple else [*range(self.shape.depth)]
        heads = self.layers if self.config.order == "mix_adapt" else self.read
        for index in {*self.distill_heads} - {str(head) for head in heads}:
            del self.distill_heads[index]
        self.blocks[self.read[-1] + 1 :].requires_grad_(False)

    @torch.no_grad()
    def compute_context(self, images: Tensor) -> Context:
        """Return the teacher's view of whole images (B, 3, H, W); `targets` are before_BRC, patches_BNC of each K."""
        layers, importance_BN = self.teacher.on(images.device)(images, self.layers)
        return Context(importance_BN, tuple(part for layer in layers for part in layer))

    def forward(self, images: Tensor, masked: Masked, context: Context | None = None) -> Tensor:
        """Return the loss: the distance to the teacher at the class token and the patches shown, weighted by layer.

        Args:
            images: (B, 3, H, W), normalised.
            masked: only `shown` is used.
            context: returned by `compute_context`.
        """
        assert context is not None, "MaskAlign's loss needs the teacher's context"
        maps = self.forward_tokens(images, masked.shown, self.read[-1] + 1)
        aligned = self.align(dict(enumerate(maps[1:])))
        pairs = zip(context.targets[::2], context.targets[1::2], strict=True)
        targets = [pick_target(*pair, masked.shown, self.config.target_norm) for pair in pairs]
        parts = [
            weight * distance(ours_BTC, theirs_BTC, self.config.loss)
            for weight, ours_BTC, theirs_BTC in zip(self.weights, aligned, targets, strict=True)
        ]
        return torch.stack(parts).sum()

    def align(self, maps: dict[int, Tensor]) -> list[Tensor]:
        """Return the aligned features (B, T, C) for each K from the blocks' outputs (B, T, D)."""
        if self.config.order == "mix_adapt":
            return [self.distill_heads[str(layer)](z) for layer, z in zip(self.layers, self._mix(maps), strict=True)]
        return self._mix({block: self.distill_heads[str(block)](maps[block]) for block in self.read})

    def _mix(self, maps: dict[int, Tensor]) -> list[Tensor]:
        """Return for each K a mixture of all maps, or the map of the block at its height."""
        if self.config.fusion == "simple":
            return [maps[self.heights[layer]] for layer in self.layers]
        stacked_SBTX = torch.stack(list(maps.values()))
        mixed = self.distill_weights.index_select(0, self.rows) @ stacked_SBTX.flatten(1)
        return list(mixed.unflatten(1, stacked_SBTX.shape[1:]).unbind(0))

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """See `Method`: the mixing weights get no weight decay either."""
        return super().no_decay(name, parameter) or name.endswith("distill_weights")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the loss, and the teacher separately."""
        super().compile(*args, **kwargs)
        self.teacher.network.compile(*args, **kwargs)


def build_head(kind: str, width: int, teacher_width: int) -> nn.Module:
    """Return the projection from the student's width to the teacher's: one of `MaskAlignConfig.head`."""
    last = nn.Linear(width, teacher_width)
    if kind == "linear":
        return last
    if kind == "norm_linear":
        return nn.Sequential(LayerNorm(width), last)
    between = nn.GELU() if kind == "mlp" else LayerNorm(width)
    return nn.Sequential(nn.Linear(width, width), between, last)


def counting_layers(layers: str, depth: int) -> tuple[list[int], list[float]]:
    """Return the numbers (from 0) of the teacher's layers in the loss, and their weights, which sum to 1.

    For a teacher of depth 12, top5 is 7, 8, 9, 10, 11 with .2 each, and linear_decay is 1 to 11 with 1/66 to 11/66.

    Raises:
        ValueError: if the teacher has fewer layers.
    """
    number = int(layers[3:]) if layers[:3] in ("top", "mid") else 0
    if number > depth - (layers[:3] == "mid"):
        raise ValueError(f"method.layers={layers} exceeds the teacher's {depth} layers, 0 to {depth - 1}")
    shares = {
        "mean": [1] * depth,
        "out": [0] * (depth - 1) + [1],
        "linear_decay": list(range(depth)),
        "top": [0] * (depth - number) + [1] * number,
        "mid": [int(layer == number) for layer in range(depth)],
    }[layers if layers in ("mean", "out", "linear_decay") else layers[:3]]
    found = [layer for layer, share in enumerate(shares) if share]
    return found, [shares[layer] / sum(shares) for layer in found]


def pick_target(before_BRC: Tensor, patches_BNC: Tensor, shown_BV: Tensor, norm: str) -> Tensor:
    """Return a teacher layer at the class token and the patches shown: (B, T, C), at least in single precision.

    `norm` is one of `MaskAlignConfig.target_norm`; bn uses one mean and one variance over the layer's whole batch.
    """
    index_BVC = shown_BV[..., None].expand(-1, -1, patches_BNC.shape[2])
    target_BTC = torch.cat([before_BRC[:, :1], patches_BNC.gather(1, index_BVC)], dim=1)
    target_BTC = target_BTC.to(torch.promote_types(target_BTC.dtype, torch.float32))
    if norm == "whiten":
        return F.layer_norm(target_BTC, target_BTC.shape[-1:])
    if norm == "l2":
        return F.normalize(target_BTC, dim=-1)
    if norm == "bn":
        variance, mean = torch.var_mean(torch.cat([before_BRC, patches_BNC], dim=1).to(target_BTC.dtype))
        return (target_BTC - mean) / (variance + 1e-6).sqrt()
    return target_BTC


def distance(ours_BTC: Tensor, theirs_BTC: Tensor, kind: str) -> Tensor:
    """Return the mean of one of `MaskAlignConfig.loss` over all values, in the targets' precision."""
    ours_BTC = ours_BTC.to(theirs_BTC.dtype)
    if kind == "smoothl1":
        return 2 * F.smooth_l1_loss(ours_BTC, theirs_BTC)
    return F.l1_loss(ours_BTC, theirs_BTC) if kind == "l1" else F.mse_loss(ours_BTC, theirs_BTC)

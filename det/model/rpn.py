"""The region proposal network: objectness of anchors, and the proposed boxes.

detectron2's `RPN` with `StandardRPNHead` (parameter names `rpn_head.*`): losses over a random sample of anchors, each
summed and divided by (samples * images); proposals by top k per level, NMS within a level, and top k over all levels.
Only the boxes of selected anchors are decoded, which does not change the result. Boxes are always float32.
"""

# B image, L level, A anchor (of a level, or of all in order), N candidate after selection, T object

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from mimbench.backbones.pyramid import ConvNorm, suited
from mimbench.det.config import Proposals
from mimbench.det.model.anchors import Anchors
from mimbench.det.model.boxes import Weights, at_least_float32, decode, encode, image_corners, nonempty
from mimbench.det.model.host import places, read
from mimbench.det.model.matching import match, occurrences, sample

WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
OVERLAP = (0.3, 0.7)  # IoU with an object: below the first an anchor is background, from the second on positive
POSITIVE = 0.5  # largest share of positive anchors in the sample
NMS = 0.7  # NMS threshold (IoU) between proposals of a level


class RPNHead(nn.Module):
    """Hidden 3x3 convolutions without a norm, then objectness and box codes, shared by all levels."""

    def __init__(self, channels: int, per_cell: int, options: Proposals) -> None:
        """`options.convs` convolutions, each followed by a norm with `options.norm`; detectron2 has none there."""
        super().__init__()
        hidden: list[nn.Conv2d] = [
            ConvNorm(channels, channels, 3) if options.norm else nn.Conv2d(channels, channels, 3, padding=1)
            for _ in range(options.convs)
        ]
        # detectron2's names: "conv" for a single convolution, "conv.conv0", "conv.conv1" for several
        self.conv = hidden[0] if options.convs == 1 else nn.Sequential()
        if isinstance(self.conv, nn.Sequential):
            for index, layer in enumerate(hidden):
                self.conv.add_module(f"conv{index}", layer)
        self.hidden = tuple(hidden)
        self.objectness_logits = nn.Conv2d(channels, per_cell, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * per_cell, 1)
        for layer in (*hidden, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits (B, A) and box codes (B, A, 4) of each level's anchors."""
        logits, codes = [], []
        for map_BCHW in maps:
            hidden_BCHW = suited(map_BCHW)
            for layer in self.hidden:
                hidden_BCHW = layer(hidden_BCHW).relu_()
            logits.append(self.objectness_logits(hidden_BCHW).permute(0, 2, 3, 1).flatten(1))
            codes.append(self.anchor_deltas(hidden_BCHW).permute(0, 2, 3, 1).reshape(len(map_BCHW), -1, 4))
        return logits, codes


class _Candidates(NamedTuple):
    """Boxes before NMS."""

    boxes: Tensor  # (B, N, 4)
    scores: Tensor  # (B, N)
    levels: Tensor  # (N,)
    valid: Tensor  # (B, N) finite and not empty


class RPN(nn.Module):
    """Computes proposals, and in training the RPN head's two losses."""

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        options: Proposals,
    ) -> None:
        """Take maps of `channels` channels; `anchors` are those of `options` on the maps' strides."""
        super().__init__()
        self.rpn_head = RPNHead(channels, anchors.per_cell, options)
        self.anchors, self.options = anchors, options

    def forward(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals of each image and, if `boxes` is given, the losses.

        Args:
            maps: pyramid levels (B, C, h, w), finest first.
            sizes: true (h, w) of each image, which proposals are clipped to.
            boxes: (T, 4) of each image's objects in training; None at inference.

        Returns:
            Boxes (N, 4) per image, best first, without gradient; and loss_rpn_cls and loss_rpn_loc, or no losses.
        """
        anchors = self.anchors(maps)
        logits, codes = self.rpn_head(maps)
        anchors_A4 = torch.cat(anchors)
        matched = [match(box_iou(boxes_T4, anchors_A4), *OVERLAP, keep_best=True) for boxes_T4 in boxes or ()]
        with torch.no_grad():
            candidates = self._candidates(anchors, logits, codes, sizes, 0 if boxes is not None else 1)
        rows = [candidates.valid.sum(1)]
        if matched:
            rows += torch.stack([occurrences(label_A) for _, label_A in matched]).unbind(1)
        valid, *found = read(rows)
        losses = {}
        if boxes is not None:
            labels = list(zip(*found, strict=True))
            losses = self._losses(anchors_A4, torch.cat(logits, 1), torch.cat(codes, 1), boxes, matched, labels)
        with torch.no_grad():
            return self._proposals(candidates, valid, 0 if boxes is not None else 1), losses

    def _losses(
        self,
        anchors_A4: Tensor,
        logits_BA: Tensor,
        codes_BA4: Tensor,
        boxes: Sequence[Tensor],
        matched: Sequence[tuple[Tensor, Tensor]],
        found: Sequence[Sequence[int]],
    ) -> dict[str, Tensor]:
        """Return the losses; `matched` are each image's objects and labels of anchors, `found` their `occurrences`."""
        chosen, others, sources, targets = [], [], [], []
        for image, (boxes_T4, (object_A, label_A), counts) in enumerate(zip(boxes, matched, found, strict=True)):
            foreground, background = sample(label_A, self.options.samples, POSITIVE, counts)
            chosen.append(foreground + image * len(anchors_A4))
            others.append(background + image * len(anchors_A4))
            sources.append(anchors_A4[foreground])
            targets.append(boxes_T4[object_A[foreground]])
        foreground, background = torch.cat(chosen), torch.cat(others)
        logits = at_least_float32(logits_BA.flatten()[torch.cat([foreground, background])])
        is_object = torch.arange(len(logits), device=logits.device) < len(foreground)
        predicted = codes_BA4.view(-1, 4)[foreground]
        wanted = encode(torch.cat(sources), torch.cat(targets), WEIGHTS)
        norm = self.options.samples * len(boxes)
        classified = F.binary_cross_entropy_with_logits(logits, is_object.to(logits), reduction="sum")
        return {"loss_rpn_cls": classified / norm, "loss_rpn_loc": (predicted - wanted).abs().sum() / norm}

    def _candidates(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        codes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        mode: int,
    ) -> _Candidates:
        """Return the best boxes of each level; `mode` 0 is training, 1 inference."""
        before_nms = self.options.before_nms[mode]
        kept_boxes, kept_scores, kept_levels = [], [], []
        for level, (anchors_A4, logits_BA, codes_BA4) in enumerate(zip(anchors, logits, codes, strict=True)):
            count = min(len(anchors_A4), before_nms)
            scores_BN, best_BN = logits_BA.topk(count, dim=1)
            codes_BN4 = codes_BA4.gather(1, best_BN[..., None].expand(-1, -1, 4))
            kept_boxes.append(decode(codes_BN4, anchors_A4[best_BN], WEIGHTS))
            kept_scores.append(scores_BN)
            kept_levels.append(torch.full_like(best_BN[0], level))
        boxes_BN4, scores_BN, level_N = torch.cat(kept_boxes, 1), torch.cat(kept_scores, 1), torch.cat(kept_levels)
        finite_BN = boxes_BN4.isfinite().all(-1) & scores_BN.isfinite()
        boxes_BN4 = boxes_BN4.clamp(min=0).minimum(image_corners(sizes, boxes_BN4))
        return _Candidates(boxes_BN4, scores_BN, level_N, finite_BN & nonempty(boxes_BN4))

    def _proposals(self, candidates: _Candidates, valid: Sequence[int], mode: int) -> list[Tensor]:
        """Return the best boxes of each image, which has `valid` valid candidates."""
        proposals = []
        each = zip(candidates.boxes, candidates.scores, candidates.valid, valid, strict=True)
        for boxes_N4, scores_N, valid_N, count in each:
            place = places(valid_N, count)
            boxes = boxes_N4[place]
            keep = batched_nms(boxes, scores_N[place].float(), candidates.levels[place], NMS)
            proposals.append(boxes[keep[: self.options.after_nms[mode]]])
        return proposals

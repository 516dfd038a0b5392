"""The box head (4 convolutions, 1 linear layer) and its predictor; as in detectron2."""

# R region, C channel, K class, J code (one per class, or one for all), N selected region and class

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.det.config import Heads, LossWeights
from mimbench.det.model.boxes import Weights, at_least_float32, decode, encode
from mimbench.det.model.conv_head import ConvHead
from mimbench.det.model.federated import drawn_classes, sigmoid_losses
from mimbench.det.model.regions import Regions


class BoxHead(ConvHead):
    """Maps regions' features (R, C, side, side) to (R, fc): convolutions, and a linear layer of `fc` units."""

    def __init__(self, channels: int, side: int, options: Heads) -> None:
        super().__init__(channels, options, "conv")
        self.fc1 = nn.Linear(self.channels * side * side, options.fc)
        nn.init.kaiming_uniform_(self.fc1.weight, a=1)  # Caffe2's Xavier fill
        nn.init.zeros_(self.fc1.bias)

    def forward(self, regions_RCMM: Tensor) -> Tensor:
        """Return the hidden feature of each region."""
        return self.fc1(self.convolve(regions_RCMM).flatten(1)).relu_()


class BoxPredictor(nn.Module):
    """Predicts class logits (background last), and a box code per class or one for all classes."""

    fed_loss_cls_weights: Tensor  # detectron2's name; exists only with `class_weights`

    def __init__(self, classes: int, options: Heads, *, weights: Weights, class_weights: Tensor | None = None) -> None:
        """Args:
        classes: number of classes without the background.
        options: `fc` is the width of a region's feature; with `cascade` there is one box code for all classes;
            `class_loss` and `federated` select the classification loss and how logits become scores.
        weights: weights of the box code (`det.model.boxes`).
        class_weights: (K,) sampling weight of each class for class_loss="federated" (`det.model.federated`).

        Raises:
            ValueError: if class weights are missing or their number differs from the classes.
        """
        super().__init__()
        self.classes, self.options, self.weights = classes, options, weights
        self.cls_score = nn.Linear(options.fc, classes + 1)
        self.bbox_pred = nn.Linear(options.fc, 4 if options.cascade else 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        if options.class_loss == "federated":
            if class_weights is None or len(class_weights) != classes:
                raise ValueError(f"heads.class_loss=federated needs a weight for each of the {classes} classes")
            self.register_buffer("fed_loss_cls_weights", class_weights)

    def forward(self, hidden_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and codes (R, K, 4), or (R, 1, 4) for all classes."""
        return self.cls_score(hidden_RD), self.bbox_pred(hidden_RD).unflatten(1, (-1, 4))

    def losses(self, logits_RK: Tensor, codes_RJ4: Tensor, regions: Regions, mode: LossWeights) -> dict[str, Tensor]:
        """Return the class loss of all regions and the L1 box loss of positive regions, both means over all regions.

        Args:
            logits_RK, codes_RJ4: outputs of `forward`.
            regions: the regions they belong to.
            mode: weighting of regions (`det.model.loss_weights`).
        """
        weight_R, label_R = regions.loss_weights(mode), regions.labels
        shown = regions.shown
        wanted = encode(regions.boxes[shown], regions.targets[shown], self.weights)
        error_R = (self._of_class(codes_RJ4, shown, label_R[shown]) - wanted).abs().sum(1)
        missed_R = self._class_losses(at_least_float32(logits_RK), regions, mode)
        return {"loss_cls": (missed_R * weight_R).sum(), "loss_box_reg": (error_R * weight_R[shown]).sum()}

    def _class_losses(self, logits_RK: Tensor, regions: Regions, mode: LossWeights) -> Tensor:
        """(R,)."""
        if self.options.class_loss == "softmax":
            return F.cross_entropy(logits_RK, regions.labels, reduction="none")
        if self.options.class_loss == "sigmoid":
            return sigmoid_losses(logits_RK, regions.labels)
        groups = list(regions.counts) if mode == "image" else [len(logits_RK)]  # regions that share drawn classes
        return torch.cat(
            [
                sigmoid_losses(logits, label, drawn_classes(label, self.fed_loss_cls_weights, self.options.federated))
                for logits, label in zip(logits_RK.split(groups), regions.labels.split(groups), strict=True)
            ]
        )

    def scores(self, logits_RK: Tensor) -> Tensor:
        """Return scores (R, K + 1) in 0..1; the last column is the background's, meaningless with sigmoids."""
        logits_RK = at_least_float32(logits_RK)  # half precision would tie scores that differ
        return logits_RK.softmax(-1) if self.options.class_loss == "softmax" else logits_RK.sigmoid()

    def boxes(self, codes_RJ4: Tensor, regions_R4: Tensor, region_N: Tensor, label_N: Tensor) -> Tensor:
        """Return the boxes (N, 4) decoded from regions `region_N` for classes `label_N`."""
        return decode(self._of_class(codes_RJ4, region_N, label_N), regions_R4[region_N], self.weights)

    @staticmethod
    def _of_class(codes_RJ4: Tensor, region_N: Tensor, label_N: Tensor) -> Tensor:
        return codes_RJ4[region_N, label_N if codes_RJ4.shape[1] > 1 else 0]

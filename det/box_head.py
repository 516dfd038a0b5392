"""The box head (4 convolutions and 1 linear layer) and its predictor; detectron2's names, arithmetic and start."""

# R region, C channel, K class

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from backbones.pyramid import ConvNorm
from det.boxes import Weights, at_least_float32, decode, encode

WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)


def init_conv(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """detectron2's start for hidden convolutions (Caffe2's MSRA fill)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class BoxHead(nn.Module):
    """Regions' features (R, C, side, side) to (R, fc)."""

    def __init__(self, channels: int, side: int, convs: Sequence[int], fc: int) -> None:
        """`convs` are the widths of the 3x3 convolutions, each followed by a norm over channels and a ReLU."""
        super().__init__()
        self.hidden = len(convs)
        for index, width in enumerate(convs):
            layer = ConvNorm(channels, width, 3)
            init_conv(layer)
            self.add_module(f"conv{index + 1}", layer)
            channels = width
        self.fc1 = nn.Linear(channels * side * side, fc)
        nn.init.kaiming_uniform_(self.fc1.weight, a=1)  # Caffe2's Xavier fill
        nn.init.zeros_(self.fc1.bias)

    def forward(self, regions_RCMM: Tensor) -> Tensor:
        """The hidden feature of each region."""
        for index in range(self.hidden):
            regions_RCMM = self.get_submodule(f"conv{index + 1}")(regions_RCMM).relu_()
        return self.fc1(regions_RCMM.flatten(1)).relu_()


class BoxPredictor(nn.Module):
    """Class logits (the background last) and a box code for each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and codes (R, K, 4)."""
        return self.cls_score(hidden_RD), self.bbox_pred(hidden_RD).view(-1, self.classes, 4)

    def losses(
        self, logits_RK: Tensor, codes_RK4: Tensor, boxes_R4: Tensor, label_R: Tensor, target_R4: Tensor
    ) -> dict[str, Tensor]:
        """Cross entropy over all regions, and L1 over those of an object, both divided by the number of regions.

        Args:
            logits_RK, codes_RK4: what `forward` gave.
            boxes_R4: the regions.
            label_R: 0..K-1, or K for background.
            target_R4: the box of each region's object; anything for background.
        """
        shown = (label_R < self.classes).nonzero()[:, 0]
        wanted = encode(boxes_R4[shown], target_R4[shown], WEIGHTS)
        error = codes_RK4[shown, label_R[shown]] - wanted
        regions = max(len(label_R), 1)
        return {
            "loss_cls": F.cross_entropy(at_least_float32(logits_RK), label_R, reduction="sum") / regions,
            "loss_box_reg": error.abs().sum() / regions,
        }

    @staticmethod
    def boxes(codes_N4: Tensor, regions_N4: Tensor) -> Tensor:
        """The boxes (N, 4) that codes of chosen classes make of their regions."""
        return decode(codes_N4, regions_N4, WEIGHTS)

"""The convolutions that box head and mask head begin with; as in detectron2."""

# R region, C channel, M side of a region's features

from __future__ import annotations

from torch import Tensor, nn

from mimbench.backbones.pyramid import ConvNorm
from mimbench.det.config import Heads


def init_conv(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initialise a hidden convolution as detectron2 does (Caffe2's MSRA fill)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvHead(nn.Module):
    """`options.convs` 3x3 convolutions of width `options.channels`, each followed by a norm and a ReLU."""

    def __init__(self, channels: int, options: Heads, name: str) -> None:
        """Args:
        channels: of a region's features.
        options: number and width of the convolutions.
        name: of the convolutions without their number, as in detectron2's files: "conv" or "mask_fcn".
        """
        super().__init__()
        self.names = [f"{name}{number}" for number in range(1, options.convs + 1)]
        for layer_name in self.names:
            layer = ConvNorm(channels, options.channels, 3)
            init_conv(layer)
            self.add_module(layer_name, layer)
            channels = options.channels
        self.channels = channels  # of what `convolve` returns

    def convolve(self, regions_RCMM: Tensor) -> Tensor:
        """Return the hidden maps of each region, of the same size."""
        for name in self.names:
            regions_RCMM = self.get_submodule(name)(regions_RCMM).relu_()
        return regions_RCMM

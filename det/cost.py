"""The cost of training a detector, from detectron2's measured seconds per image of 1024 pixels; imports no torch."""

from __future__ import annotations

from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.run.cost import Cost

COUNTED_AS = ("mask_rcnn",)  # what its runs have in common in the table of compute costs, beside their encoders
# share of the encoder in the operations of a forward pass at 1024 pixels, by width (torch's FlopCounterMode)
ENCODER = {768: 0.605, 1024: 0.817, 1280: 0.894}
SECONDS = {768: 0.314, 1024: 0.603, 1280: 1.098}  # width -> seconds per image on one A100 (detectron2, projects/ViTDet)


def cost(config: MaskRCNNConfig) -> Cost | None:
    """Return the cost of all steps; None for an encoder width without a measurement."""
    seconds = SECONDS.get(config.encoder.width)
    if seconds is None:
        return None
    area = (config.image / 1024) ** 2  # most blocks use window attention, so cost is proportional to tokens
    scaled = ("" if area == 1 else ", by area") + (", by operations" if config.vitdet.frozen else "")
    hours = config.steps * config.batch * seconds * area * _remaining(config) / 3600
    return Cost(hours, f"detectron2's seconds per image{scaled}")


def _remaining(config: MaskRCNNConfig) -> float:
    """Return the share of a step's operations that is left when the encoder is frozen: its forward pass of three."""
    if not config.vitdet.frozen:
        return 1.0
    encoder = ENCODER[config.encoder.width]
    used = (config.vitdet.layer or config.encoder.depth) / config.encoder.depth
    return (encoder * used + 3 * (1 - encoder)) / 3

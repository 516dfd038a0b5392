"""The cost of training a detector, from detectron2's measured seconds per image of 1024 pixels; imports no torch."""

from __future__ import annotations

from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.run.cost import Cost

COUNTED_AS = ("mask_rcnn",)  # what its runs have in common in the table of compute costs, beside their encoders
SECONDS = {768: 0.314, 1024: 0.603, 1280: 1.098}  # width -> seconds per image on one A100 (detectron2, projects/ViTDet)


def cost(config: MaskRCNNConfig) -> Cost | None:
    """Return the cost of all steps; None for an encoder width without a measurement."""
    seconds = SECONDS.get(config.encoder.width)
    if seconds is None:
        return None
    area = (config.image / 1024) ** 2  # most blocks use window attention, so cost is proportional to tokens
    scaled = "" if area == 1 else ", by area"
    return Cost(config.steps * config.batch * seconds * area / 3600, f"detectron2's seconds per image{scaled}")

"""The tables of methods and maskings: a new one needs a file, a config, and a line here.

method = build_method(config.method, config.encoder)
masking = build_masking(config.masking, config.encoder, config.epochs)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimbench.backbones.config import ViT
from mimbench.pretrain.masking import configs as masking_configs
from mimbench.pretrain.masking.attention import MaskAndThrow
from mimbench.pretrain.masking.strategies import Grid, Keep, Masking, Random
from mimbench.pretrain.masking.units import InUnits
from mimbench.pretrain.methods import configs as method_configs
from mimbench.pretrain.methods.crossmae import CrossMAE
from mimbench.pretrain.methods.mae import MAE
from mimbench.pretrain.methods.maskalign import MaskAlign
from mimbench.pretrain.methods.method import Method
from mimbench.pretrain.methods.simmim import SimMIM
from mimbench.pretrain.methods.teachers import load_teacher

METHODS: dict[type[Any], Callable[[ViT, Any], Method]] = {  # by their config
    method_configs.CrossMAEConfig: CrossMAE,
    method_configs.MAEConfig: MAE,
    method_configs.SimMIMConfig: SimMIM,
}

MASKINGS: dict[type[Any], Callable[[Any, int], Masking]] = {  # by their config; the integer is the number of epochs
    masking_configs.RandomMasking: lambda config, _: Random(config),
    masking_configs.GridMasking: lambda config, _: Grid(config),
    masking_configs.KeepMasking: lambda config, _: Keep(config),
    masking_configs.AttentionMasking: MaskAndThrow,
}


def build_method(config: method_configs.MethodConfig, encoder: ViT, checkpoint: str | None = None) -> Method:
    """Return the method of `config` for an encoder of these sizes, with weights drawn from torch's generator.

    `checkpoint` is the file of MaskAlign's teacher; without it, timm's cache is used.

    Raises:
        FileNotFoundError, ValueError: if the teacher is missing, or its patches differ from the encoder's.
    """
    if isinstance(config, method_configs.MaskAlignConfig):
        teacher = load_teacher(config.teacher, checkpoint, encoder.grid, config.teacher_image)
        return MaskAlign(encoder, config, teacher)
    return METHODS[type(config)](encoder, config)


def build_masking(config: masking_configs.MaskingConfig, encoder: ViT, epochs: int) -> Masking:
    """Return the masking of `config`, after checking it on the grid of `encoder` for the first and the last epoch.

    Raises:
        ValueError: if no patch would be shown, or none predicted although the config requires some.
    """
    masking = MASKINGS[type(config)](config, epochs)
    if (unit := getattr(config, "unit", 1)) > 1:
        masking = InUnits(masking, unit)
    for epoch in (0.0, float(epochs)):
        counts = masking.counts(encoder.grid**2, epoch)
        if config.predicted_share and not counts.predicted:
            raise ValueError(
                f"masking.kind={config.kind} predicts {config.predicted_share:.4g} of {encoder.grid**2} patches, less "
                "than one: raise the share or use smaller patches"
            )
    return masking

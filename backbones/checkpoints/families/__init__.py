"""The table of families. A file is of the first that matches: those with decoders and heads before bare encoders."""

from __future__ import annotations

from mimbench.backbones.checkpoints.families import (
    beit,
    clip,
    crossmae,
    detectron2,
    dinov2,
    dinov3,
    mae,
    maskalign,
    plain,
    simmim,
)

FAMILIES = (
    crossmae.CROSSMAE_LAST,
    crossmae.CROSSMAE,
    mae.MAE,
    maskalign.MASKALIGN,
    simmim.SIMMIM,
    simmim.SIMMIM_ABSOLUTE,
    simmim.SIMMIM_FINETUNED,
    beit.BEIT_V2,
    beit.BEIT,
    beit.BEIT_FINETUNED,
    clip.CLIP_TIMM,
    clip.CLIP_OPENAI,
    clip.CLIP_HF,
    dinov3.DINOV3,
    dinov3.DINOV3_TIMM,
    dinov2.DINOV2,
    dinov2.DINOV2_REGISTERS,
    dinov2.DINOV2_TIMM,
    detectron2.START,
    detectron2.TRAINED,
    plain.MOCO,
    plain.DINO,
    plain.DEIT_DISTILLED,
    plain.DEIT3,
    plain.MOCO_CLASSIFIER,
    mae.MAE_ENCODER,
    plain.CLASSIFIER,
    plain.AUGREG,
    plain.VIT,
    plain.PLAIN,
)

"""Build the segmenter of a config: `build_segmenter(config, classes)`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder
from mimbench.backbones.checkpoints.location import user_code
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.weights import Weights, open_weights
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD
from mimbench.seg.config import Backbone as BackboneConfig
from mimbench.seg.config import Pixels, UPerNetConfig
from mimbench.seg.model.load import TABLE, Loaded, load_encoder_into
from mimbench.seg.model.relative import rows_of
from mimbench.seg.model.segmenter import Backbone, UPerNet
from mimbench.seg.model.segmenter_file import Described, described
from mimbench.seg.model.vit import OtherViT, QkvBias, SegmentationViT

log = logging.getLogger(__name__)

AS_IT_IS = BackboneConfig(rel_pos=False, layer_scale=None, drop_path=0.0)
WHOLE = "mmsegmentation, the whole segmenter"  # the family of a checkpoint of mmsegmentation's or mimbench's segmenter


@dataclass(frozen=True)
class Built:
    """A segmenter and the source of its weights."""

    model: UPerNet
    info: EncoderInfo | None  # of the checkpoint; None without one
    loaded: Loaded | None  # missing and unexpected weights; None without a checkpoint

    @property
    def depth(self) -> int:
        """The number of blocks of the encoder."""
        backbone = self.model.backbone
        return len(backbone.layers if isinstance(backbone, SegmentationViT) else backbone.blocks)

    def description(self, config: UPerNetConfig, classes: tuple[str, ...]) -> Described:
        """Return the description saved with the weights of the model trained with `config`."""
        vit, traits = (self.info.vit, self.info.traits) if self.info else (config.encoder, Traits())
        if isinstance(self.model.backbone, SegmentationViT):
            vit = replace(vit, image=config.image)
        interpolation = self.info.interpolation if self.info else "bicubic"
        return Described(
            vit,
            traits,
            interpolation,
            self.model.backbone.outputs,
            self.model.mean,
            self.model.std,
            classes,
            tuple(self.model.config.pool_scales),
        )


def build_segmenter(config: UPerNetConfig, classes: int) -> Built:
    """Build UperNet on the checkpoint's encoder, on a random encoder without one, or load a whole segmenter.

    The random encoder is initialised as for pretraining (fixed sin-cos positions, Xavier), as in all evaluations.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if it is not a checkpoint, or its encoder does not fit.
    """
    if config.checkpoint is not None and user_code(config.checkpoint) is None:
        found = open_weights(config.checkpoint, "segmenter", allow_partial=config.allow_partial)
        if found.kind == "segmenter":
            return _whole(config, found.tensors, classes)
    backbone, info, loaded = build_backbone(
        config.checkpoint,
        config.encoder,
        config.backbone,
        config.backbone.outputs,
        image=config.image,
        allow_partial=config.allow_partial,
    )
    backbone.recompute = config.recompute
    mean, std = image_statistics(config.pixels, info)
    model = UPerNet(backbone, classes, config.heads, fused=config.fused_head, mean=mean, std=std)
    return Built(model, info, loaded)


def encoder_of(found: Weights) -> ViT:
    """Return the encoder's sizes in a whole segmenter, from its weights or from what we wrote beside them.

    Raises:
        ValueError: if they cannot be told.
    """
    about = described(found.file)
    return about.vit if about else _shape_of(found.tensors, str(found.file))


def image_statistics(
    pixels: Pixels, info: EncoderInfo | None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and deviation of the images: ImageNet's, or the checkpoint's if selected and known."""
    if info is None or pixels == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    return info.mean, info.std


def build_backbone(
    checkpoint: str | None,
    encoder: ViT,
    config: BackboneConfig,
    outputs: Callable[[int], tuple[int, ...]],
    *,
    image: int,
    allow_partial: bool,
    frozen: bool = False,
) -> tuple[Backbone, EncoderInfo | None, Loaded | None]:
    """Build an encoder as a segmenter's backbone, with the weights of `checkpoint` or, without one, random weights.

    Args:
        checkpoint: a checkpoint of any known family.
        encoder: shape of the random encoder.
        config: what is added to the encoder.
        outputs: returns the blocks whose outputs are used, given the number of blocks.
        image: side of the images in pixels.
        allow_partial: accept a checkpoint whose keys are not all accounted for.
        frozen: keep the encoder unchanged, with its final norm if it has one; positions cover `image`, rounded up.

    Raises:
        FileNotFoundError, ValueError: as `build_encoder`; also if `image` is not a multiple of the encoder's patch.
    """
    model, info = build_encoder(checkpoint, encoder, allow_partial=allow_partial)
    vit, traits = (info.vit, info.traits) if info else (encoder, Traits())
    interpolation = info.interpolation if info else "bicubic"
    if frozen:
        config = AS_IT_IS if info is None or not info.final_norm else replace(AS_IT_IS, final_norm=True)
        image = -(-image // vit.patch) * vit.patch
    if config.final_norm and info is not None and not info.final_norm:
        raise ValueError(f"backbone.final_norm=true: {checkpoint} has no final norm; use backbone.final_norm=false")
    backbone: Backbone
    common: dict[str, Any] = {
        "outputs": outputs(vit.depth),
        "drop_path": config.drop_path,
        "final_norm": config.final_norm,
    }
    if fits_segmentation_vit(traits):
        backbone = SegmentationViT(
            vit,
            image=image,
            abs_pos=traits.positions == "absolute",
            rel_pos=config.rel_pos or traits.positions == "relative",
            layer_scale=traits.layer_scale or config.layer_scale is not None,
            qkv_bias=_qkv_bias(traits),
            norm_eps=traits.norm_eps,
            interpolation=interpolation,
            **common,
        )
    else:
        if config.rel_pos and traits.positions != "relative":
            log.warning(
                "%s: no relative positions are added, because it is no plain ViT (%s)", checkpoint, _unlike(traits)
            )
        backbone = OtherViT(vit, traits, interpolation=interpolation, **common)
    if config.layer_scale is not None:
        for name, parameter in backbone.named_parameters():
            if name.endswith((".gamma_1", ".gamma_2")):
                nn.init.constant_(parameter, config.layer_scale)
    state = model.state_dict()
    if config.final_norm and info is None:  # a random encoder has no final norm; the backbone's keeps its initial value
        state |= {name: value for name, value in backbone.state_dict().items() if name in ("norm.weight", "norm.bias")}
    loaded = load_encoder_into(backbone, state, interpolation)
    return backbone, info, loaded if info else None


def fits_segmentation_vit(traits: Traits) -> bool:
    """Whether an encoder with `traits` can be a `SegmentationViT`: class token, MLP with GELU, no other additions."""
    free = {"positions": "absolute", "layer_scale": False, "qkv_bias": True, "norm_eps": Traits().norm_eps}
    return traits.positions in ("absolute", "relative") and replace(traits, **free) == Traits()  # type: ignore[arg-type]


def _unlike(traits: Traits) -> str:
    """Return what distinguishes an encoder with `traits` from a plain ViT: "registers=4, mlp=swiglu"."""
    plain = asdict(Traits())
    free = ("layer_scale", "qkv_bias", "norm_eps")
    different = [name for name, value in asdict(traits).items() if value != plain[name] and name not in free]
    return ", ".join(f"{name}={getattr(traits, name)}" for name in different)


def _qkv_bias(traits: Traits) -> QkvBias:
    if not traits.qkv_bias:
        return "none"
    return "qv" if traits.positions == "relative" else "full"


def _whole(config: UPerNetConfig, weights: Mapping[str, Tensor], classes: int) -> Built:
    """Load a whole segmenter from `weights`; its shape comes from them, or from mimbench's description in the file."""
    file, names = str(config.checkpoint), weights.keys()
    if len(weights["decode_head.conv_seg.weight"]) != classes:
        known = len(weights["decode_head.conv_seg.weight"])
        raise ValueError(f"{file} has {known} classes, but {config.data} has {classes}; evaluate it on its own data")
    about = described(file)
    vit = about.vit if about else _shape_of(weights, file)
    channels = len(weights["decode_head.fpn_bottleneck.bn.weight"])
    if config.heads.channels not in (None, channels):
        raise ValueError(
            f"heads.channels={config.heads.channels}: {file} has {channels}; use heads.channels={channels}"
        )
    if about and config.backbone.blocks not in (None, about.outputs):
        asked, used = (",".join(map(str, numbers or ())) for numbers in (config.backbone.blocks, about.outputs))
        raise ValueError(f"backbone.blocks={asked}: {file} was trained with {used}; use backbone.blocks={used}")
    if about and about.pool_scales not in (None, config.heads.pool_scales):  # other sides fit the same weights
        asked, used = (",".join(map(str, sides or ())) for sides in (config.heads.pool_scales, about.pool_scales))
        raise ValueError(f"heads.pool_scales={asked}: {file} was trained with {used}; use heads.pool_scales={used}")
    if vit.image != config.image:
        raise ValueError(f"image={config.image}: this segmenter was trained at {vit.image} px; use image={vit.image}")
    has_auxiliary = "auxiliary_head.conv_seg.weight" in names
    model = UPerNet(
        _backbone_of(weights, vit, about, config.backbone),
        classes,
        replace(
            config.heads,
            channels=channels,
            aux_channels=weights["auxiliary_head.conv_seg.weight"].shape[1] if has_auxiliary else 1,
            aux_weight=config.heads.aux_weight if has_auxiliary else 0.0,
        ),
        fused=config.fused_head,
        mean=about.mean if about else IMAGENET_MEAN,
        std=about.std if about else IMAGENET_STD,
    )
    own = model.state_dict()
    wrong = sorted(own.keys() ^ names) or [name for name in names if own[name].shape != weights[name].shape]
    if wrong:
        raise ValueError(
            f"{file} is not a UperNet of this kind: {', '.join(wrong[:3])}: missing, unexpected or of the wrong shape"
        )
    model.load_state_dict(dict(weights))
    return Built(model, EncoderInfo(WHOLE, vit, final_norm=False), None)


def _shape_of(weights: Mapping[str, Tensor], file: str) -> ViT:
    """Return the encoder's sizes. Relative positions tell the number of heads; without them a head has 64 channels."""
    if "backbone.patch_embed.projection.weight" not in weights:
        raise ValueError(f"{file}: the weights alone do not describe a segmenter whose encoder is not a plain ViT")
    width, _, patch, _ = weights["backbone.patch_embed.projection.weight"].shape
    depth = len({name.split(".")[2] for name in weights if name.startswith("backbone.layers.")})
    table = weights.get(f"backbone.layers.0.{TABLE}")
    heads = max(width // 64, 1) if table is None else table.shape[1]
    if table is not None:
        grid = next(n for n in range(1, len(table)) if rows_of(n) >= len(table))
    else:
        grid = int((weights["backbone.pos_embed"].shape[1] - 1) ** 0.5)
    return ViT(width, depth, heads, patch=patch, image=grid * patch)


def _backbone_of(weights: Mapping[str, Tensor], vit: ViT, about: Described | None, config: BackboneConfig) -> Backbone:
    outputs = about.outputs if about else config.outputs(vit.depth)
    interpolation = about.interpolation if about else "bicubic"
    final_norm = "backbone.norm.weight" in weights
    if about is not None and not fits_segmentation_vit(about.traits):
        return OtherViT(
            vit, about.traits, outputs=outputs, drop_path=config.drop_path, final_norm=final_norm,
            interpolation=interpolation,
        )  # fmt: skip
    bias: QkvBias = "none"
    if "backbone.layers.0.attn.qkv.bias" in weights:
        bias = "full"
    elif "backbone.layers.0.attn.q_bias" in weights:
        bias = "qv"
    return SegmentationViT(
        vit,
        image=vit.image,
        outputs=outputs,
        abs_pos="backbone.pos_embed" in weights,
        rel_pos=f"backbone.layers.0.{TABLE}" in weights,
        layer_scale="backbone.layers.0.gamma_1" in weights,
        qkv_bias=bias,
        drop_path=config.drop_path,
        norm_eps=about.traits.norm_eps if about else Traits().norm_eps,
        final_norm=final_norm,
        interpolation=interpolation,
    )

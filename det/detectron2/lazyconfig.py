"""Convert a detection recipe to a detectron2 LazyConfig: for `tools/lazyconfig_train_net.py` and `engine=detectron2`.

    mimbench lazyconfig det/mask_rcnn_vitdet_b_100ep data=coco checkpoint=encoder.safetensors -o vitdet_b.py
    python tools/lazyconfig_train_net.py --config-file vitdet_b.py --num-gpus 8

It writes FILE, which does not need mimbench, and FILE with the suffix .pth beside it: the initial weights of the whole
detector, with resampled patch embedding and positions, so that mimbench and detectron2 start from the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.backbones.config import Traits, ViT
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.detectron2.installed import COMMIT
from mimbench.det.optim import MILESTONE_FACTOR, WARMUP_FACTOR
from mimbench.engine.data.datasets import CocoFiles

OLD_NAME = """
if not hasattr(numpy, "float"):
    numpy.float = float  # the package lvis, used for evaluation, needs this name, which numpy removed
"""


@dataclass(frozen=True)
class Source:
    """The contents of a LazyConfig that are not in the recipe."""

    train: CocoFiles
    val: CocoFiles
    images_showing: Sequence[int]  # number of training images with each category
    bitmaps: bool  # some objects are RLE regions, for which detectron2 needs bitmask format for all masks
    shape: ViT  # of the encoder inside the detector
    mean: Sequence[float]  # of the images, as fractions of 255
    std: Sequence[float]
    start: Path  # the weights to start from
    output: Path
    device: str  # cuda or cpu

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of both splits for detectron2, which recognises LVIS files by "v1" in the name."""
        return "mimbench_v1_train", "mimbench_v1_val"


def refusal(config: MaskRCNNConfig) -> str | None:
    """Return why detectron2 cannot train this recipe; None if it can."""
    views, clip = config.test_time_augmentation, config.grad_clip
    flip, parts = config.augment.flip, config.compute.accumulate
    ours = config.vitdet.beyond_detectron2()
    lacking = {
        f"{', '.join(ours)}: its ViT does not support it; use the default": bool(ours),
        "steps=0: there is nothing to train; use engine=mimbench to evaluate": config.steps == 0,
        "proposals.norm=true: its proposal head has no norm; use proposals.norm=false": config.proposals.norm,
        f"grad_clip={clip}: its lazy configs do not clip gradients; use grad_clip=none": clip is not None,
        f"compute.accumulate={parts}: it does not accumulate; use compute.accumulate=1 and more GPUs": parts > 1,
        f"warmup={config.warmup:g}: it must end within steps={config.steps}; use a shorter warmup or more steps": (
            config.warmup > config.steps
        ),
        f"heads.soft_nms={config.heads.soft_nms}: use heads.soft_nms=off": config.heads.soft_nms != "off",
        "test_time_augmentation.*: its lazy configs do not support it; use "
        "test_time_augmentation.sizes=[] test_time_augmentation.flip=false": bool(views.sizes) or views.flip,
        f"augment.flip={flip}: only 0 and 0.5 are supported": flip not in (0.0, 0.5),
    }
    return next((reason for reason, applies in lacking.items() if applies), None)


def lazyconfig(config: MaskRCNNConfig, source: Source) -> str:
    """Return the LazyConfig, as Python text, of a recipe that detectron2 can train (`refusal` is None)."""
    parts = (_header, _data, _backbone, _regions, _model, _training)
    return "\n".join(part(config, source) for part in parts)


def _header(config: MaskRCNNConfig, source: Source) -> str:
    return f'''"""Written by mimbench for detectron2 (commit {COMMIT[:8]}), tools/lazyconfig_train_net.py."""

from functools import partial

import detectron2.data.transforms as T
import numpy
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid, ViT
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf
'''


def _data(config: MaskRCNNConfig, source: Source) -> str:
    train, val = source.names
    lvis = config.benchmark == "lvis"
    slash = "/" if lvis else ""  # its reader of LVIS appends names without one
    folders = [f"{files.images}{slash}" for files in (source.train, source.val)]
    flip = "L(T.RandomFlip)(horizontal=True),\n            " if config.augment.flip else ""
    limit = f", max_dets_per_image={config.heads.detections}" if lvis else ""
    workers = 4 if config.compute.workers == "auto" else config.compute.workers  # 4: detectron2's default
    text = f"""{OLD_NAME if lvis else ""}
for _name, _file, _images in (
    ({train!r}, {str(source.train.annotations)!r}, {folders[0]!r}),
    ({val!r}, {str(source.val.annotations)!r}, {folders[1]!r}),
):
    if _name not in DatasetCatalog.list():
        {"register_lvis_instances" if lvis else "register_coco_instances"}(_name, {{}}, _file, _images)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names={train!r}),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[
            {flip}L(T.ResizeScale)(
                min_scale={config.augment.smallest},
                max_scale={config.augment.largest},
                target_height={config.image},
                target_width={config.image},
            ),
            L(T.FixedSizeCrop)(crop_size=({config.image}, {config.image}), pad=False),
        ],
        image_format="RGB",
        use_instance_mask={config.heads.masks},
        instance_mask_format={"bitmask" if source.bitmaps else "polygon"!r},
        recompute_boxes={config.heads.masks},
    ),
    total_batch_size={config.batch},
    num_workers={workers},
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names={val!r}, filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length={config.image}, max_size={config.image})],
        image_format="RGB",
    ),
    num_workers={workers},
)
dataloader.evaluator = L({"LVISEvaluator" if lvis else "COCOEvaluator"})(
    dataset_name={val!r}, output_dir={str(source.output / "inference")!r}{limit}
)
"""
    if config.repeat is None:
        return text
    return (
        text
        + f"""dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${{dataloader.train.dataset}}", repeat_thresh={config.repeat}
    )
)
"""
    )


def _backbone(config: MaskRCNNConfig, source: Source) -> str:
    vit, vitdet = source.shape, config.vitdet
    windowed = [block for block in range(vit.depth) if block not in vitdet.attend_globally(vit.depth, Traits())]
    return f"""
_levels = {_levels(config, source)!r}
_top = LastLevelMaxPool()
_top.in_feature = _levels[-2]
_backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size={config.image},
        patch_size={vit.patch},
        embed_dim={vit.width},
        depth={vit.depth},
        num_heads={vit.heads},
        drop_path_rate={vitdet.drop_path},
        window_size={vitdet.window},
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        window_block_indexes={windowed},
        residual_block_indexes=[],
        use_abs_pos={vitdet.abs_pos},
        use_rel_pos={vitdet.rel_pos},
        pretrain_img_size={vit.image},
        out_feature="last_feat",
    ),
    in_feature="last_feat",
    out_channels={vitdet.channels},
    scale_factors={tuple(vitdet.scales)},
    top_block=_top,
    norm="LN",
    square_pad={config.image},
)
"""


def _levels(config: MaskRCNNConfig, source: Source) -> list[str]:
    """Return detectron2's names of the pyramid's maps; the last map is used only for proposals."""
    strides = _strides(config, source)
    return [f"p{int(math.log2(stride))}" for stride in strides]


def _strides(config: MaskRCNNConfig, source: Source) -> list[int]:
    strides = [int(source.shape.patch / scale) for scale in config.vitdet.scales]
    return [*strides, 2 * strides[-1]]


def _regions(config: MaskRCNNConfig, source: Source) -> str:
    """Return the text of the RoI heads."""
    heads, strides = config.heads, _strides(config, source)
    channels, classes = config.vitdet.channels, len(source.images_showing)
    convs = [heads.channels] * heads.convs
    return f"""
_scales = {[1 / stride for stride in strides[:-1]]}


def _class_weights():
    return torch.tensor({list(source.images_showing) if heads.class_loss == "federated" else []}).float() ** 0.5


def _box_head():
    return L(FastRCNNConvFCHead)(
        input_shape=ShapeSpec(channels={channels}, height=7, width=7),
        conv_dims={convs},
        fc_dims=[{heads.fc}],
        conv_norm="LN",
    )


def _box_predictor(weights, agnostic):
    return L(FastRCNNOutputLayers)(
        input_shape=ShapeSpec(channels={heads.fc}),
        test_score_thresh={heads.score_threshold},
        test_nms_thresh={heads.nms},
        test_topk_per_image={heads.detections},
        box2box_transform=L(Box2BoxTransform)(weights=weights),
        num_classes={classes},
        cls_agnostic_bbox_reg=agnostic,
        use_sigmoid_ce={heads.class_loss != "softmax"},
        use_fed_loss={heads.class_loss == "federated"},
        fed_loss_num_classes={heads.federated},
        get_fed_loss_cls_weights=_class_weights,
    )


def _matcher(overlap):
    return L(Matcher)(thresholds=[overlap], labels=[0, 1], allow_low_quality_matches=False)


def _pooler(side):
    return L(ROIPooler)(output_size=side, scales=_scales, sampling_ratio=0, pooler_type="ROIAlignV2")


_common = dict(
    num_classes={classes},
    batch_size_per_image={heads.samples},
    positive_fraction=0.25,
    box_in_features=_levels[:-1],
    box_pooler=_pooler(7),
)
{_mask_part(config, classes, channels, convs)}
{_heads_part(config)}"""


def _model(config: MaskRCNNConfig, source: Source) -> str:
    """Return the text of the detector."""
    proposals, strides, channels = config.proposals, _strides(config, source), config.vitdet.channels
    rpn_convs, per_cell = [-1] * proposals.convs, len(proposals.anchor_ratios)
    return f"""model = L(GeneralizedRCNN)(
    backbone=_backbone,
    proposal_generator=L(RPN)(
        in_features=_levels,
        head=L(StandardRPNHead)(in_channels={channels}, num_anchors={per_cell}, conv_dims={rpn_convs}),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes={[[size] for size in proposals.anchor_sizes]},
            aspect_ratios={list(proposals.anchor_ratios)},
            strides={strides},
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image={proposals.samples},
        positive_fraction=0.5,
        pre_nms_topk={tuple(proposals.before_nms)},
        post_nms_topk={tuple(proposals.after_nms)},
        nms_thresh=0.7,
    ),
    roi_heads=_heads,
    pixel_mean={_of_255(source.mean)},
    pixel_std={_of_255(source.std)},
    input_format="RGB",
)
"""


def _mask_part(config: MaskRCNNConfig, classes: int, channels: int, convs: list[int]) -> str:
    if not config.heads.masks:
        return ""
    return f"""_common.update(
    mask_in_features=_levels[:-1],
    mask_pooler=_pooler(14),
    mask_head=L(MaskRCNNConvUpsampleHead)(
        input_shape=ShapeSpec(channels={channels}, width=14, height=14),
        num_classes={classes},
        conv_dims={[*convs, config.heads.channels]},
        conv_norm="LN",
    ),
)"""


def _heads_part(config: MaskRCNNConfig) -> str:
    if not config.heads.cascade:
        return """_heads = L(StandardROIHeads)(
    proposal_matcher=_matcher(0.5),
    box_head=_box_head(),
    box_predictor=_box_predictor((10.0, 10.0, 5.0, 5.0), agnostic=False),
    **_common,
)"""
    return """_weights = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]
_heads = L(CascadeROIHeads)(
    box_heads=[_box_head() for _ in _weights],
    box_predictors=[_box_predictor(weights, agnostic=True) for weights in _weights],
    proposal_matchers=[_matcher(overlap) for overlap in (0.5, 0.6, 0.7)],
    **_common,
)"""


def _of_255(values: Sequence[float]) -> list[float]:
    return [round(255 * value, 6) for value in values]


def _training(config: MaskRCNNConfig, source: Source) -> str:
    overrides: dict[str, Any] = {} if config.decay_norms else {"pos_embed": {"weight_decay": 0.0}}
    values = [MILESTONE_FACTOR**step for step in range(len(config.milestones) + 1)]
    mixed = source.device == "cuda" and config.compute.precision != "fp32"
    return f"""
train = dict(
    output_dir={str(source.output)!r},
    init_checkpoint={str(source.start)!r},
    max_iter={config.steps},
    seed={config.seed},
    amp=dict(enabled={mixed}),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression={mixed}),
    checkpointer=dict(period={config.compute.save_every}, max_to_keep=2),
    eval_period={config.evaluate_every or config.steps},
    log_period={config.compute.log_every},
    device={source.device!r},
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values={values}, milestones={list(config.milestones)}, num_updates={config.steps}
    ),
    warmup_length={config.warmup / config.steps!r},
    warmup_factor={WARMUP_FACTOR},
)
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${{..lr}}",
        weight_decay_norm={None if config.decay_norms else 0.0},
        overrides={overrides},
        lr_factor_func=partial(
            get_vit_lr_decay_rate, num_layers={source.shape.depth}, lr_decay_rate={config.layer_decay}
        ),
    ),
    lr={config.lr},
    betas=(0.9, 0.999),
    weight_decay={config.weight_decay},
)
"""

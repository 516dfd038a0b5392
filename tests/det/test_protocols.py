"""Frozen and short protocols, layers, the Perception Encoder's recipes, and what detectron2 is not given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoints.export import export_encoder
from mimbench.backbones.config import SIZES, Rope, Traits, ViT, Windows
from mimbench.backbones.vitdet import detectron2_reason
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.cost import cost
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import open_detector, save_detector
from mimbench.det.recipes import frozen, mask_rcnn, shorter
from mimbench.det.recipes import perception_encoder as pe
from mimbench.det.recipes import perception_encoder_lvis as pe_lvis
from mimbench.det.task import TASK
from mimbench.engine.run.config import identity, with_overrides
from tests.det.test_encoders import FILES, config_for

NAMES = {  # recipe: what the names of its metrics begin with, steps
    mask_rcnn.mask_rcnn_vitdet_b_100ep: ("", 184_375),
    mask_rcnn.mask_rcnn_vitdet_h_75ep: ("", 138_281),
    shorter.mask_rcnn_vitdet_l_12ep: ("short_12ep_", 22_125),
    shorter.mask_rcnn_vitdet_h_36ep: ("short_36ep_", 66_375),
    frozen.mask_rcnn_frozen_12ep: ("frozen_12ep_", 22_125),
    frozen.mask_rcnn_frozen_25ep: ("frozen_25ep_", 46_093),
    frozen.mask_rcnn_layer_probe_15ep: ("layer_probe_15ep_", 27_656),
    mask_rcnn.mask_rcnn_frozen_handwritten: ("frozen_", 200),
    pe.vitdet_dinov2_g_pe: ("", 66_375),
}


@pytest.mark.parametrize("recipe", NAMES, ids=lambda recipe: recipe.__name__)
def test_metrics_are_named_by_their_protocol(recipe: Callable[[], MaskRCNNConfig]) -> None:
    config = recipe()
    assert (config.protocol, config.steps) == NAMES[recipe]
    assert {f"{config.protocol}{kind}_ap" for kind in ("box", "mask")} <= {metric.key for metric in TASK.metrics}


def test_the_length_in_a_name_leaves_the_run_what_it_is() -> None:
    config = shorter.mask_rcnn_vitdet_b_25ep()
    assert identity(config, "det", None) == identity(replace(config, schedule=""), "det", None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule=short", "schedule=short must be a number of epochs such as 12ep"),
        ("vitdet.layer=2", r"vitdet\.layer=2 .* needs vitdet\.frozen=true"),
        ("pixel_std=[0, 1, 1]", "must be positive"),
    ],
)
def test_settings_that_cannot_be(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_overrides(mask_rcnn.mask_rcnn_handwritten(), [override])


def test_a_frozen_encoder_costs_its_forward_pass() -> None:
    """Of B's operations at 1,024 pixels, 60.5 % of a forward pass are the encoder's, and a backward pass is two."""
    tuned, kept = shorter.mask_rcnn_vitdet_b_12ep(), frozen.mask_rcnn_frozen_12ep()
    hours = [found.hours for found in map(cost, (tuned, kept)) if found]
    assert hours[1] / hours[0] == pytest.approx((0.605 + 3 * 0.395) / 3)
    sixth = cost(with_overrides(kept, ["vitdet.layer=6"]))
    assert sixth is not None
    assert sixth.hours < hours[1]


# ------------------------------------------------------------------------------------------- the Perception Encoder's

PRINTED = {  # Table 24: epochs, lr, drop path, layer decay, global blocks, window; lr and epochs on LVIS
    "clip_l": (100, 1e-4, 0.4, 0.8, (5, 11, 17, 23), 14, 2e-4, 100),
    "metaclip_g": (75, 5e-5, 0.5, 0.9, (11, 23, 35, 47), 14, 5e-5, 75),
    "siglip_so": (100, 1e-4, 0.4, 0.8, (2, 10, 18, 26), 14, 2e-4, 100),
    "mae_l": (100, 1e-4, 0.4, 0.8, (5, 11, 17, 23), 14, 2e-4, 100),
    "eva02_l": (100, 1e-4, 0.4, 0.8, (5, 11, 17, 23), 14, 2e-4, 100),
    "siglip2_so": (100, 1e-4, 0.4, 0.8, (2, 10, 18, 26), 14, 2e-4, 100),
    "siglip2_g": (75, 5e-5, 0.5, 0.9, (9, 19, 29, 39), 14, 5e-5, 75),
    "dinov2_l": (100, 1e-4, 0.4, 0.8, (5, 11, 17, 23), 32, 2e-4, 100),
    "dinov2_g": (36, 5e-5, 0.5, 0.9, (9, 19, 29, 39), 32, 5e-5, 75),
    "pe_core_g": (75, 5e-5, 0.5, 0.9, (12, 24, 36, 49), 32, 5e-5, 75),
    "pe_spatial_g": (36, 5e-5, 0.5, 0.9, (12, 24, 36, 49), 32, 5e-5, 75),
}
STEPS = {100: (184_375, 250, (163_889, 177_546)), 75: (138_281, 187.5, (122_916, 133_159)),
         36: (66_375, 90, (59_000, 63_916))}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_the_perception_encoders_recipes_are_as_printed(name: str) -> None:
    epochs, lr, drop_path, decay, blocks, window, lvis_lr, lvis_epochs = PRINTED[name]
    config = getattr(pe, f"vitdet_{name}_pe")()
    on_lvis = getattr(pe_lvis, f"lvis_vitdet_{name}_pe")()
    for made, length, rate in ((config, epochs, lr), (on_lvis, lvis_epochs, lvis_lr)):
        vitdet = made.vitdet
        assert (made.steps, made.milestones, made.lr) == (STEPS[length][0], STEPS[length][2], rate)
        assert made.warmup == pytest.approx(STEPS[length][1], rel=1e-4)
        assert (vitdet.drop_path, made.layer_decay, vitdet.global_blocks) == (drop_path, decay, blocks)
        assert (vitdet.window, vitdet.positions, vitdet.patch, vitdet.rel_pos) == (window, "tile", 16, False)
        assert (made.batch, made.image, made.weight_decay, made.decay_norms) == (64, 1024, 0.1, True)
        assert made.pixel_mean == made.pixel_std == pytest.approx((127 / 255,) * 3)
        assert made.shape_for(made.encoder).grid == window, "each window sees the whole table"
    assert (config.benchmark, on_lvis.benchmark) == ("coco", "lvis")
    heads = on_lvis.heads
    assert (heads.class_loss, heads.score_threshold, heads.detections, on_lvis.repeat) == ("federated", 0.02, 300, 1e-3)


# ------------------------------------------------------------------------------------------------ layers and pixels


def test_a_layer_of_the_encoder(tmp_path: Path) -> None:
    """The map of block 1 of 2, whatever the later ones hold; kept in the file, with the mean of the pixels."""
    torch.save(FILES["dinov2"][1](), tmp_path / "encoder.pth")
    config = config_for(tmp_path, tmp_path / "encoder.pth", frozen=True)
    config = replace(config, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.5, 0.25))
    first = replace(config, vitdet=replace(config.vitdet, global_blocks=(), layer=1))
    whole = build_detector(replace(config, vitdet=replace(config.vitdet, global_blocks=())), 2)[0].backbone.net
    model, _ = build_detector(first, 2)
    assert len(model.backbone.net.blocks) == 1
    images = torch.randn(1, 3, 128, 128)
    outputs = []
    whole.blocks[0].register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    whole(images)
    assert torch.equal(model.backbone.net(images).permute(0, 2, 3, 1), outputs[0])
    save_detector(tmp_path / "detector.pth", model, first, (1, 2), ("a", "b"))
    again = open_detector(tmp_path / "detector.pth")
    assert len(again.model.backbone.net.blocks) == 1
    assert again.about.mean == pytest.approx((0.1, 0.2, 0.3))
    assert again.about.std == pytest.approx((0.5, 0.5, 0.25))
    with pytest.raises(ValueError, match=r"vitdet\.layer=3: the encoder has only 2 blocks"):
        build_detector(replace(first, vitdet=replace(first.vitdet, layer=3)), 2)


def test_a_frozen_random_encoder_has_the_norm_it_is_asked_for(tmp_path: Path) -> None:
    config = replace(config_for(tmp_path, tmp_path, frozen=True, norm="own"), checkpoint=None, encoder=ViT(64, 2, 1))
    model, info = build_detector(config, 2)
    assert info is None
    assert model.backbone.net.norm.weight.eq(1).all()


# -------------------------------------------------------------------------------------------------------- detectron2

OTHER: dict[str, Any] = {
    "registers": 4,
    "positions": "none",
    "pre_norm": True,
    "layer_scale": True,
    "activation": "quick_gelu",
    "mlp": "swiglu",
    "hidden": 7,
    "patch_bias": False,
    "qkv_bias": False,
    "norm_eps": 1e-5,
    "rope": Rope(4),
    "key_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "attention_norm": True,
    "mlp_norm": True,
    "patch_norm": True,
    "norm": "rms",
    "windows": Windows(14, (2,)),
}


@pytest.mark.parametrize("trait", [field.name for field in fields(Traits)])
def test_detectron2_is_told_of_every_trait_it_lacks(trait: str) -> None:
    if trait == "class_token":  # its ViT drops the token, and can have a table without its row
        assert detectron2_reason(Traits(class_token=False)) is None
        return
    others = {"class_token": False} if trait == "windows" else {}
    assert trait in OTHER, "say here, and in detectron2_reason, what detectron2's ViT does without"
    reason = detectron2_reason(replace(Traits(), **{**others, trait: OTHER[trait]}))
    assert reason is not None
    assert "detectron2's ViT cannot be this encoder" in reason


@pytest.mark.parametrize(
    ("file", "vitdet", "said"),
    [
        ("dinov2", {}, "LayerScale"),
        ("clip", {}, "a norm before the first block"),
        (None, {"prefix": "global"}, r"vitdet\.prefix=global"),
        (None, {"positions": "tile"}, r"vitdet\.positions=tile"),
    ],
)
def test_a_whole_detector_that_detectron2_cannot_run_is_not_exported_to_it(
    file: str | None, vitdet: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = replace(config_for(tmp_path, tmp_path, **vitdet), checkpoint=None, encoder=ViT(64, 2, 1, image=64))
    if file is not None:
        torch.save(FILES[file][1](), tmp_path / "encoder.pth")
        config = replace(config, checkpoint=str(tmp_path / "encoder.pth"))
    model, _ = build_detector(config, 2)
    save_detector(tmp_path / "detector.pth", model, config, (1, 2), ("a", "b"))
    with pytest.raises(ValueError, match=f"cannot be exported for detectron2: .*{said}") as refused:
        export_encoder(tmp_path / "detector.pth", "detectron2", tmp_path / "out.pth")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.pth").exists()


def test_sizes_of_the_published_recipes_are_the_encoders() -> None:
    assert pe.vitdet_mae_l_pe().encoder == SIZES["L"]
    assert pe.vitdet_pe_core_g_pe().encoder == ViT(1536, 50, 16, patch=14, image=448)

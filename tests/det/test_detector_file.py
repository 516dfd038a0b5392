"""Detectors in files: written here and read back, and detectron2's own by their weights alone."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.checkpoints.export import export_encoder
from mimbench.backbones.config import SIZES, Traits, ViT
from mimbench.det.config import Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.model.build import build_detector, from_scratch
from mimbench.det.model.detector_config import config_of
from mimbench.det.model.detector_file import open_detector, save_detector
from mimbench.det.recipes.mask_rcnn import mask_rcnn_vitdet_b_100ep
from mimbench.engine.data.images import IMAGENET_MEAN, IMAGENET_STD

CONFIG = MaskRCNNConfig(
    data="none",
    encoder=ViT(64, 8, 1, patch=16, image=32),
    vitdet=ViTDetConfig(window=2, channels=8, scales=(1.0, 0.5)),
    proposals=Proposals(convs=1, anchor_sizes=(16.0, 24.0, 32.0), after_nms=(50, 20)),
    heads=Heads(convs=1, channels=8, fc=8, score_threshold=0.0),
    image=64,
)
IMAGES, SHAPE = torch.arange(3 * 64 * 64).remainder(255).byte().view(1, 3, 64, 64), [(64, 64)]


@pytest.mark.parametrize("heads", [{}, {"cascade": True}, {"class_loss": "federated", "masks": False}])
def test_what_is_written_detects_the_same(tmp_path: Path, heads: dict[str, object]) -> None:
    config = replace(CONFIG, heads=replace(CONFIG.heads, **heads))
    torch.manual_seed(0)
    model, _ = build_detector(config, 3, [5, 1, 7])
    save_detector(tmp_path / "detector.pth", model, config, (3, 7, 9), ("cat", "dog", "emu"))
    opened = open_detector(tmp_path / "detector.pth")
    assert (opened.about.category_ids, opened.about.categories) == ((3, 7, 9), ("cat", "dog", "emu"))
    found, wanted = (side.eval().detect(IMAGES, SHAPE)[0] for side in (opened.model, model))
    assert len(found.scores) == len(wanted.scores) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    again, _ = build_detector(replace(config, checkpoint=str(tmp_path / "detector.pth")), 3, [5, 1, 7])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("size", ["B", "L", "H"])
@pytest.mark.parametrize("rel_pos", [True, False])
def test_the_sizes_of_detectron2s_releases_are_read_off_their_weights(size: str, rel_pos: bool) -> None:
    base = mask_rcnn_vitdet_b_100ep()
    shape = replace(SIZES[size], patch=16)
    wanted = replace(base, vitdet=replace(base.vitdet, rel_pos=rel_pos), heads=replace(base.heads, cascade=rel_pos))
    with torch.device("meta"):
        weights = from_scratch(wanted, 80, shape, mean=IMAGENET_MEAN, std=IMAGENET_STD).state_dict()
    read = config_of(weights, "model_final.pkl")
    assert (read.encoder, read.image, read.proposals, read.heads) == (shape, 1024, wanted.proposals, wanted.heads)
    assert (read.vitdet.window, read.vitdet.scales, read.vitdet.rel_pos) == (14, wanted.vitdet.scales, rel_pos)
    assert read.vitdet.attend_globally(shape.depth, Traits()) == wanted.vitdet.attend_globally(shape.depth, Traits())


def test_detectron2s_file_is_opened(tmp_path: Path) -> None:
    config = replace(CONFIG, proposals=Proposals(anchor_sizes=(32.0, 64.0, 128.0)), heads=Heads(convs=1, fc=8))
    model, _ = build_detector(config, 80)
    constants = {"pixel_mean": torch.ones(3, 1, 1)}
    torch.save({"model": {**model.state_dict(), **constants}, "iteration": 7}, tmp_path / "model_final.pth")
    opened = open_detector(tmp_path / "model_final.pth")
    assert opened.about.config.vitdet.window == 2
    assert opened.about.config.image == 64
    assert (len(opened.about.category_ids), opened.about.categories) == (80, ())
    assert torch.equal(opened.model.backbone.net.pos_embed, model.backbone.net.pos_embed)


def test_what_lies_beside_the_weights_does_not_matter(tmp_path: Path) -> None:
    """Options and numpy's numbers, which torch's safe loading does not know by itself."""
    model, _ = build_detector(CONFIG, 3)
    for name, beside in (("options", argparse.Namespace(lr=0.1)), ("best", np.float64(51.6))):
        torch.save({"model": model.state_dict(), name: beside}, tmp_path / f"{name}.pth")
        opened = open_detector(tmp_path / f"{name}.pth")
        assert torch.equal(opened.model.backbone.net.pos_embed, model.backbone.net.pos_embed)


def test_what_we_wrote_is_known_by_any_name(tmp_path: Path) -> None:
    model, _ = build_detector(CONFIG, 3)
    save_detector(tmp_path / "model_final.pkl", model, CONFIG, (3, 7, 9), ("cat", "dog", "emu"))
    assert open_detector(tmp_path / "model_final.pkl").about.categories == ("cat", "dog", "emu")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.ones(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not a whole detector"):
        open_detector(tmp_path / "other.pth")
    model, _ = build_detector(CONFIG, 3)
    state = {key: value for key, value in model.state_dict().items() if "cls_score" not in key}
    torch.save({"model": state}, tmp_path / "headless.pth")
    with pytest.raises(ValueError, match=r"headless\.pth is a detector, but .* no roi_heads\.box_predictor\.cls_score"):
        open_detector(tmp_path / "headless.pth")
    with pytest.raises(FileNotFoundError):
        open_detector(tmp_path / "absent.pth")


def test_a_detector_is_exported_whole(tmp_path: Path) -> None:
    model, _ = build_detector(CONFIG, 3)
    with torch.no_grad():
        model.backbone.net.blocks[0].attn.rel_pos_h.fill_(0.5)
    save_detector(tmp_path / "detector.pth", model, CONFIG, (1, 2, 3), ("a", "b", "c"))
    made = export_encoder(tmp_path / "detector.pth", "detectron2", tmp_path / "out.pth")
    weights = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert made.tensors == len(weights) == len(model.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="rel_pos_h"):
        load_encoder(tmp_path / "out.pth")


def test_starts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = replace(CONFIG, encoder=ViT(256, 2, 4, patch=16, image=64), vitdet=replace(CONFIG.vitdet, abs_pos=False))
    model, _ = build_detector(replace(wide, start="detectron2"), 3)
    net = model.backbone.net
    assert net.pos_embed is None
    assert net.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not net.blocks[0].mlp.fc1.bias.any()
    assert model(
        {"images": IMAGES, "sizes": SHAPE, "targets": [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(),
                                                        "masks": _no_masks()}]}
    )["loss"].isfinite()  # fmt: skip
    model, _ = build_detector(replace(wide, start="pretraining"), 3)
    assert model.backbone.net.blocks[0].mlp.fc1.weight.std().item() > 0.03  # Xavier's
    table = replace(wide, vitdet=CONFIG.vitdet, start="detectron2")
    assert build_detector(table, 3)[0].backbone.net.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


def _no_masks():
    from mimbench.det.model.masks import InstanceMasks

    return InstanceMasks([])

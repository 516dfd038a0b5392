"""Detectors on encoders unlike MAE's: a few training steps from files that timm made, and the detectors' own files.

What the backbone computes is held to the originals in tests/backbones/test_vitdet_golden.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mimbench.backbones.config import ViT
from mimbench.backbones.vitdet import ViTDet
from mimbench.det.config import Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.detectron2.lazyconfig import refusal
from mimbench.det.detectron2.run import write_lazyconfig
from mimbench.det.memory import estimate
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import open_detector
from mimbench.det.optim import groups, layer_of
from mimbench.det.run import run
from mimbench.engine.run.config import Compute, identity, to_text
from mimbench.engine.run.rundir import RunDir

State = dict[str, torch.Tensor]
SHAPE = {"embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0, "img_size": 64}


def made_by_timm(name: str, **changes: Any) -> State:
    """The state of a tiny model of timm's, LayerScale where it has any away from its start."""
    torch.manual_seed(0)
    state: State = timm.create_model(name, **{**SHAPE, **changes}).state_dict()
    return {key: value + 0.5 if "gamma" in key else value for key, value in state.items()}


def with_mask_token(state: State) -> State:
    """As SimMIM's authors save it, who have a final norm where timm's has one of the head."""
    state = {key.replace("fc_norm.", "norm."): value for key, value in state.items()}
    return {**state, "mask_token": torch.zeros(1, 1, 64)}


def as_beit2(state: State) -> State:
    """As BEiT v2's authors save their pretraining."""
    head = {"lm_head.weight": torch.zeros(8, 64), "lm_head.bias": torch.zeros(8)}
    return {**with_mask_token(state), **head, "cls_pt_layers.0.norm1.weight": torch.ones(64)}


SHARED = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}
FILES: dict[str, tuple[str, Callable[[], Any]]] = {  # name: family, the file's state
    "dinov2": ("dinov2", lambda: made_by_timm("vit_small_patch14_dinov2", img_size=56)),
    "dinov2 with registers": ("dinov2", lambda: made_by_timm("vit_small_patch14_reg4_dinov2", img_size=56)),
    "dinov3": ("dinov3", lambda: made_by_timm("vit_small_patch16_dinov3_qkvb")),
    "dinov3 with swiglu": ("dinov3", lambda: made_by_timm("vit_small_plus_patch16_dinov3")),
    "clip": ("clip", lambda: made_by_timm("vit_base_patch16_clip_quickgelu_224")),
    "beit fine-tuned": ("beit", lambda: made_by_timm("beitv2_base_patch16_224")),
    "beitv2": ("beitv2", lambda: as_beit2(made_by_timm("beitv2_base_patch16_224", **SHARED))),
    "simmim": ("simmim", lambda: with_mask_token(made_by_timm("beitv2_base_patch16_224", **SHARED))),
    "deit3": ("deit3", lambda: as_deit3(made_by_timm("deit3_base_patch16_224"))),
}


def as_deit3(state: State) -> dict[str, State]:
    """DeiT III as its authors save it: under `model`, with their names of LayerScale."""
    return {"model": {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", key): value for key, value in state.items()}}


def config_for(data: Path, file: Path, **vitdet: Any) -> MaskRCNNConfig:
    """A small detector on the encoder in `file`, with windows that stick out."""
    return MaskRCNNConfig(
        data=str(data),
        checkpoint=str(file),
        vitdet=ViTDetConfig(patch=16, window=3, global_blocks=(1,), channels=16, scales=(2.0, 1.0), **vitdet),
        proposals=Proposals(
            convs=1, anchor_sizes=(16.0, 24.0, 32.0), samples=32, before_nms=(50, 50), after_nms=(40, 20)
        ),
        heads=Heads(samples=16, convs=1, channels=16, fc=32, score_threshold=0.0, detections=10),
        augment=Augment(smallest=0.8, largest=1.25),
        image=128,
        steps=3,
        batch=2,
        lr=1e-3,
        warmup=1.0,
        milestones=(2,),
        shown=0,
        compute=Compute(precision="fp32", workers=0, threads=1, device="cpu"),
    )


@pytest.mark.parametrize("name", FILES)
def test_a_few_steps_on_the_encoder_of_a_file(name: str, make_coco, tmp_path: Path) -> None:
    family, state = FILES[name]
    torch.save(state(), tmp_path / "encoder.pth")
    config = config_for(make_coco(4), tmp_path / "encoder.pth")
    before, info = build_detector(config, 2)
    assert info is not None
    assert info.family == family
    directory = RunDir.create(
        tmp_path / "run", to_text(config), {"recipe": "det/test", "stage": "det", "identity": "0"}
    )
    outcome = run(config, directory)
    assert outcome.family == family
    assert {"box_ap", "mask_ap"} <= set(outcome.metrics)
    assert outcome.facts["prefix"] == "drop"
    opened = open_detector(directory.detector)
    net = opened.model.backbone.net
    assert (net.traits, net.interpolation) == (before.backbone.net.traits, before.backbone.net.interpolation)
    started = before.state_dict()
    moved = {key for key, value in opened.model.state_dict().items() if not torch.equal(value, started[key])}
    wanted = {key for key, _ in before.named_parameters() if key.startswith("backbone.net.")}
    assert wanted <= moved  # LayerScale, tables of relative positions, SwiGLU and all
    images, shape = torch.arange(3 * 128 * 128).remainder(255).byte().view(1, 3, 128, 128), [(128, 128)]
    again, _ = build_detector(replace(config, checkpoint=str(directory.detector), steps=0), 2)
    found, wanted_found = (model.eval().detect(images, shape)[0] for model in (again, opened.model))
    assert len(found.scores) == len(wanted_found.scores) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted_found, strict=True))


@pytest.mark.parametrize("prefix", ["global", "copies"])
def test_the_prefix_learns_at_the_first_layers_rate(prefix: Any, tmp_path: Path) -> None:
    torch.save(FILES["dinov2 with registers"][1](), tmp_path / "encoder.pth")
    config = config_for(tmp_path, tmp_path / "encoder.pth", prefix=prefix, norm="own")
    model, _ = build_detector(config, 2)
    made = groups(model, config, depth=2)
    of = {id(parameter): group for group in made for parameter in group["params"]}
    net = model.backbone.net
    for parameter in (net.cls_token, net.reg_token, net.pos_embed):
        assert of[id(parameter)]["name"] == "layer0_no_decay"
    assert of[id(net.blocks[1].ls1.gamma)]["name"] == "layer2_no_decay"
    assert of[id(net.norm.weight)]["name"] == "layer3_decay"


@pytest.mark.parametrize(
    ("name", "layer", "spared"),
    [
        ("norm_pre.weight", 0, True),
        ("patch_embed.norm.weight", 0, True),
        ("cls_token", 0, True),
        ("reg_token", 0, True),
        ("blocks.4.gamma_2", 5, True),
        ("blocks.4.mlp.norm.bias", 5, True),
        ("blocks.4.attn.norm.weight", 5, True),
        ("blocks.4.attn.q_bias", 5, False),
        ("blocks.4.attn.relative_position_bias_table", 5, False),
        ("blocks.4.mlp.fc1_g.weight", 5, False),
    ],
)
def test_layers_and_weight_decay_of_other_encoders(name: str, layer: int, spared: bool) -> None:
    from mimbench.det.optim import _SPARED

    assert layer_of(f"backbone.net.{name}", 12) == layer
    assert (_SPARED.match(f"backbone.net.{name}") is not None) is spared


def test_detectron2_refuses_what_its_vit_cannot_be(tmp_path: Path) -> None:
    torch.save(FILES["dinov3"][1](), tmp_path / "encoder.pth")
    config = config_for(tmp_path, tmp_path / "encoder.pth")
    model, _ = build_detector(config, 2)
    with pytest.raises(ValueError, match=r"encoder\.pth: detectron2's ViT cannot be this encoder.*rope positions"):
        write_lazyconfig(config, model, (None, None), tmp_path / "out.py", tmp_path, "cpu")  # type: ignore[arg-type]
    assert not (tmp_path / "out.py").exists()
    for changes, said in (({"prefix": "copies"}, "vitdet.prefix=copies"), ({"window": None}, "vitdet.window=none")):
        found = refusal(replace(config, vitdet=replace(config.vitdet, **changes)))
        assert found is not None
        assert said in found


def test_an_encoder_without_a_final_norm_cannot_give_its_own(tmp_path: Path) -> None:
    state = {key: value for key, value in FILES["simmim"][1]().items() if not key.startswith(("norm.", "fc_norm."))}
    torch.save(state, tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"vitdet\.norm=own needs .* use vitdet\.norm=off"):
        build_detector(config_for(tmp_path, tmp_path / "encoder.pth", norm="own"), 2)


def test_later_settings_leave_old_runs_what_they_were() -> None:
    plain = MaskRCNNConfig(data="coco", encoder=ViT(64, 2, 1, 16, 64), image=128)
    changed = {"prefix": "global", "positions": "tile", "rope_windows": "image", "relative_resize": "none",
               "norm": "own", "kernel": "pseudo-inverse", "frozen": True}  # fmt: skip
    names = {identity(replace(plain, vitdet=replace(plain.vitdet, **{key: value})), "det", None)
             for key, value in changed.items()}  # fmt: skip
    assert len(names | {identity(plain, "det", None)}) == len(changed) + 1


def test_a_pretraining_image_that_is_no_multiple_of_the_patch_keeps_its_grid() -> None:
    config = MaskRCNNConfig(data="coco", vitdet=ViTDetConfig(patch=16))
    assert config.shape_for(ViT(384, 12, 6, patch=14, image=518)) == ViT(384, 12, 6, patch=16, image=592)
    assert config.shape_for(ViT(1280, 32, 16, patch=14, image=224)) == ViT(1280, 32, 16, patch=16, image=224)


def test_a_frozen_encoder_stays_as_it_came(make_coco, tmp_path: Path) -> None:
    torch.save(FILES["dinov2"][1](), tmp_path / "encoder.pth")
    config = config_for(make_coco(4), tmp_path / "encoder.pth", frozen=True, norm="own", prefix="global", drop_path=0.5)
    before, _ = build_detector(config, 2)
    learned = {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    assert learned
    assert not any(name.startswith("backbone.net.") for name in learned)
    assert sum(len(group["params"]) for group in groups(before, config, depth=2)) == len(learned)
    net = before.train().backbone.net
    images = torch.randn(2, 3, 128, 128)
    assert not net.training
    assert not net(images).requires_grad
    assert torch.equal(net(images), net(images))  # nothing is dropped
    directory = RunDir.create(
        tmp_path / "run", to_text(config), {"recipe": "det/test", "stage": "det", "identity": "0"}
    )
    outcome = run(config, directory)
    assert outcome.facts["frozen"] is True
    assert {"frozen_box_ap", "frozen_mask_ap", "frozen_box_ap50"} <= set(outcome.metrics)
    assert "box_ap" not in outcome.metrics
    started = before.state_dict()
    trained = open_detector(directory.detector).model.state_dict()
    assert {key for key in trained if not torch.equal(trained[key], started[key])} <= learned
    assert all(torch.equal(trained[key], started[key]) for key in trained if key.startswith("backbone.net."))


def test_a_frozen_encoder_needs_less_memory() -> None:
    config = MaskRCNNConfig(data="coco", encoder=ViT(64, 4, 2, 16, 64), image=128, batch=2,
                            vitdet=ViTDetConfig(window=4, channels=16, scales=(1.0,)),
                            proposals=Proposals(anchor_sizes=(32.0, 64.0)))  # fmt: skip
    tuned, frozen = estimate(config), estimate(replace(config, vitdet=replace(config.vitdet, frozen=True)))
    encoder = 4 * sum(weight.numel() for weight in ViTDet(config.encoder, image=128, rel_pos=False).parameters())
    assert tuned.optimizer - frozen.optimizer >= 2 * encoder
    assert frozen.activations < tuned.activations

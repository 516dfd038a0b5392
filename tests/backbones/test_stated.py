"""What is said of an encoder beside its keys: by options, by a config beside the file, by the file's own options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mimbench.backbones.checkpoint import build_encoder, load_encoder, save_encoder
from mimbench.backbones.checkpoints.info import differences
from mimbench.backbones.checkpoints.location import settled, with_settings
from mimbench.backbones.config import Rope, Traits, ViT
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import open_weights
from tests.backbones.test_families_timm import assert_features, made

TINY = {"embed_dim": 128, "depth": 2, "num_heads": 4, "num_classes": 0, "img_size": 64}


def saved(folder: Path, name: str, **changes: Any) -> torch.nn.Module:
    """A tiny model of timm's in `folder`/model.pth."""
    model = made(name, **{**TINY, **changes})
    torch.save(model.state_dict(), folder / "model.pth")
    return model


def test_what_nothing_tells_is_assumed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, "vit_base_patch16_224")
    _, info = build_encoder(tmp_path / "model.pth", ViT())
    assert info is not None
    assert info.assumed == ("heads", "mean", "std", "grid")
    assert "heads 2, mean 0.485,0.456,0.406" in caplog.text
    assert open_weights(tmp_path / "model.pth").report().assumed == info.assumed


def test_timms_config_beside_the_file_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path, "vit_base_patch16_clip_224")
    about = {
        "architecture": "vit_base_patch16_clip_224",
        "model_args": TINY,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    ours, info = build_encoder(tmp_path / "model.pth", ViT())
    assert info is not None
    assert (info.vit.heads, info.traits.activation, info.assumed) == (4, "gelu", ())
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert_features(model, ours, 64)
    (tmp_path / "config.json").write_text(json.dumps({**about, "model_args": {**TINY, "depth": 3}}))
    assert "heads" in load_encoder(tmp_path / "model.pth")[1].assumed  # it describes another file


def test_a_model_that_mimbench_does_not_support_is_refused_by_its_name(tmp_path: Path) -> None:
    saved(tmp_path, "vit_base_patch16_rpn_224", global_pool="avg")
    about = {"architecture": "vit_base_patch16_rpn_224", "model_args": {**TINY, "global_pool": "avg"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"vit_rpn|norms after attention|ResPostBlock"):
        load_encoder(tmp_path / "model.pth")


def test_timms_training_file_names_its_model(tmp_path: Path) -> None:
    model = saved(tmp_path, "vit_base_patch16_gap_224")
    kwargs = {key: value for key, value in TINY.items() if key != "num_classes"}
    args = argparse.Namespace(model="vit_base_patch16_gap_224", model_kwargs=kwargs, mean=[0.2, 0.2, 0.2], std=None)
    state = {"arch": "vit_base_patch16_gap_224", "state_dict": model.state_dict(), "args": args}
    torch.save(state, tmp_path / "last.pth.tar")
    ours, info = build_encoder(tmp_path / "last.pth.tar", ViT())
    assert info is not None
    assert (info.vit.heads, info.mean, info.std) == (4, (0.2, 0.2, 0.2), (0.5, 0.5, 0.5))
    assert_features(model, ours, 64)


def test_open_clips_config_tells_activation_and_heads(tmp_path: Path) -> None:
    saved(tmp_path, "vit_base_patch16_clip_224")
    tower = {"width": 128, "head_width": 32, "layers": 2, "image_size": 64, "patch_size": 16}
    images = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    for quick, activation in ((True, "quick_gelu"), (False, "gelu")):
        config = {"model_cfg": {"quick_gelu": quick, "vision_cfg": tower}, "preprocess_cfg": images}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        info = load_encoder(tmp_path / "model.pth")[1]
        assert (info.traits.activation, info.vit.heads, info.mean[0]) == (activation, 4, 0.5)
        assert not info.assumed
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({**config, "model_cfg": {"vision_cfg": {**tower, "image_size": [32, 128]}}})
    )
    with pytest.raises(ValueError, match="2 x 8 patches; mimbench supports only square grids"):
        load_encoder(tmp_path / "model.pth")


def test_heads_of_the_papers(tmp_path: Path) -> None:
    for width, heads, class_token in ((192, 12, True), (1408, 16, False)):
        vit = ViT(width, 1, 4, 16, 32)
        state = VisionTransformer(vit, final_norm=True).state_dict()
        if not class_token:
            del state["cls_token"]
            state["pos_embed"] = state["pos_embed"][:, 1:]
        torch.save(state, tmp_path / "a.pth")
        info = load_encoder(tmp_path / "a.pth")[1]
        assert (info.family, info.vit.heads) == ("mae" if class_token else "ijepa", heads)


def test_deit3_of_its_authors_and_of_rope_vits(tmp_path: Path) -> None:
    state = made("vit_base_patch16_rope_ape_224", img_size=64).state_dict()
    for about, family in (
        ({}, "deit3"),
        ({"args": argparse.Namespace(model="deit_base_patch16_LS")}, "deit3"),
        ({"args": argparse.Namespace(model="rope_axial_ape_deit_base_patch16_LS")}, "rope_vit"),
    ):
        torch.save({"model": state, **about}, tmp_path / "a.pth")
        assert load_encoder(tmp_path / "a.pth")[1].family == family


def test_another_encoder_is_never_offered(tmp_path: Path) -> None:
    state = VisionTransformer(ViT(64, 1, 1, 8, 16), final_norm=True).state_dict()
    torch.save({"model": {**state, "blocks.0.attn.q_norm.weight": torch.ones(64)}}, tmp_path / "a.pth")
    for allow in (False, True):
        with pytest.raises(ValueError, match=r"q_norm\.weight is not part of the encoder") as refused:
            load_encoder(tmp_path / "a.pth", allow_partial=allow)
        assert "allow_partial" not in str(refused.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("family=resnet", "family=resnet is no family; the families are .*deit3"),
        ("family=clip", "is not of family=clip: it has no norm_pre"),
        ("heads=none", "the options of the checkpoint"),
        ("heads=0", "must be above 0"),
        ("heads=3", "must be a multiple of heads=3"),
        ("activation=relu", "activation=relu must be one of gelu"),
        ("mean=1,2", "must be three numbers"),
        ("std=0", "must be above 0"),
        ("depth=3", "unknown option 'depth'.*family, heads"),
    ],
)
def test_options_are_checked(option: str, said: str, tmp_path: Path) -> None:
    saved(tmp_path, "vit_base_patch16_224")
    with pytest.raises(ValueError, match=said) as refused:
        load_encoder(f"{tmp_path}/model.pth?{option}")
    assert "\n" not in str(refused.value)


def test_options_settle_an_encoder_and_stay_with_it(tmp_path: Path) -> None:
    saved(tmp_path, "vit_base_patch16_224")
    location, rest = with_settings(tmp_path / "model.pth", ["seed=1", "heads=4", "mean=.5", "std=.5,.5,.5"])
    assert rest == ["seed=1"]
    state, info = load_encoder(location)
    assert (info.vit.heads, info.mean, info.std, info.assumed) == (4, (0.5,) * 3, (0.5,) * 3, ("grid",))
    save_encoder(tmp_path / "ours.safetensors", state, info)
    assert load_encoder(tmp_path / "ours.safetensors")[1].assumed == ("grid",)
    with pytest.raises(ValueError, match=r"heads=2 contradicts .*heads=4; leave heads= out"):
        load_encoder(f"{tmp_path}/ours.safetensors?heads=2")
    assert content_hash(settled(location, ["heads=4"])) == content_hash(location)
    with pytest.raises(ValueError, match="unknown setting 'lr=1'"):
        settled(location, ["lr=1"])


def test_rotary_positions_are_json_in_results() -> None:
    traits = Traits(rope=Rope(16, order="xy"))
    assert json.loads(json.dumps(differences(traits))) == {
        "rope": {"span": 16, "theta": 10_000.0, "order": "xy", "offset": 0.0}
    }


def test_a_grid_that_is_not_square_is_refused_where_it_is_told(tmp_path: Path) -> None:
    args = {**TINY, "img_size": (32, 128)}
    model = timm.create_model("vit_base_patch16_224", **args)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert "grid" in load_encoder(tmp_path / "model.pth")[1].assumed
    about = {"architecture": "vit_base_patch16_224", "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="2 x 8 patches; mimbench supports only square grids"):
        load_encoder(tmp_path / "model.pth")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="2 x 8 patches; mimbench supports only square grids"):
        load_encoder(f"{tmp_path}/model.pth?grid=2x8")
    with pytest.raises(ValueError, match="grid=5 is given, and its positions are for 4 x 4 patches"):
        load_encoder(f"{tmp_path}/model.pth?grid=5")
    with pytest.raises(ValueError, match="grid=four must be patches along a side"):
        load_encoder(f"{tmp_path}/model.pth?grid=four")
    assert "grid" not in load_encoder(f"{tmp_path}/model.pth?grid=4")[1].assumed


def test_an_unpublished_size_with_learned_positions_is_assumed_square(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_dinov2", **{**TINY, "img_size": (28, 112)})
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 128)}, tmp_path / "dinov2.pth")
    info = load_encoder(tmp_path / "dinov2.pth")[1]
    assert {"heads", "grid"} <= set(info.assumed)

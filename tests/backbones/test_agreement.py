"""Settings of a checkpoint (`FILE?heads=6`) against what the file states: equal, replaced and recorded, or refused."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mimbench.backbones.checkpoint import load_encoder, save_encoder
from mimbench.backbones.checkpoints.info import EncoderInfo, from_json, recorded, to_json
from mimbench.backbones.checkpoints.location import SETTINGS, with_settings
from mimbench.backbones.classifier import build_classifier
from mimbench.backbones.classifier_file import ClassifierInfo, load_classifier, save_classifier
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import open_weights
from mimbench.det.model.build import from_scratch
from mimbench.det.model.detector_file import save_detector
from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten
from tests.backbones.test_families_golden import write

VIT = ViT(64, 2, 4, patch=8, image=32)
HALF = (0.5, 0.5, 0.5)
OTHER = {  # another value than every file below states
    "family": "deit3",
    "heads": "2",
    "activation": "quick_gelu",
    "norm_eps": "1e-3",
    "mean": ".1,.2,.3",
    "std": ".4",
    "grid": "7",
}


def ours(folder: Path) -> Path:
    """An encoder that mimbench wrote."""
    info = EncoderInfo("mae", VIT, final_norm=True, mean=HALF)
    save_encoder(folder / "encoder.safetensors", VisionTransformer(VIT, final_norm=True).state_dict(), info)
    return folder / "encoder.safetensors"


def our_classifier(folder: Path) -> Path:
    """A classifier that mimbench fine-tuned."""
    model = build_classifier(VIT, 3, 0.0, "cls", VIT.image, Traits())
    for weight in model.parameters():
        torch.nn.init.normal_(weight)  # timm leaves some of them uninitialised
    save_classifier(folder / "classifier.safetensors", model, ClassifierInfo("mae", VIT, "cls", 3, mean=HALF))
    return folder / "classifier.safetensors"


def transformers_folder(folder: Path) -> Path:
    """A folder as transformers writes it."""
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    images = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(images))
    return folder / "vit"


def timms(folder: Path, **beside: Any) -> dict[str, Any]:
    """timm's arguments of a tiny model in `folder`/timm.pth."""
    arguments = {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 0, "img_size": 32, "patch_size": 8}
    state = timm.create_model("vit_base_patch16_224", **arguments).state_dict()
    torch.save({"state_dict": state, **beside} if beside else state, folder / "timm.pth")
    return arguments


def timms_config(folder: Path) -> Path:
    """A file of timm's with its config.json beside it."""
    about = {"architecture": "vit_base_patch16_224", "model_args": timms(folder)}
    (folder / "config.json").write_text(json.dumps(about))
    return folder / "timm.pth"


def timms_training(folder: Path) -> Path:
    """A file as timm's training saves it, which names its model."""
    options = timms(folder)
    args = argparse.Namespace(model="vit_base_patch16_224", model_kwargs=options, mean=None, std=None)
    timms(folder, arch="vit_base_patch16_224", args=args)
    return folder / "timm.pth"


def open_clips_config(folder: Path) -> Path:
    """A tower of open_clip's by timm, with open_clip_config.json beside it."""
    timms(folder)
    tower = {"width": 64, "head_width": 16, "layers": 2, "image_size": 32, "patch_size": 8}
    images = {"mean": HALF, "std": HALF}
    about = {"model_cfg": {"quick_gelu": False, "vision_cfg": tower}, "preprocess_cfg": images}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    return folder / "timm.pth"


STATES = {  # what each kind of file states
    ours: SETTINGS,
    our_classifier: SETTINGS,
    transformers_folder: SETTINGS,
    timms_config: ("heads", "activation", "norm_eps", "mean", "std", "grid"),
    timms_training: ("heads", "activation", "norm_eps", "mean", "std", "grid"),
    open_clips_config: ("heads", "activation", "mean", "std", "grid"),
}


@pytest.mark.parametrize("make", STATES)
def test_no_setting_is_ignored(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = make(tmp_path)
    before = load_encoder(file)[1]
    for name in STATES[make]:
        location = f"{file}?{name}={OTHER[name]}"
        if name in ("mean", "std"):
            found = load_encoder(location)[1]
            assert getattr(found, name) != getattr(before, name)
            assert any(line.startswith(f"{name}=") and "states" in line for line in found.replaced), name
            assert recorded(found)["replaced"] == list(found.replaced)
            continue
        with pytest.raises(
            ValueError, match=rf"{name}={OTHER[name].replace('1e-3', '0.001')}.*leave {name}= out"
        ) as no:
            load_encoder(location)
        assert "\n" not in str(no.value)
        assert file.name in str(no.value)
        stated = {"family": before.family, "grid": "4"}.get(name) or str(
            getattr(before.vit, name, None) or f"{getattr(before.traits, name):g}"
            if name != "activation"
            else before.traits.activation
        )
        assert stated in str(no.value), name
    assert "replaced" not in recorded(before)


@pytest.mark.parametrize("make", STATES)
def test_what_the_file_states_may_be_repeated(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = make(tmp_path)
    before = load_encoder(file)[1]
    repeated = {
        "family": before.family,
        "heads": 4,
        "activation": before.traits.activation,
        "norm_eps": before.traits.norm_eps,
        "mean": ",".join(map(str, before.mean)),
        "std": ",".join(map(str, before.std)),
        "grid": "4x4",
    }
    location = with_settings(file, [f"{name}={value}" for name, value in repeated.items()])[0]
    found = load_encoder(location)[1]
    assert replace(found, assumed=()) == replace(before, assumed=())


def test_a_replaced_mean_is_logged_kept_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = ours(tmp_path)
    model, info = open_weights(f"{file}?mean=.1,.2,.3").build_encoder()
    line = "mean=0.1,0.2,0.3 replaces 0.5,0.5,0.5, which the metadata that mimbench wrote into it states"
    assert info.replaced == (line,)
    assert line in caplog.text
    save_encoder(tmp_path / "again.safetensors", model.state_dict(), info)
    again = load_encoder(tmp_path / "again.safetensors")[1]
    assert (again.mean, again.replaced) == ((0.1, 0.2, 0.3), (line,))
    assert "replaced" not in json.loads(to_json(replace(info, replaced=())))
    assert from_json(to_json(info)) == info
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load_classifier(f"{our_classifier(tmp_path)}?mean=.1,.2,.3")[1].mean == (0.1, 0.2, 0.3)
    assert line in caplog.text
    with pytest.raises(ValueError, match=r"heads=2 contradicts .*heads=4"):
        load_classifier(f"{tmp_path}/classifier.safetensors?heads=2")


def test_a_published_value_is_replaced_in_the_open(tmp_path: Path) -> None:
    state = VisionTransformer(ViT(192, 12, 12, patch=16, image=32), final_norm=True).state_dict()
    torch.save(state, tmp_path / "mae.pth")
    found = load_encoder(f"{tmp_path}/mae.pth?heads=3&norm_eps=1e-5&mean=.5")[1]
    assert (found.vit.heads, found.traits.norm_eps, found.mean) == (3, 1e-5, HALF)
    assert [line.split(",")[0].split(" replaces")[0].split("=")[0] for line in found.replaced] == [
        "norm_eps",
        "heads",
        "mean",
    ]
    assert all("published" in line for line in found.replaced)
    assert load_encoder(f"{tmp_path}/mae.pth?heads=12")[1].replaced == ()


def test_the_shapes_of_weights_state_heads_too(tmp_path: Path) -> None:
    args = {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 0, "img_size": 32, "patch_size": 8}
    torch.save(timm.create_model("beit_base_patch16_224", **args).state_dict(), tmp_path / "beit.pth")
    with pytest.raises(ValueError, match=r"heads=2 contradicts the shapes of its weights: heads=4"):
        load_encoder(f"{tmp_path}/beit.pth?heads=2")
    with pytest.raises(ValueError, match=r"activation=gelu is given, and its MLP is SwiGLU.*leave activation= out"):
        load_encoder(f"{write(tmp_path, 'dinov2_swiglu')}?activation=gelu")


def test_the_name_of_a_model_states_its_family(tmp_path: Path) -> None:
    state = timm.create_model("vit_base_patch16_rope_ape_224", embed_dim=64, depth=2, num_heads=1).state_dict()
    args = argparse.Namespace(model="rope_axial_ape_deit_base_patch16_LS")
    torch.save({"model": state, "args": args}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"family=deit3 contradicts .*family=rope_vit; leave family= out"):
        load_encoder(f"{tmp_path}/a.pth?family=deit3")


def test_a_whole_detector_takes_no_settings(tmp_path: Path) -> None:
    config = mask_rcnn_handwritten()
    config = replace(config, vitdet=replace(config.vitdet, rel_pos=False))
    model = from_scratch(config, 1, config.encoder, mean=HALF, std=HALF)
    file = tmp_path / "detector.pth"
    save_detector(file, model, config, [1], ["digit"])
    for name, value in OTHER.items():
        with pytest.raises(ValueError, match=rf"detector\.pth holds a whole detector, and {name}=.*leave {name}= out"):
            open_weights(f"{file}?{name}={value}", "detector")
    with pytest.raises(ValueError, match=r"mean=0.5,0.5,0.5; leave mean= out, or give pixel_mean= to the run"):
        open_weights(f"{file}?mean=.1,.2,.3", "detector")
    assert open_weights(f"{file}?heads=4&mean=.5&grid=8", "detector").kind == "detector"
    alone = load_encoder(file)[1]  # the encoder alone is normalised as the detector was trained
    assert (alone.mean, alone.std, alone.vit.heads, alone.assumed) == (HALF, HALF, 4, ())


def test_a_detector_of_detectron2_takes_no_settings(tmp_path: Path) -> None:
    config = mask_rcnn_handwritten()
    model = from_scratch(config, 1, config.encoder, mean=HALF, std=HALF)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "ViTDet"}))
    assert open_weights(f"{file}?matching_heuristics=True", "detector").kind == "detector"
    for name, value in OTHER.items():
        with pytest.raises(
            ValueError, match=rf"whole detector, and {name}=.*used as it was trained; leave {name}= out"
        ):
            open_weights(f"{file}?{name}={value}", "detector")


def test_other_networks_and_user_code_take_no_settings(tmp_path: Path) -> None:
    torch.save({"net.weight": torch.ones(3, 3)}, tmp_path / "teacher.pth")
    assert open_weights(tmp_path / "teacher.pth", "teacher").kind == "other network"
    with pytest.raises(ValueError, match=r"teacher\.pth belongs to no known family.*leave heads= out"):
        open_weights(f"{tmp_path}/teacher.pth?heads=2", "teacher")
    with pytest.raises(ValueError, match=r"my_encoder\.py:build is user code, so mean= cannot be set"):
        with_settings("my_encoder.py:build", ["mean=.5"])

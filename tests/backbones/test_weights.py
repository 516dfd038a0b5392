"""The one door for weights: what a file is in each role, and what is taken of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo, load_encoder, save_encoder
from mimbench.backbones.checkpoints.location import Role, user_code
from mimbench.backbones.checkpoints.safetensors_header import read_header
from mimbench.backbones.classifier import build_classifier, load_encoder_into
from mimbench.backbones.classifier_file import ClassifierInfo, save_classifier
from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hashes, tensors_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import open_weights
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import save_detector
from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten

TINY = ViT(64, 2, 1, patch=8, image=32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("weights")
    found = {name: folder / f"{name}.pth" for name in ("foreign", "detector", "backbone", "resnet")}
    found |= {name: folder / f"{name}.safetensors" for name in ("ours", "classifier")}
    torch.manual_seed(0)
    encoder = VisionTransformer(TINY, final_norm=True).state_dict()
    torch.save({"model": encoder}, found["foreign"])
    save_encoder(found["ours"], encoder, EncoderInfo("mae", TINY, True))
    classifier = build_classifier(TINY, 5, 0.0, "avg", 32)
    load_encoder_into(classifier, encoder)
    save_classifier(found["classifier"], classifier, ClassifierInfo("mae", TINY, "avg", 5))
    config = mask_rcnn_handwritten()
    config = replace(config, encoder=ViT(64, 4, 1, 8, 64), vitdet=replace(config.vitdet, rel_pos=True))
    detector, _ = build_detector(config, 3)
    save_detector(found["detector"], detector, config, (1, 2, 3), ("a", "b", "c"))
    for key, value in detector.backbone.net.state_dict().items():
        if "rel_pos" in key:
            value.add_(0.1)
    torch.save({f"net.{key}": value for key, value in detector.backbone.net.state_dict().items()}, found["backbone"])
    resnet = {"conv1.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}
    torch.save(resnet, found["resnet"])
    return found


@pytest.mark.parametrize(
    ("name", "role", "kind", "family"),
    [
        ("foreign", "encoder", "encoder", "mae"),
        ("foreign", "detector", "encoder", "mae"),
        ("foreign", "teacher", "encoder", "mae"),
        ("ours", "encoder", "encoder", "mae"),
        ("classifier", "encoder", "encoder", "finetuned"),
        ("classifier", "classifier", "classifier", "finetuned"),
        ("detector", "encoder", "encoder", "detectron2"),
        ("detector", "detector", "detector", "detector"),
        ("backbone", "detector", "ViTDet backbone", "detectron2"),
        ("resnet", "teacher", "other network", "other network"),
    ],
)
def test_what_a_file_is_depends_on_its_role(
    name: str, role: Role, kind: str, family: str, files: dict[str, Path]
) -> None:
    found = open_weights(files[name], role)
    assert (found.kind, found.family) == (kind, family)
    taken = found.tensors
    assert found.hashes == content_hashes(files[name], role=role)
    assert found.hashes.tensors == tensors_hash(taken)
    assert (found.content_hash == found.hashes.tensors) == (kind == "other network")
    assert all(value.dtype == torch.float32 for value in taken.values())


def test_a_trained_backbone_is_a_detectors_and_no_encoder(files: dict[str, Path]) -> None:
    found = open_weights(files["backbone"], "detector")
    assert found.relative_positions.keys() == {key for key in found.tensors if "rel_pos" in key}
    assert found.relative_positions
    with pytest.raises(ValueError, match="rel_pos_h is trained"):
        open_weights(files["backbone"]).require()


def test_what_is_no_encoder_has_no_encoders_parts(files: dict[str, Path]) -> None:
    for name, role in (("detector", "detector"), ("resnet", "teacher")):
        with pytest.raises(ValueError, match="not as an encoder"):
            open_weights(files[name], role).vit  # type: ignore[arg-type]  # noqa: B018
    with pytest.raises(ValueError, match="ResNet"):
        open_weights(files["resnet"]).vit  # noqa: B018


def test_a_look_reads_no_weights(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a weight was copied")

    monkeypatch.setattr(Tensor, "to", refuse)
    found = open_weights(files["foreign"])
    assert (found.vit, found.traits.plain, found.require()) == (TINY, True, ())
    with pytest.raises(AssertionError, match="was copied"):
        found.encoder  # noqa: B018


def test_code_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def build(): ...")
    with pytest.raises(ValueError, match=r"a\.py:build is a function of user code"):
        open_weights(tmp_path / "a.py:build")
    with pytest.raises(ValueError, match="whose patch is None"):
        load_encoder(tmp_path / "a.py:build")


def test_names_of_user_code(tmp_path: Path) -> None:
    found = user_code("~/here/my_encoder.py:build")
    assert found is not None
    assert (found.name, found.file) == ("my_encoder.py:build", Path.home() / "here" / "my_encoder.py")
    for text in ("encoder.pth", "runs/pretrain/x", "e.pth?copy=ema", "file:///x/e.pth"):
        assert user_code(text) is None
    for text in ("my_encoder.py", "my_encoder.py:", "my_encoder.py:not a name"):
        with pytest.raises(ValueError, match=r"write my_encoder\.py:build"):
            user_code(text)
    odd = tmp_path / "x.py:build"
    odd.write_bytes(b"a file")
    assert user_code(odd) is None


def test_a_header_says_where_tensors_are(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", {"note": "text"})
    header, data = read_header(tmp_path / "x.safetensors"), (tmp_path / "x.safetensors").read_bytes()
    place = header.place("b")
    assert ([entry.name for entry in header.places], header.metadata) == (["a", "b"], {"note": "text"})
    assert (place.dtype, place.shape, place.numbers, header.size) == ("F32", (2, 3), 6, len(data))
    held = torch.frombuffer(bytearray(data[place.begin : place.end]), dtype=torch.float32)
    assert torch.equal(held, tensors["b"].flatten())
    with pytest.raises(KeyError):
        header.place("c")

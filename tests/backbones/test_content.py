"""The identity of an encoder: its tensors and what else changes its features, whatever the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.backbones import content
from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import Rope, Traits, ViT
from mimbench.backbones.content import content_hash, content_hashes, tensors_hash, version
from mimbench.backbones.vit import VisionTransformer

TINY = ViT(64, 2, 1, patch=8, image=32)
DECODER = {
    "decoder_embed.weight": torch.zeros(16, 64),
    "decoder_embed.bias": torch.zeros(16),
    "decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16),
    "decoder_pos_embed": torch.zeros(1, 17, 16),
    "mask_token": torch.zeros(1, 1, 16),
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(TINY, final_norm=True).state_dict()


def copies(folder: Path, state: dict[str, Tensor]) -> dict[str, Path]:
    """One encoder in many files."""
    wrapped = {f"module.encoder.{key}": value for key, value in state.items()}
    trees = {
        "training": {"model": {**state, **DECODER}, "optimizer": {"state": {0: torch.zeros(9)}}, "epoch": 3},
        "stripped": {"model": state},
        "bare": dict(reversed(state.items())),
        "wrapped": {"state_dict": wrapped},
        "double": {key: value.double() for key, value in state.items()},
    }
    for name, tree in trees.items():
        torch.save(tree, folder / f"{name}.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "foreign.safetensors")
    save_encoder(folder / "ours.safetensors", state, EncoderInfo("mae", TINY, True))
    save_encoder(folder / "other recipe.safetensors", state, EncoderInfo("mae", TINY, True, recipe="pretrain/x"))
    return {file.name: file for file in folder.iterdir()}


def test_copies_are_one_encoder(tmp_path: Path, state: dict[str, Tensor]) -> None:
    hashes = {name: content_hashes(file) for name, file in copies(tmp_path, state).items()}
    assert len(hashes) == 9
    assert len(set(hashes.values())) == 1
    assert hashes["bare.pth"].tensors == tensors_hash(state)


def test_the_same_tensors_with_another_meaning_are_another_encoder(tmp_path: Path, state: dict[str, Tensor]) -> None:
    plain = EncoderInfo("mae", TINY, True)
    others = {
        "family": replace(plain, family="crossmae", recipe="pretrain/x", identity="ab12"),  # where it is from
        "mean": replace(plain, mean=(0.5, 0.5, 0.5)),
        "std": replace(plain, std=(0.5, 0.5, 0.5)),
        "heads": replace(plain, vit=replace(TINY, heads=2 * TINY.heads)),
        "activation": replace(plain, traits=Traits(activation="quick_gelu")),
        "eps": replace(plain, traits=Traits(norm_eps=1e-5)),
        "rope": replace(plain, traits=Traits(rope=Rope(span=14))),
        "resizing": replace(plain, interpolation="bicubic-antialias"),
    }
    found = {}
    for name, info in {"plain": plain, **others}.items():
        save_encoder(tmp_path / f"{name}.safetensors", state, info)
        found[name] = content_hashes(tmp_path / f"{name}.safetensors")
    assert found["family"] == found["plain"]
    assert len({one.content for one in found.values()}) == len(others)
    assert {one.tensors for one in found.values()} == {tensors_hash(state)}


def test_a_config_beside_a_file_may_describe_it(tmp_path: Path) -> None:
    """So a file is looked at again when that changes, and the cache of hashes does not answer for it."""
    file = tmp_path / "e.pth"
    file.write_bytes(b"weights")
    before = version(file)
    assert version(file) == before
    (tmp_path / "config.json").write_text("{}")
    assert version(file) != before


@pytest.mark.parametrize("change", ["value", "shape", "name", "half precision"])
def test_what_evaluations_would_notice_is_another(state: dict[str, Tensor], change: str) -> None:
    changed = dict(state)
    if change == "value":
        changed["norm.bias"] = state["norm.bias"] + torch.eye(64)[3] * 1e-7
    elif change == "shape":
        changed["cls_token"] = state["cls_token"][0]
    elif change == "name":
        changed["norm.beta"] = changed.pop("norm.bias")
    else:
        changed = {key: value.half() for key, value in state.items()}
    assert tensors_hash(changed) != tensors_hash(state)


def test_our_files_are_hashed_without_torch(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "e.safetensors"
    save_encoder(file, state, EncoderInfo("mae", TINY, True))
    code = (
        "import sys; from mimbench.backbones.content import content_hashes as h; "
        f"print(h({str(file)!r}).tensors, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == [tensors_hash(state), "False"]


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "e.safetensors", []
    save_encoder(file, state, EncoderInfo("mae", TINY, True))
    digest = content.digest
    monkeypatch.setattr(content, "digest", lambda entries: read.append(1) or digest(entries))
    first = content_hash(file)
    assert content_hash(str(file)) == first
    assert len(read) == 1
    save_encoder(file, {**state, "cls_token": state["cls_token"] + 1}, EncoderInfo("mae", TINY, True))
    os.utime(file, (1, 1))
    assert content_hash(file) != first


def test_a_copy_in_a_file_is_its_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "both.pth")
    assert content_hashes(tmp_path / "both.pth").tensors == tensors_hash(state)
    assert content_hashes(f"{tmp_path}/both.pth?copy=ema").tensors == tensors_hash(averaged)
    assert content_hashes(f"file://{tmp_path}/both.pth").tensors == tensors_hash(state)


def test_a_partial_encoder_has_a_hash_where_it_is_allowed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "adapter.weight": torch.ones(2)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"adapter\.weight"):
        content_hash(tmp_path / "more.pth")
    assert content_hashes(tmp_path / "more.pth", allow_partial=True).tensors == tensors_hash(state)


def test_a_teacher_may_be_no_encoder_of_ours(tmp_path: Path, state: dict[str, Tensor]) -> None:
    other = {"conv1.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}
    torch.save(other, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="ResNet"):
        content_hash(tmp_path / "resnet.pth")
    assert content_hashes(tmp_path / "resnet.pth", role="teacher").tensors == tensors_hash(other)
    torch.save({"model": state}, tmp_path / "vit.pth")
    assert content_hashes(tmp_path / "vit.pth", role="teacher").tensors == tensors_hash(state)


@pytest.mark.parametrize("damage", ["short", "long", "header", "offsets", "dtype", "empty"])
def test_a_damaged_file_of_ours_has_no_hash(tmp_path: Path, state: dict[str, Tensor], damage: str) -> None:
    file = tmp_path / "e.safetensors"
    save_encoder(file, state, EncoderInfo("mae", TINY, True))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    if damage == "offsets":
        header["cls_token"]["data_offsets"] = [0, "all"]
    if damage == "dtype":
        header["cls_token"]["dtype"] = "F16"
    text = b"{" if damage == "header" else json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + values
    file.write_bytes({"short": whole[:-4], "long": whole + b"more", "empty": b""}.get(damage, whole))
    with pytest.raises(ValueError, match=r"e\.safetensors"):
        content_hash(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", f"file://{tmp_path}/none.pth?copy=ema"):
        with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
            content_hash(path)

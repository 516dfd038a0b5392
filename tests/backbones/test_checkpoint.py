"""Checkpoints in and out: ours, MAE's and CrossMAE's, and everything that is not one."""

from __future__ import annotations

import argparse
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, load_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer

TINY = ViT(width=64, depth=2, heads=1, patch=8, image=32)


def encoder_state(final_norm: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(TINY, final_norm).state_dict()


def write(path: Path, state: dict[str, Any]) -> Path:
    """A file as MAE's and CrossMAE's training leaves it."""
    options = argparse.Namespace(lr=1e-3, model="mae_vit_base_patch16")
    torch.save(
        {"model": state, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 799, "scaler": {}, "args": options}, path
    )
    return path


MAE = {
    "mask_token": torch.zeros(1, 1, 32),
    "decoder_embed.weight": torch.zeros(32, 64),
    "decoder_pos_embed": torch.zeros(1),
}
CROSS = {
    "mask_token": torch.zeros(1, 1, 32),
    "wfm.linear.weight": torch.zeros(2, 3),
    "dec_norms.0.bias": torch.zeros(64),
}


@pytest.mark.parametrize(
    ("family", "extra", "norm", "assumed"),
    [
        ("mae", MAE, True, ("heads",)),
        ("crossmae", CROSS, False, ("heads",)),
        ("plain", {}, False, ("heads", "mean", "std", "grid")),
    ],
)
def test_files_of_the_families(
    tmp_path: Path, family: str, extra: dict[str, Tensor], norm: bool, assumed: tuple[str, ...]
) -> None:
    state = encoder_state(norm)
    loaded, info = load_encoder(write(tmp_path / "c.pth", {**state, **extra}))
    assert info == EncoderInfo(family, TINY, norm, assumed=assumed)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_bare_state_dictionary_and_an_encoder_only_mae(tmp_path: Path) -> None:
    torch.save(encoder_state(final_norm=True), tmp_path / "bare.pth")
    assert load_encoder(tmp_path / "bare.pth")[1].family == "mae"


def test_the_old_file_format_of_torch(tmp_path: Path) -> None:
    torch.save({"model": encoder_state()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_encoder(tmp_path / "old.pth")[1].vit == TINY


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in encoder_state().items()}
    loaded, _ = load_encoder(write(tmp_path / "half.pth", half))
    assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_a_huge_vit_has_sixteen_heads(tmp_path: Path) -> None:
    huge = ViT(width=1280, depth=1, heads=16, patch=14, image=28)
    torch.save(VisionTransformer(huge).state_dict(), tmp_path / "h.pth")
    assert load_encoder(tmp_path / "h.pth")[1].vit == huge


def test_our_file_comes_back_with_all_it_says(tmp_path: Path) -> None:
    about = EncoderInfo("crossmae", TINY, False, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), recipe="pretrain/x", identity="ab12")
    state = encoder_state()
    save_encoder(tmp_path / "e.safetensors", {**state, **CROSS}, about)
    loaded, info = load_encoder(tmp_path / "e.safetensors")
    assert info == about
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    state, about = encoder_state(), EncoderInfo("crossmae", TINY, False, recipe="r")
    save_encoder(tmp_path / "a.safetensors", state, about)
    save_encoder(tmp_path / "b.safetensors", dict(reversed(state.items())), about)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_safetensors_file_of_others(tmp_path: Path) -> None:
    save_file({**encoder_state(final_norm=True), **MAE}, tmp_path / "hub.safetensors")
    assert load_encoder(tmp_path / "hub.safetensors")[1].family == "mae"


def test_an_incomplete_encoder_is_not_saved(tmp_path: Path) -> None:
    state = encoder_state()
    del state["blocks.1.norm2.bias"]
    with pytest.raises(ValueError, match=r"lacks blocks\.1\.norm2\.bias"):
        save_encoder(tmp_path / "e.safetensors", state, EncoderInfo("mae", TINY, False))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_from_a_checkpoint_and_from_scratch(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.safetensors", encoder_state(), EncoderInfo("crossmae", TINY, False))
    torch.manual_seed(5)
    encoder, info = build_encoder(tmp_path / "e.safetensors", ViT(width=48, depth=1, heads=1, patch=4, image=8))
    assert info is not None
    assert torch.equal(encoder.cls_token, encoder_state()["cls_token"])
    torch.manual_seed(0)
    scratch, nothing = build_encoder(None, TINY)
    assert nothing is None
    assert all(torch.equal(value, encoder_state()[key]) for key, value in scratch.state_dict().items())


def test_checking_a_file_draws_no_random_numbers(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.safetensors", encoder_state(), EncoderInfo("crossmae", TINY, False))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_encoder(tmp_path / "e.safetensors")
    assert torch.equal(before, torch.get_rng_state())


class Trap:
    """Opening it unsafely would leave a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Each with a word that its error must say."""
    state = encoder_state()
    files = {}
    for name, content, word in [
        ("text.pth", b"not a checkpoint at all", "not a checkpoint"),
        ("empty.pth", b"", "is empty"),
        ("text.safetensors", b"not a checkpoint at all", "safetensors"),
    ]:
        (folder / name).write_bytes(content)
        files[name] = (folder / name, word)
    whole = write(folder / "whole.pth", state).read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    files["cut.pth"] = (folder / "cut.pth", "cut short|not a checkpoint")
    files["cut.safetensors"] = (folder / "cut.safetensors", "safetensors")
    lacking = {key: value for key, value in state.items() if key != "blocks.0.attn.qkv.weight"}
    for name, content, word in [
        ("lacks.pth", lacking, r"blocks\.0\.attn\.qkv\.weight is missing"),
        ("more.pth", {**state, "adapter.weight": torch.zeros(10, 64)}, r"adapter\.weight"),
        ("shape.pth", {**state, "blocks.0.norm1.bias": torch.zeros(3)}, r"blocks\.0\.norm1\.bias has shape 3"),
        ("grid.pth", {**state, "pos_embed": torch.zeros(1, 12, 64)}, "square grid"),
        ("heads.pth", VisionTransformer(ViT(48, 1, 4, 8, 32)).state_dict(), "width 48"),
        ("resnet.pth", {"conv1.weight": torch.zeros(1)}, "no known family"),
        ("nothing.pth", {"epoch": 3}, "holds no weights"),
    ]:
        files[name] = (write(folder / name, content), word)
    torch.save([1, 2], folder / "list.pth")
    files["list.pth"] = (folder / "list.pth", "holds no weights")
    save_file(state, folder / "version.safetensors", {"mimbench": '{"family": "mae"}'})
    files["version.safetensors"] = (folder / "version.safetensors", "metadata")
    return files


def test_what_is_not_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, word in bad_files(tmp_path).values():
        with pytest.raises(ValueError, match=word) as error:
            load_encoder(path)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("new_format", [True, False])
def test_foreign_objects_are_named_and_not_opened(tmp_path: Path, new_format: bool) -> None:
    bait = tmp_path / "touched"
    content = {"model": encoder_state(), "extra": Trap(str(bait)), "also": Fraction(1, 2)}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"is refused: it holds objects of \w+") as error:
        load_encoder(tmp_path / "trap.pth")
    assert "\n" not in str(error.value)
    assert not new_format or "fractions.Fraction" in str(error.value)
    assert not bait.exists()


def test_a_plain_pickle_is_not_opened(tmp_path: Path) -> None:
    bait = tmp_path / "touched"
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap(str(bait))))
    with pytest.raises(ValueError, match=r"trap\.pkl"):
        load_encoder(tmp_path / "trap.pkl")
    assert not bait.exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for look in (load_encoder, content_hash):
        with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
            look(tmp_path / "none.pth")

"""Files that are not checkpoints, are not whole, or would run code: each is refused with a line of its own."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save

from mimbench.backbones.checkpoints.file_kind import kind_of
from mimbench.backbones.checkpoints.opening import open_checkpoint

STATE = {"blocks.0.norm1.weight": torch.ones(64), "norm.weight": torch.ones(64)}


def torch_bytes(content: object, **options: Any) -> bytes:
    """What torch.save writes."""
    target = io.BytesIO()
    torch.save(content, target, **options)
    return target.getvalue()


def zip_bytes(**entries: str) -> bytes:
    """A zip archive of these entries; two underscores are a slash, one before the suffix a dot."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return target.getvalue()


def tar_bytes() -> bytes:
    """A tar archive with a checkpoint in it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        entry = tarfile.TarInfo("model.pth")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"abcd"))
    return target.getvalue()


def script_bytes() -> bytes:
    """A TorchScript program, as OpenAI publishes CLIP."""
    target = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), target)
    return target.getvalue()


def npz_bytes() -> bytes:
    """As the JAX projects of Google publish their ViTs."""
    target = io.BytesIO()
    numpy.savez(target, encoder_norm=numpy.ones(3))
    return target.getvalue()


TORCH = torch_bytes({"model": STATE})
OLD = torch_bytes({"model": STATE}, _use_new_zipfile_serialization=False)
TENSORS = save(STATE)
ARRAYS = pickle.dumps({"model": {key: value.numpy() for key, value in STATE.items()}})
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 343249461\n"
HTML = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"
BIG_NUMBER = (2**63).to_bytes(8, "little")

FILES: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", r"is empty \(0 bytes\)"),
    "zeros.pth": (bytes(9000), "zero bytes"),
    "tiny.pth": (b"\x80", "not a checkpoint"),
    "page.pth": (HTML, r"web page \(HTML\)"),
    "denied.pth": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "storage server's error"),
    "pointer.safetensors": (LFS, "Git LFS pointer.*`git lfs pull`"),
    "annex.pth": (b"/annex/objects/SHA256E-s343249461--4d7a.pth\n", "git-annex pointer"),
    "notes.pth": ("Gewichte für später\n".encode(), "'Gewichte für"),
    "error.pth": (b'{"message": "Not Found"}', "is a text file"),
    "config.json": (b'{"architectures": ["ViT"]}', "is a text file"),
    "noise.pth": (bytes(range(255, 0, -1)) * 9, r"2,295 bytes and begins with ff fe"),
    "model.tar": (tar_bytes(), "a tar archive; unpack it"),
    "model.pth.gz": (gzip.compress(TORCH), "a gzip archive; unpack it"),
    "model.pth.bz2": (bz2.compress(TORCH), "a bzip2 archive; unpack it"),
    "model.zip": (zip_bytes(weights__model_DOT_pth=""), "zip archive.*weights/model.pth.*unpack"),
    "code.zip": (zip_bytes(main_DOT_py=""), r"a zip archive, not a checkpoint; it holds main\.py"),
    "clip.pt": (script_bytes(), "a TorchScript program"),
    "vit.npz": (npz_bytes(), r"a numpy archive \(\.npz\)"),
    "vit.keras": (zip_bytes(config_DOT_json="{}", model_DOT_weights_DOT_h5=""), "a Keras model"),
    "vit.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    "vit.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "named_otherwise.bin": (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "checkpoint": (b'model_checkpoint_path: "model.ckpt-1"', "the index of a TensorFlow checkpoint"),
    "model.ckpt.data-00000-of-00001": (b"\xff\x01" * 90, "a part of a TensorFlow checkpoint"),
    "cut.pth": (TORCH[: len(TORCH) // 2], "is cut short: it is a zip archive"),
    "cut_old.pth": (OLD[: len(OLD) - 100], "or is cut short"),
    "cut_old_early.pth": (OLD[:200], "cut short: the pickle"),
    "cut.safetensors": (TENSORS[:-10], r"is cut short: it has \d+ of \d+ bytes"),
    "cut_early.safetensors": (TENSORS[:40], "is cut short: its header"),
    "cut.pkl": (ARRAYS[:-40], "cut short: the pickle"),
    "long.safetensors": (TENSORS + b"more", "is not a readable safetensors file"),
    "header.safetensors": (struct.pack("<Q", 5) + b"{bad}" + bytes(9), "damaged safetensors header"),
    "header2.safetensors": (struct.pack("<Q", 8) + b'{"a": 3}', "damaged safetensors header"),
    "length.safetensors": (BIG_NUMBER + b"{}", "not a checkpoint"),
    "nothing.safetensors": (save({}), "holds no weights: it is empty"),
    "broken.index.json": (b'{"weight_map": 3}', "not a valid index"),
    "epoch.pth": (torch_bytes({"epoch": 3, "args": Namespace()}), "holds no weights: its entries are epoch, args"),
    "list.pth": (torch_bytes([1, 2]), "holds no weights: a list, not a dictionary"),
    "tensor.pth": (torch_bytes(torch.ones(3)), "holds no weights: a single tensor"),
    "void.pth": (torch_bytes({}), "holds no weights: it is empty"),
    "words.pkl": (pickle.dumps({"model": {"name": "vit"}}), "holds no weights: its entries are model"),
    "optimizer.pth": (
        torch_bytes({"optimizer": {"state": {"0": {"exp_avg": torch.ones(3)}}}}),
        "holds no weights: its entries are optimizer",
    ),
    "meta.pth": (torch_bytes({"model": {"weight": torch.ones(3, device="meta")}}), "weight is saved without its numb"),
    "sparse.pth": (torch_bytes({"model": {"weight": torch.eye(3).to_sparse()}}), "weight is saved sparse or quantised"),
    "protocol.pth": (torch_bytes({"model": STATE}, pickle_protocol=4), "save it with torch's default"),
    "objects.pkl": (pickle.dumps({"model": {"a": numpy.array([None, 1])}}), "array of type 'O8', not of numbers"),
    "records.pkl": (pickle.dumps({"a": numpy.zeros(2, "f4,i4")}), "array of type 'V8', not of numbers"),
    "junk.pkl": (b"\x80\x04junk that is no pickle.", "is not a pickle of numpy arrays"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_has_its_own_line(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        open_checkpoint(path)
    said = str(error.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < len(str(path)) + 250
    assert error.value.__cause__ is None


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none\.pth does not exist"):
        open_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a directory"):
        open_checkpoint(tmp_path)
    (tmp_path / "encoder.safetensors").touch()
    with pytest.raises(ValueError, match=r"is a directory; give the file in it: encoder\.safetensors"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not an ordinary file"):
        open_checkpoint(tmp_path / "pipe")


def test_kinds_are_told_by_the_bytes(tmp_path: Path) -> None:
    kinds = {"torch": TORCH, "torch (legacy)": OLD, "safetensors": TENSORS, "detectron2 pickle": ARRAYS}
    for kind, content in kinds.items():
        (tmp_path / "file").write_bytes(content)
        assert kind_of(tmp_path / "file") == kind


class Trap:
    """Its pickle calls `function` with `arguments` when it is opened carelessly."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def traps(bait: Path) -> dict[str, Trap]:
    """Objects that make the file `bait` when opened, and what a refusal calls them."""
    return {
        f"{os.system.__module__}.system": Trap(os.system, f"touch '{bait}'"),
        "builtins.exec": Trap(exec, f"open({str(bait)!r}, 'w')"),
        "io.open": Trap(open, str(bait), "w"),
        "os.mkdir" if os.mkdir.__module__ == "os" else f"{os.mkdir.__module__}.mkdir": Trap(os.mkdir, str(bait)),
        "torch.storage._load_from_bytes": Trap(torch.storage._load_from_bytes, b""),
        "numpy.load": Trap(numpy.load, str(bait)),
        "builtins.getattr": Trap(getattr, "text", "upper"),
    }


def writers() -> dict[str, Callable[[object], bytes]]:
    """The ways in which a file can be pickled."""
    return {
        "torch": torch_bytes,
        "old": lambda content: torch_bytes(content, _use_new_zipfile_serialization=False),
        "protocol 4": lambda content: torch_bytes(content, pickle_protocol=4),
        "pickle": pickle.dumps,
        "pickle 2": lambda content: pickle.dumps(content, 2),
    }


@pytest.mark.parametrize("way", writers())
def test_code_is_not_run(tmp_path: Path, way: str) -> None:
    for name, trap in traps(tmp_path / "bait").items():
        path = tmp_path / "trap.pth"
        path.write_bytes(writers()[way]({"model": {"a": numpy.ones(3)}, "extra": trap}))
        with pytest.raises(ValueError, match="is refused: it holds objects of") as error:
            open_checkpoint(path)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "bait").exists()
    for careless in (pickle.loads,):  # the traps do work
        careless(pickle.dumps(traps(tmp_path / "bait")["builtins.exec"]))
    assert (tmp_path / "bait").exists()


@pytest.mark.parametrize("way", writers())
def test_all_foreign_classes_are_named(tmp_path: Path, way: str) -> None:
    path = tmp_path / "foreign.pth"
    content = {"extra": Fraction(1, 2), "linear": torch.nn.ReLU(), "where": Path("here"), "fine": numpy.ones(2)}
    path.write_bytes(writers()[way](content))
    with pytest.raises(ValueError, match="is refused: it holds objects of") as error:
        open_checkpoint(path)
    for name in ("fractions.Fraction", "torch.nn.modules.activation.ReLU", "pathlib.PosixPath"):
        assert name in str(error.value)
    assert "numpy" not in str(error.value).partition("and opening")[0]


def test_a_state_dictionary_pickled_by_hand_is_told_how_to_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps(STATE))
    with pytest.raises(ValueError, match=r"torch\._utils\._rebuild_tensor_v2.*save the tensors with torch\.save"):
        open_checkpoint(path)


def test_what_a_file_says_is_shown_on_one_line_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    path.write_bytes(torch_bytes({"le\nft": STATE, "\x1b[31mright": STATE}))
    with pytest.raises(ValueError, match=r"several sets of weights: le ft,  \[31mright;"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04cnumpy\nndarray\nN}\x8c\x06tensorNs\x86b.",  # sets an attribute of the class that stands for arrays
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\nN}\x8c\x07__doc__Ns\x86b.",  # and of a function
        b"\x80\x04cnumpy\nndarray\nN}\x8c\x09__class__Ns\x86b.",
        b"\x80\x02ccollections\nOrderedDict.__reduce__\n.",  # a method by a dotted name
    ],
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(pickled)
    with pytest.raises(ValueError, match=r"is refused: it holds objects of (type|function|collections\.OrderedDict)"):
        open_checkpoint(path)

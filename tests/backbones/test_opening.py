"""Checkpoint files that people have are opened: kinds, wrappers, copies, what else they hold, what opening costs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.backbones.checkpoints.location import parse_location
from mimbench.backbones.checkpoints.opening import Held, Opened, open_checkpoint

ROOT = Path(__file__).parent.parent.parent


def weights(seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """A few tensors with an encoder's names."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "blocks.0.norm1.weight": (8,), "norm.weight": (8,)}
    return {prefix + key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


def same(opened: Opened, expected: dict[str, Tensor]) -> bool:
    """Whether the weights are these, in this order."""
    pairs = zip(opened.weights.items(), expected.items(), strict=True)
    return all(key == name and torch.equal(found, wanted) for (key, found), (name, wanted) in pairs)


def saved(path: Path, content: object, **options: Any) -> Path:
    """`content` as torch saves it."""
    torch.save(content, path, **options)
    return path


def held(opened: Opened) -> dict[str, Held]:
    """What else is in the file, by name."""
    return {other.name: other for other in opened.others}


def optimizer() -> dict[str, Any]:
    """As AdamW's state is saved."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(10), "exp_avg_sq": torch.zeros(10)}
    return {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}


def test_a_training_state_as_mae_saves_it(tmp_path: Path) -> None:
    args = Namespace(model="mae_vit_base_patch16", lr=1e-3, resume=None, betas=(0.9, 0.95), device=torch.device("cpu"))
    content = {"model": weights(), "optimizer": optimizer(), "epoch": 3, "scaler": {"scale": 2.0}, "args": args}
    path = saved(tmp_path / "checkpoint-3.pth", content)
    opened = open_checkpoint(path)
    assert same(opened, weights())
    assert (opened.file, opened.kind, opened.size) == (path, "torch", path.stat().st_size)
    assert (opened.found_under, opened.copies) == ("model", ())
    assert opened.others == (
        Held("optimizer", "optimizer", 84, 2),  # 21 numbers, which both parameters share
        Held("epoch", "numbers", 0, 1),
        Held("scaler", "scaler", 0, 1),
        Held("args", "arguments", 0, 5),
    )
    expected = {"model": "mae_vit_base_patch16", "lr": 1e-3, "resume": None, "betas": [0.9, 0.95], "device": "cpu"}
    assert opened.arguments == expected
    json.dumps(dict(opened.arguments))


@pytest.mark.parametrize(
    ("under", "content"),
    [
        ("", weights()),
        ("", OrderedDict(weights())),
        ("", {**weights(), "epoch": 3}),
        ("state_dict", {"state_dict": weights(), "arch": "vit_base"}),
        ("teacher", {"student": weights(1), "teacher": weights(), "dino_loss": {"center": torch.zeros(1, 4)}}),
        ("model", {"model": weights(), "model_ema": weights(1)}),
        ("state_dict", {"state_dict_ema": weights(1), "state_dict": weights()}),
        ("ema", {"ema": weights(), "epoch": 3}),
        ("target_encoder", {"encoder": weights(1), "target_encoder": weights(), "opt": optimizer()}),
        ("model.state_dict", {"model": {"state_dict": weights(), "epoch": 3}}),
        ("model.teacher", {"model": {"student": weights(1), "teacher": weights()}, "optimizer": optimizer()}),
        ("module", {"module": weights()}),
        ("net", {"net": weights()}),
        ("whatever", {"whatever": weights(), "heads": {"bias": torch.zeros(1)}}),
    ],
)
def test_the_weights_are_found_under_wrappers(tmp_path: Path, under: str, content: dict[str, Any]) -> None:
    opened = open_checkpoint(saved(tmp_path / "file.pth", content))
    assert opened.found_under == under
    assert same(opened, weights())


def test_copies_are_a_choice(tmp_path: Path) -> None:
    small = {"bias": torch.zeros(1)}
    content = {"model": weights(0, "module."), "model_ema": weights(1), "critic": small, "optimizer": optimizer()}
    path = saved(tmp_path / "file.pth", content)
    opened = open_checkpoint(path)
    assert opened.copies == ("model_ema",)
    assert held(opened)["model_ema"] == Held("model_ema", "ema", 4 * 64, 4)
    assert held(opened)["critic"] == Held("critic", "weights", 4, 1)
    for chosen in (open_checkpoint(path, "ema"), open_checkpoint(f"{path}?copy=model_ema")):
        assert (chosen.found_under, chosen.copies) == ("model_ema", ("model",))
        assert same(chosen, weights(1))
        assert held(chosen)["model"].what == "weights"
    assert open_checkpoint(path, "critic").weights.keys() == {"bias"}
    assert open_checkpoint(path, "model").found_under == "model"
    with pytest.raises(ValueError, match="'teacher'; it holds model, model_ema, critic"):
        open_checkpoint(path, "teacher")
    with pytest.raises(ValueError, match="copy=model"):
        open_checkpoint(f"{path}?copy=ema", "model")


def test_of_several_unknown_sets_none_is_guessed(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"left": weights(), "right": weights(1)})
    with pytest.raises(ValueError, match=r"left, right; .*copy=NAME"):
        open_checkpoint(path)
    assert same(open_checkpoint(path, "right"), weights(1))


def test_the_old_format_is_read(tmp_path: Path) -> None:
    content = {"model": weights(), "args": Namespace(lr=1.0)}
    opened = open_checkpoint(saved(tmp_path / "old.pth", content, _use_new_zipfile_serialization=False))
    assert opened.kind == "torch (legacy)"
    assert same(opened, weights())
    assert opened.arguments == {"lr": 1.0}


def test_numpy_and_parameters_in_a_torch_file(tmp_path: Path) -> None:
    """Scalars and arrays of numpy come in every training state that computed its accuracy with numpy."""
    content = {
        "model": {"weight": torch.nn.Parameter(torch.ones(2)), "array": numpy.arange(6, dtype=">f4").reshape(2, 3)},
        "best": numpy.float64(83.5),
        "step": numpy.int64(7),
        "flag": numpy.bool_(True),
        "name": numpy.str_("vit"),
        "rng": ["MT19937", numpy.arange(4, dtype=numpy.uint32), numpy.zeros(0), 3],
    }
    for old in (False, True):
        path = saved(tmp_path / "file.pth", content, _use_new_zipfile_serialization=not old)
        opened = open_checkpoint(path)
        assert opened.weights["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert type(opened.weights["weight"]) is Tensor
        assert not opened.weights["weight"].requires_grad
        said = {name: (other.what, other.bytes) for name, other in held(opened).items()}
        numbers = {"best": ("numbers", 0), "step": ("numbers", 0), "flag": ("numbers", 0)}
        assert said == {**numbers, "name": ("other", 0), "rng": ("other", 16)}


def test_yacs_is_read_without_yacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SimMIM keeps its configuration in its files. The class here has the pickled form of yacs' own."""
    module = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config", "__init__": lambda self, *given: dict.__init__(self)})
    module.CfgNode = node  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        config, data = node(), node()
        data["IMG_SIZE"] = 224
        config.update(DATA=data, TAG="simmim")
        config.__dict__["__immutable__"] = True
        path = saved(tmp_path / "file.pth", {"model": weights(), "config": config})
    opened = open_checkpoint(path)
    assert opened.arguments == {"DATA": {"IMG_SIZE": 224}, "TAG": "simmim"}
    assert held(opened)["config"] == Held("config", "arguments", 0, 2)


def test_a_compressed_archive_is_read_though_not_mapped(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"model": weights()})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert same(open_checkpoint(tmp_path / "small.pth"), weights())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2_pickles(tmp_path: Path, protocol: int) -> None:
    model = {"backbone.net.pos_embed": numpy.random.default_rng(0).random((1, 300, 8), numpy.float32)}
    model["fortran"] = numpy.asfortranarray(numpy.arange(2400.0).reshape(40, 60))
    model["half"] = numpy.ones(3, numpy.float16)
    model["anchor"] = numpy.asarray(2.5)
    model["empty"] = numpy.zeros((0, 4), numpy.float32)
    content = {"model": model, "__author__": "third party", "matching_heuristics": True, "iteration": numpy.int64(9)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    opened = open_checkpoint(path)
    assert (opened.kind, opened.found_under, opened.size) == ("detectron2 pickle", "model", path.stat().st_size)
    for key, array in model.items():
        assert opened.weights[key].dtype == torch.from_numpy(array).dtype
        assert torch.equal(opened.weights[key], torch.from_numpy(array))
    assert {other.name: other.what for other in opened.others} == {
        "__author__": "other",
        "matching_heuristics": "numbers",
        "iteration": "numbers",
    }


def test_safetensors(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors", {"origin": "here"})
    opened = open_checkpoint(tmp_path / "model.safetensors")
    assert (opened.kind, opened.found_under, opened.metadata) == ("safetensors", "", {"origin": "here"})
    assert dict(opened.weights).keys() == weights().keys()
    assert all(torch.equal(opened.weights[key], value) for key, value in weights().items())
    with pytest.raises(ValueError, match="a safetensors file holds one set"):
        open_checkpoint(tmp_path / "model.safetensors", "ema")


def test_safetensors_in_several_files(tmp_path: Path) -> None:
    parts = {"model-00001-of-00002.safetensors": weights(0), "model-00002-of-00002.safetensors": weights(1, "more.")}
    places = {key: name for name, part in parts.items() for key in part}
    for name, part in parts.items():
        save_file(part, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 512}, "weight_map": places}))
    opened = open_checkpoint(index)
    assert opened.weights.keys() == places.keys()
    assert opened.size == sum((tmp_path / name).stat().st_size for name in parts)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00002\.safetensors, which is not beside it"):
        open_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ValueError, match="safetensors file beside it"):
        open_checkpoint(index)


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.pth")
    assert open_checkpoint(tmp_path / "model.pth").kind == "safetensors"
    assert same(open_checkpoint(saved(tmp_path / "no_suffix", weights())), weights())
    assert same(open_checkpoint(saved(tmp_path / "torch.safetensors", weights())), weights())


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    odd = tmp_path / "what?copy=ema"
    odd.touch()
    assert parse_location("a/b.pth") == (Path("a/b.pth"), {})
    assert parse_location("a/b.pth?copy=ema") == (Path("a/b.pth"), {"copy": "ema"})
    assert parse_location("file:///a/b%20c.pth?copy=ema") == (Path("/a/b c.pth"), {"copy": "ema"})
    assert parse_location("file://localhost/a/b.pth") == (Path("/a/b.pth"), {})
    assert parse_location("a.pth?matching_heuristics=True") == (Path("a.pth"), {})
    assert parse_location("~/a.pth") == (Path("/home/someone/a.pth"), {})
    assert parse_location(str(odd)) == (odd, {})
    for url in ("https://example.org/a.pth", "s3://bucket/a.pth", "file://server/a.pth", "detectron2://a/b.pkl"):
        with pytest.raises(ValueError, match="downloads nothing"):
            parse_location(url)
    with pytest.raises(ValueError, match=r"https://example\.org/a\.pth is not a local file"):
        open_checkpoint(Path("https://example.org/a.pth"))
    with pytest.raises(ValueError, match="'copies'"):
        parse_location("a.pth?copies=ema")


CHILD = """
import sys
from mimbench.backbones.checkpoints.opening import open_checkpoint
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
held = [open_checkpoint(path).weights for path in sys.argv[1:]]
print(sum(value.nbytes for weights in held for value in weights.values()), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells its peak memory on Linux alone")
def test_opening_does_not_read_the_weights(tmp_path: Path) -> None:
    """Three files of 128 MB take less than 32 MB of memory to open."""
    size = 2**25
    saved(tmp_path / "a", {"model": {"weight": torch.zeros(size)}, "optimizer": {"state": torch.zeros(9)}})
    save_file({"weight": torch.zeros(size)}, tmp_path / "b")
    with (tmp_path / "c").open("wb") as handle:
        pickle.dump({"model": {"weight": numpy.zeros(size, numpy.float32)}}, handle)
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in "abc")]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == 3 * 4 * size
    assert grown < 32 * 1024  # kB

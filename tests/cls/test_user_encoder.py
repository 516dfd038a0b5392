"""`checkpoint=my_encoder.py:build`: evaluations of an encoder that a user's own function returns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from typer.testing import CliRunner

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, load_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Knn
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.det.model.build import build_detector
from mimbench.engine.data.images import normalise
from mimbench.engine.run.config import Compute
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.store import create_or_find, resolve, runs_root
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
MODEL = "vit_tiny_patch16_224", {
    "img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0
}  # fmt: skip
CODE = f"""
import timm, torch

class Wrapped(torch.nn.Module):
    patch, width = 8, 16
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def __init__(self):
        super().__init__()
        self.net = timm.create_model({MODEL[0]!r}, **{MODEL[1]!r})

    def forward(self, images):
        tokens = self.net.forward_features(images)
        return tokens[:, 0], tokens[:, 1:].unflatten(1, (2, 2))

def build():
    torch.manual_seed(3)
    return Wrapped()
"""
OURS = f"""
import torch
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer

def build():
    torch.manual_seed(5)
    return VisionTransformer(ViT({TINY.width}, {TINY.depth}, {TINY.heads}, {TINY.patch}, {TINY.image}), True)
"""
SMALL = Compute(threads=1, device="cpu")


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The user's file, with the function."""
    (tmp_path / "my_encoder.py").write_text(CODE)
    return tmp_path / "my_encoder.py:build"


def test_features_are_those_of_the_users_network(code: Path) -> None:
    images = torch.randint(0, 255, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    network = timm.create_model(MODEL[0], **MODEL[1]).eval()
    with torch.no_grad():
        tokens = network.forward_features(normalise(images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    pooled, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    expected = {"cls": pooled, "avg": mean, "both": torch.cat([pooled, mean], dim=1)}
    for pool, features in expected.items():
        config = Knn(checkpoint=str(code), image=16, pool=pool, compute=SMALL, eval_batch=2)  # type: ignore[arg-type]
        torch.testing.assert_close(frozen_encoder(config, CPU)(images), features, rtol=1e-5, atol=1e-6)
    standardised = frozen_encoder(Knn(checkpoint=str(code), image=16, norm="pooled", compute=SMALL), CPU)(images)
    torch.testing.assert_close(standardised.mean(1), torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "metric", "overrides"),
    [
        ("cls/knn", "knn_top1", ("neighbours=3", "k=3")),
        ("cls/linear_vitb", "linear_top1", ("batch=24", "epochs=2", "warmup_epochs=0", "views=cached")),
        ("cls/linear_fast", "linear_fast_top1", ("batch=24", "epochs=2", "warmup_epochs=0")),
        ("cls/fewshot", "fewshot2_ridge_top1", ("shots=2", "draws=2")),
    ],
)
def test_frozen_evaluations_take_it(
    recipe: str, metric: str, overrides: tuple[str, ...], code: Path, folder: Path
) -> None:
    done = mimbench(
        "run", recipe, f"checkpoint={code}", f"data={folder}", "image=16", "compute.workers=0",
        "compute.accumulate=1", "compute.precision=fp32", *overrides, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert 0 <= result["metrics"][metric] <= 100
    assert result["checkpoint"]["path"].endswith("my_encoder.py:build")
    assert (result["checkpoint"]["hash"], result["checkpoint"]["family"]) == (content_hash(code), "user code")
    facts = result["facts"]
    assert (facts["weights"], facts["encoder"]["type"]) == ("user code, my_encoder.py:build", "Wrapped")
    assert (facts["encoder"]["mean"], facts["encoder"]["statistics"]) == ([0.4, 0.5, 0.6], "the encoder's")
    assert "my_encoder.py:build" in facts["feature"]
    if recipe == "cls/fewshot":
        return  # which has no column
    shown = mimbench("table").stdout
    assert "(user code)" in " ".join(shown.split())
    assert "Wrapped 16/8" in shown


def test_the_source_file_is_in_the_identity(code: Path, folder: Path) -> None:
    def asked() -> RunDir:
        recipe, config = resolve("cls/knn", [f"checkpoint={code}", f"data={folder}", "image=16"])
        return create_or_find(recipe.name, config, runs_root())

    first = asked()
    assert asked().path == first.path
    code.with_name("my_encoder.py").write_text(CODE.replace("manual_seed(3)", "manual_seed(4)"))
    assert asked().path != first.path
    done = mimbench("run", first.path)
    assert done.exit_code == 1
    assert "my_encoder.py:build has changed since" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("def build", "def other"), "has no function 'build'"),
        (("def build():", "def build(:"), r"importing it fails with SyntaxError: .*my_encoder\.py, line 1\d\)"),
        (("patch, width = 8, 16", "width = 16"), "whose patch is None"),
        (("patch, width = 8, 16", "patch, width = 8, 24"), r"pooled is \(2, 16\).* it must be \(2, 24\)"),
        (("tokens[:, 1:].unflatten(1, (2, 2))", "tokens"), r"grid is \(2, 5, 16\).* must be \(2, 2, 2, 16\)"),
        (("return tokens[:, 0], ", "return tokens[:, 0] / 0 * 0, "), "pooled holds NaN or infinity"),
        (("tokens[:, 0], tokens", "tokens[:, 0].argmax(1), tokens"), r"pooled is \(2,\)"),
        (("return tokens[:, 0], tokens[:, 1:].unflatten(1, (2, 2))", "return tokens"), "returns a Tensor for images"),
        (("forward_features", "forward_nothing"), "encoding images fails with AttributeError: .*forward_nothing"),
        (("torch.manual_seed(3)", "raise OSError('no weights')"), r"build\(\) fails with OSError: no weights .*line"),
        (("(0.2, 0.3, 0.4)", "(0.2, 0, 0.4)"), "must be positive"),
        (("(0.4, 0.5, 0.6)", "0.5"), "must be three numbers"),
        (("return Wrapped()", "return lambda images: images"), "whose patch is None"),
    ],
)
def test_what_does_not_meet_the_contract_is_said_in_one_line(
    change: tuple[str, str], said: str, code: Path, folder: Path
) -> None:
    assert CODE.count(change[0]) >= 1
    code.with_name("my_encoder.py").write_text(CODE.replace(*change))
    with pytest.raises(ValueError, match=said) as error:
        frozen_encoder(Knn(checkpoint=str(code), image=16, compute=SMALL), CPU)
    assert "\n" not in str(error.value)
    assert "my_encoder.py" in str(error.value)


def test_bad_names_are_said(tmp_path: Path, code: Path, folder: Path) -> None:
    for name, said in {
        f"{tmp_path}/other.py:build": "other.py, the file of checkpoint=other.py:build, does not exist",
        f"{tmp_path}/my_encoder.py": "write my_encoder.py:build",
        f"{tmp_path}/my_encoder.py:": "my_encoder.py:build",
    }.items():
        done = mimbench("run", "cls/knn", f"checkpoint={name}", f"data={folder}")
        assert done.exit_code != 0
        assert said in " ".join(done.stderr.split())
    with pytest.raises(ValueError, match=r"image=20 .*patch=8"):
        frozen_encoder(Knn(checkpoint=str(code), image=20, compute=SMALL), CPU)
    done = mimbench(
        "run", "cls/knn", f"checkpoint={code}", f"data={folder}", "image=16", "layers=2", "neighbours=3", "k=3"
    )
    assert done.exit_code == 1
    assert "layers=2 exceeds the encoder's 1 blocks" in done.stderr


def test_what_needs_blocks_refuses_it(code: Path, folder: Path) -> None:
    for protocol in ("finetune", "coco"):
        done = mimbench("evaluate", code, "--on", protocol, "--data", folder)
        assert done.exit_code != 0
        assert f"{protocol} needs the named blocks and weights" in done.stderr
    done = mimbench("evaluate", code, "--on", "knn", "--data", folder, "--scratch")
    assert done.exit_code != 0
    assert "--scratch: mimbench cannot build a user's encoder" in done.stderr
    refused = "returns a Wrapped, which is not a VisionTransformer"
    done = mimbench("run", "cls/finetune_vits", f"checkpoint={code}", f"data={folder}", "image=16")
    assert done.exit_code == 1
    assert refused in done.stderr
    with pytest.raises(ValueError, match=refused):
        build_detector(_detection(code), 3)


def test_one_of_ours_goes_everywhere(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "ours.py").write_text(OURS)
    code = f"{tmp_path}/ours.py:build"
    model, info = build_encoder(code, TINY)
    assert info is not None
    assert (info.family, info.vit, info.final_norm) == ("user code", TINY, True)
    save_encoder(tmp_path / "same.safetensors", model.state_dict(), EncoderInfo("mae", TINY, final_norm=True))
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    config = Knn(checkpoint=code, image=32, pool="both", compute=SMALL)
    same = frozen_encoder(replace(config, checkpoint=str(tmp_path / "same.safetensors")), CPU)
    assert torch.equal(frozen_encoder(config, CPU)(images), same(images))
    detector, about = build_detector(_detection(Path(code)), 3)
    assert about is not None
    assert about.family == "user code"
    weights = load_encoder(code)[0]
    assert torch.equal(detector.backbone.net.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])
    done = mimbench(
        "run", "cls/finetune_vits", f"checkpoint={code}", f"data={folder}", "image=16", "epochs=1", "warmup_epochs=0",
        "batch=24", "compute.workers=0", "compute.accumulate=1", "compute.precision=fp32", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["facts"]["weights"] == "user code checkpoint"


def _detection(code: Path) -> Any:
    from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten

    config = mask_rcnn_handwritten()
    vitdet = replace(config.vitdet, global_blocks=(1,), window=2)
    return replace(config, checkpoint=str(code), encoder=ViT(16, 2, 2, 8, 16), vitdet=vitdet)


def test_inspect_says_what_it_is(code: Path, tmp_path: Path) -> None:
    done = mimbench("inspect", code)
    assert done.exit_code == 1, "the network takes images of 16 pixels alone, and it does not say so"
    code.with_name("my_encoder.py").write_text(CODE.replace("patch, width = 8, 16", "patch, width, image = 8, 16, 16"))
    done = mimbench("inspect", code)
    assert done.exit_code == 0, done.output
    assert "my_encoder.py:build: user code, a Wrapped" in done.stdout
    assert "taken by  k-NN, linear, fast linear and few-shot" in done.stdout
    told = json.loads(mimbench("inspect", code, "--json").stdout)
    assert (told["hash"], told["ours"], told["tried_on"]) == (content_hash(code), False, 16)
    (tmp_path / "ours.py").write_text(OURS)
    assert "one of mimbench's encoders" in mimbench("inspect", f"{tmp_path}/ours.py:build").stdout
    assert isinstance(build_encoder(f"{tmp_path}/ours.py:build", TINY)[0], VisionTransformer)

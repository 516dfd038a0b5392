"""How often a checkpoint is opened: once in a process and version of the file, whoever asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.checkpoints import opening
from mimbench.backbones.config import ViT
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import open_weights
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_file import open_detector, save_detector
from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten
from mimbench.jobs.cli.commands import encoder_to_evaluate
from mimbench.jobs.cli.main import app
from mimbench.jobs.studies.evaluate import Request
from tests.cls.conftest import folder  # noqa: F401 (a fixture)

TINY = ViT(width=64, depth=2, heads=1, patch=8, image=16)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened for its tensors, by its name."""
    counts: Counter[str] = Counter()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *arguments: Any, **options: Any) -> Any:
            counts[Path(getattr(file, "name", file)).name] += 1
            return function(file, *arguments, **options)

        return call

    monkeypatch.setattr(torch, "load", counted(torch.load))
    for name in ("safe_open", "load_arrays"):
        monkeypatch.setattr(opening, name, counted(getattr(opening, name)))
    return counts


def _encoder(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return VisionTransformer(TINY, final_norm=True).state_dict()


def _run(*arguments: str | Path) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["foreign.pth", "ours.safetensors", "legacy.pth"])
def test_a_run_opens_its_checkpoint_once(name: str, tmp_path: Path, folder: Path, opens: Counter[str]) -> None:  # noqa: F811
    file = tmp_path / name
    if name == "ours.safetensors":
        save_encoder(file, _encoder(), EncoderInfo("mae", TINY, True))
    else:
        torch.save({"model": _encoder()}, file, _use_new_zipfile_serialization=name == "foreign.pth")
    small = ("image=16", "neighbours=3", "k=3", "compute.workers=0", "compute.precision=fp32")
    _run("run", "cls/knn", f"checkpoint={file}", f"data={folder}", *small)
    assert opens[name] == 1


def test_an_evaluation_opens_its_checkpoint_once(tmp_path: Path, folder: Path, opens: Counter[str]) -> None:  # noqa: F811
    """In the command's own process, that is; each run is a process of its own."""
    torch.save({"model": _encoder()}, tmp_path / "e.pth")
    small = ("image=16", "compute.workers=0", "knn.neighbours=3", "knn.k=3", "fewshot.shots=2", "fewshot.draws=1")
    _run("evaluate", tmp_path / "e.pth", "--on", "knn,fewshot", "--data", folder, *small)
    assert opens["e.pth"] == 1


def test_a_detector_is_opened_once(tmp_path: Path, opens: Counter[str]) -> None:
    config = mask_rcnn_handwritten()
    model, _ = build_detector(config, 3)
    file = tmp_path / "detector.pth"
    save_detector(file, model, config, (1, 2, 3), ("a", "b", "c"))
    assert encoder_to_evaluate(file, Request(("coco",)))[0] == config.encoder
    content_hash(file, role="detector")
    again, about = build_detector(replace(config, checkpoint=str(file)), 3)
    assert about is not None
    assert open_detector(file).about.categories == ("a", "b", "c")
    assert torch.equal(again.backbone.net.pos_embed, model.backbone.net.pos_embed)
    assert opens["detector.pth"] == 1


def test_another_version_is_opened_anew(tmp_path: Path, opens: Counter[str]) -> None:
    file = tmp_path / "e.pth"
    torch.save(_encoder(0), file)
    first = open_weights(file).encoder["cls_token"]
    new = tmp_path / "new" / "e.pth"
    new.parent.mkdir()
    torch.save(_encoder(1), new)
    stat = file.stat()
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(file)  # of the same size and time
    assert file.stat().st_size == stat.st_size
    assert not torch.equal(open_weights(file).encoder["cls_token"], first)
    assert opens["e.pth"] == 2


def test_what_is_given_may_be_changed(tmp_path: Path) -> None:
    """The open file is shared; what is taken from it is a copy."""
    torch.save(_encoder(), tmp_path / "e.pth")
    first = open_weights(tmp_path / "e.pth").encoder
    expected = first["cls_token"].clone()
    first["cls_token"].zero_()
    assert torch.equal(open_weights(tmp_path / "e.pth").encoder["cls_token"], expected)


def test_few_files_stay_open(tmp_path: Path, opens: Counter[str]) -> None:
    files = [tmp_path / f"{number}.pth" for number in range(opening.KEPT + 1)]
    for file in files:
        torch.save(_encoder(), file)
    for file in (*files, files[-1], files[0]):
        open_weights(file)
    assert (opens[files[0].name], opens[files[-1].name]) == (2, 1)

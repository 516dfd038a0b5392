"""`mimbench evaluate CKPT --on ade20k,seg_...` on an ADE-shaped tree, from an encoder to results of every protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import HANDWRITTEN
from mimbench.backbones.content import content_hash
from mimbench.backbones.vit import VisionTransformer
from mimbench.jobs.cli.commands import encoder_to_evaluate
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.evaluate import Request, evaluation
from mimbench.jobs.studies.study import Study
from mimbench.seg.upernet import SEGMENTER

QUICK = ("batch=4", "shown=0", "ade20k.steps=2", "ade20k.warmup=1", "seg_linear.steps=2", "seg_linear.warmup=1")
MEASURED = {"ade20k": "miou", "seg_linear": "seg_linear_miou", "seg_knn": "seg_knn_miou"}


def _study(file: Path, request: Request) -> Study:
    """What `mimbench evaluate` would run."""
    shape, about = encoder_to_evaluate(file, request)
    return evaluation(file, shape, request, about)


def test_an_encoder_under_every_protocol_and_the_segmenter_as_it_is(make_ade, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, VisionTransformer(HANDWRITTEN).state_dict(), EncoderInfo("mae", HANDWRITTEN, final_norm=False))
    request = Request(tuple(MEASURED), data=(f"ade={make_ade(4)}",), overrides=QUICK)
    study = _study(file, request)
    study.check()
    directories = study.prepare(runs_root())
    for run, directory in directories.items():
        assert execute(directory) == 0
        found = directory.read_result()
        assert 0 <= found["metrics"][MEASURED[run.label]] <= 100
        assert found["facts"]["data_layout"] == "ADE20K"
        assert found["facts"]["classes"] == 150
    [trained] = [directory for run, directory in directories.items() if run.label == "ade20k"]
    segmenter = trained.path / SEGMENTER
    assert content_hash(segmenter, role="segmenter") != content_hash(file, role="segmenter") == content_hash(file)
    other = tmp_path / "other_mean.pth"
    content = torch.load(segmenter, weights_only=True)
    told = json.loads(content["segmenter"])
    torch.save(content | {"segmenter": json.dumps(dict(sorted(told.items())))}, other)
    assert content_hash(other, role="segmenter") == content_hash(segmenter, role="segmenter")
    torch.save(content | {"segmenter": json.dumps(told | {"mean": [0.5, 0.5, 0.5]})}, other)
    assert content_hash(other, role="segmenter") != content_hash(segmenter, role="segmenter")
    torch.save(content | {"segmenter": json.dumps(told | {"vit": None})}, other)
    with pytest.raises(ValueError, match=r"other_mean\.pth: .* description of the segmenter"):
        content_hash(other, role="segmenter")
    again = Request(("ade20k",), request.data, ("ade20k.steps=0", "shown=0"))
    alone = _study(segmenter, again)
    [whole] = alone.prepare(runs_root()).values()
    assert execute(whole) == 0
    assert whole.read_result()["metrics"] == pytest.approx(trained.read_result()["metrics"])

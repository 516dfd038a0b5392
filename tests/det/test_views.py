"""Several looks at an image, against detectron2's test-time augmentation (golden_heads.py), in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.det.config import TTA
from mimbench.det.model.masks import paste
from mimbench.det.model.test_time_augmentation import detections
from tests.det.tiny import LONG, ORIGINALS, VIEWS, batch, fill, tiny_detector

GOLDEN = json.loads((Path(__file__).parent / "golden_heads.json").read_text())["views"]


@pytest.mark.parametrize("case", ["mask", "cascade"])
def test_what_is_seen_is_what_detectron2_sees(case: str) -> None:
    model = tiny_detector(True, cascade=case == "cascade")
    fill(model)
    model.double().eval()
    found = detections(model, batch(LONG)["images"], LONG, ORIGINALS, TTA(VIEWS, flip=True))
    for shown, size, expected in zip(found, ORIGINALS, GOLDEN[case], strict=True):
        assert torch.allclose(shown.boxes, torch.tensor(expected["boxes"]), atol=1e-3, rtol=0)
        assert shown.scores.tolist() == pytest.approx(expected["scores"], abs=1e-4)
        assert shown.labels.tolist() == expected["labels"]
        assert paste(shown.masks, shown.boxes, size).sum((1, 2)).tolist() == expected["pixels"]


def test_one_look_is_plain_detection() -> None:
    model = tiny_detector(False)
    fill(model)
    content, model = batch(LONG), model.eval()
    plain = [
        one.rescaled(*sizes)
        for one, sizes in zip(model.detect(content["images"], LONG), zip(LONG, ORIGINALS, strict=True), strict=True)
    ]
    for views in (TTA(), TTA(sizes=(128,))):
        found = detections(model, content["images"][:1], LONG[:1], ORIGINALS[:1], views)[0]
        assert torch.allclose(found.boxes, plain[0].boxes, atol=1e-3)
        assert torch.allclose(found.masks, plain[0].masks, atol=1e-5)


def test_a_view_may_be_larger_than_the_square() -> None:
    model = tiny_detector(True)
    fill(model)
    found = detections(model.eval(), batch(LONG)["images"], LONG, ORIGINALS, TTA((130, 200)))
    assert all(len(one.scores) for one in found)
    with pytest.raises(ValueError, match=r"test_time_augmentation\.sizes=\[64, 0\] must be at least 1"):
        TTA((64, 0))


def test_nothing_found_in_any_view() -> None:
    model = tiny_detector(False).eval()
    model.roi_heads.options = replace(model.roi_heads.options, score_threshold=0.99)
    found = detections(model, batch(LONG)["images"], LONG, ORIGINALS, TTA((64,), flip=True))
    assert [one.masks.shape for one in found] == [(0, 28, 28)] * 3

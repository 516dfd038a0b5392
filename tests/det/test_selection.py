"""Which boxes are kept: soft suppression against the loop of its paper, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import batched_nms

from mimbench.det.config import Heads
from mimbench.det.model.nms import LEAST, SIGMA, keep_best


def plain_soft(boxes: list[list[float]], scores: list[float], labels: list[int], kind: str, nms: float, top: int):
    """Bodla et al. 2017, figure 3: take the best, lower the others of its class, again."""

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        both = max(w, 0) * max(h, 0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return both / (sum(areas) - both)

    left, kept = dict(enumerate(scores)), []
    while left and len(kept) < top:
        best = max(left, key=left.get)
        score = left.pop(best)
        if score > LEAST:
            kept.append((best, score))
        for other in left:
            if labels[other] == labels[best]:
                share = overlap(boxes[best], boxes[other])
                factor = 1 - share if share > nms else 1
                left[other] *= math.exp(-(share**2) / SIGMA) if kind == "gaussian" else factor
    return kept


@pytest.fixture
def found() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    corner, side = torch.rand(60, 2) * 40, torch.rand(60, 2) * 30 + 5
    return torch.cat([corner, corner + side], 1), torch.rand(60), torch.randint(0, 3, (60,))


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize("top", [7, 100])
def test_soft_suppression_is_the_papers(found: tuple[torch.Tensor, ...], kind: str, top: int) -> None:
    boxes, scores, labels = found
    keep, lowered = keep_best(*found, Heads(nms=0.3, detections=top, soft_nms=kind))
    wanted = plain_soft(boxes.tolist(), scores.tolist(), labels.tolist(), kind, 0.3, top)
    assert keep.tolist() == [index for index, _ in wanted]
    assert lowered.tolist() == pytest.approx([score for _, score in wanted], rel=1e-5)
    assert lowered.tolist() == sorted(lowered.tolist(), reverse=True)


def test_hard_suppression_keeps_scores_and_counts(found: tuple[torch.Tensor, ...]) -> None:
    boxes, scores, labels = found
    keep, same = keep_best(*found, Heads(nms=0.3, detections=5))
    assert keep.tolist() == batched_nms(boxes, scores, labels, 0.3)[:5].tolist()
    assert torch.equal(same, scores[keep])


@pytest.mark.parametrize("soft", ["off", "linear"])
def test_nothing_to_select(soft: str) -> None:
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    keep, scores = keep_best(*nothing, Heads(soft_nms=soft))
    assert (len(keep), len(scores)) == (0, 0)

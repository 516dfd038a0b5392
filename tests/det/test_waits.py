"""How often the host waits for the device in a step and at inference: counted as on a GPU, by calls on a CPU.

A wait is an operation whose result's size depends on the data (`nonzero`, a Boolean index, `unique`, NMS), a value read
by the host (`item`, `tolist`, `cpu`), or a tensor made of Python's numbers in place. The copy for the drawing of masks
lies in main memory already, so what `rasterise` does is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mimbench.det.config import TTA
from mimbench.det.model import host, pooling
from mimbench.det.model.masks import InstanceMasks
from mimbench.det.model.matching import sample
from mimbench.det.model.test_time_augmentation import detections_leaving
from tests.det.tiny import SHAPES, batch, fill, tiny_detector

BY_SIZE = {"nonzero", "masked_select", "_unique2", "unique_dim", "_local_scalar_dense", "bincount", "nms"}
READS = ("tolist", "item", "cpu", "numpy", "new_tensor")


class Waits(TorchDispatchMode):
    """Counts waits by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        indices = [one for one in args[1] or () if one is not None] if name in ("index", "index_put_") else []
        if name in BY_SIZE or any(one.dtype == torch.bool for one in indices):
            self.add(name)
        return func(*args, **(kwargs or {}))

    def add(self, name: str) -> None:
        """Count one."""
        if not self.paused:
            self.counts[name] += 1


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Count the waits within; matrix products in place of RoIAlign, which are a CPU's, are left out."""
    waits = Waits()

    def noted(name: str, plain: Any, *arguments: Any, **keywords: Any) -> Any:
        if not (name == "item" and waits.counts["_local_scalar_dense"]):
            waits.add(name)
        before, waits.paused = waits.paused, True
        try:
            return plain(*arguments, **keywords)
        finally:
            waits.paused = before

    def in_memory(plain: Any, *arguments: Any) -> Any:
        before, waits.paused = waits.paused, True
        try:
            return plain(*arguments)
        finally:
            waits.paused = before

    with monkeypatch.context() as patched:
        patched.setattr(pooling, "SMALL", 0)
        for name in READS:
            plain = getattr(Tensor, name)
            patched.setattr(Tensor, name, lambda *a, _n=name, _p=plain, **k: noted(_n, _p, *a, **k))
        drawn = InstanceMasks.rasterise
        patched.setattr(InstanceMasks, "rasterise", lambda *a: in_memory(drawn, *a))
        left = host.leaving

        def leaving(values: Tensor) -> Any:
            waits.add("leaving")
            return left(values)

        patched.setattr("mimbench.det.model.roi_heads.leaving", leaving)
        with waits:
            yield waits


def _images(count: int) -> dict[str, Any]:
    whole = batch()
    places = [place % len(SHAPES) for place in range(count)]
    return {
        "images": whole["images"][places],
        "sizes": [whole["sizes"][place] for place in places],
        "targets": [whole["targets"][place] for place in places],
    }


@pytest.mark.parametrize("cascade", [False, True])
def test_a_step_waits_three_times_and_in_nms(monkeypatch: pytest.MonkeyPatch, cascade: bool) -> None:
    model = tiny_detector(True, cascade=cascade)
    fill(model)
    model.train()
    model(_images(1))  # constants are made once
    for images in (1, 3):
        with counted(monkeypatch) as waits:
            losses = model(_images(images))
            losses["loss"].backward()
        of_masks = waits.counts.pop("bincount")  # of levels that are in main memory
        assert of_masks == 2
        in_memory = waits.counts["tolist"] - (4 if cascade else 2)  # those levels
        assert in_memory == 2
        assert waits.counts["leaving"] == 1
        assert waits.counts["nms"] == images
        assert set(waits.counts) == {"tolist", "leaving", "nms"}


def test_inference_waits_four_times_and_in_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_detector(True)
    fill(model)
    model.eval()
    with torch.no_grad():
        model.detect(batch()["images"], SHAPES)
        for images in (1, 3):
            given = _images(images)
            detect = partial(detections_leaving, model, given["images"], given["sizes"], given["sizes"], TTA())
            with counted(monkeypatch) as waits:
                wait = detect()
            assert dict(waits.counts) == {"tolist": 4, "nms": 2 * images}
            assert [len(one.scores) for one in wait()] == [len(one.scores) for one in detect()()]


def test_places_are_those_of_nonzero() -> None:
    torch.manual_seed(0)
    for mask in (torch.rand(50) > 0.4, torch.rand(6, 9) > 0.8, torch.ones(4, dtype=torch.bool), torch.zeros(0).bool()):
        assert torch.equal(host.places(mask, int(mask.sum())), mask.flatten().nonzero()[:, 0])
    assert host.places(torch.zeros(5, dtype=torch.bool), 0).tolist() == []


def test_samples_are_those_of_nonzero_and_leave_the_generator_the_same() -> None:
    labels = torch.randint(-1, 2, (500,), generator=torch.Generator().manual_seed(3))
    found = [int((labels == kind).sum()) for kind in (1, 0)]
    torch.manual_seed(7)
    ours = [*sample(labels, 64, 0.5, found), torch.rand(3)]
    torch.manual_seed(7)
    plain = [
        (labels == kind).nonzero()[:, 0][torch.randperm(count)[:32]] for kind, count in zip((1, 0), found, strict=True)
    ]
    plain.append(torch.rand(3))
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))

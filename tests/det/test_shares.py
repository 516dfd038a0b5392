"""How much regions count: as one mean, or as one mean for each image."""

from __future__ import annotations

import pytest
import torch

from mimbench.det.model.loss_weights import loss_weights

IMAGE_R = torch.tensor([0.0, 0, 0, 2, 2, 0])  # of three images, the second without a region


def test_as_one_batch() -> None:
    assert loss_weights(IMAGE_R, 3, "batch").tolist() == pytest.approx([1 / 6] * 6)


def test_as_one_image_for_each_process() -> None:
    loss_R = torch.arange(6.0)
    each = [loss_R[image == IMAGE_R].mean() for image in (0, 2)]
    assert (loss_weights(IMAGE_R, 3, "image") * loss_R).sum() == pytest.approx(sum(each) / 3)


def test_no_region_at_all() -> None:
    for mode in ("batch", "image"):
        assert loss_weights(torch.zeros(0), 2, mode).shape == (0,)

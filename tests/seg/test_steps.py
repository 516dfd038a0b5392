"""Twenty training steps beside mmsegmentation 1.2.2's on the same weights and batches (golden_training.py)."""

from __future__ import annotations

import pytest

from mimbench.backbones.config import ViT
from mimbench.seg.config import Heads
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.segmenter import UPerNet
from mimbench.seg.model.vit import SegmentationViT
from mimbench.seg.optim import learning_rate, optimizer
from tests.seg.golden_training import LR, STEPS, WARMUP
from tests.seg.rules import fill, golden, image, labels

RGB = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_losses_rates_and_weights_over_twenty_steps(fused: bool) -> None:
    wanted = golden("steps")
    backbone = SegmentationViT(ViT(32, 4, 4, patch=16, image=64), image=64, outputs=(0, 1, 2, 3))
    heads = Heads(channels=24, aux_channels=20, dropout=0.0)
    model = UPerNet(backbone, 150, heads, fused=fused, mean=RGB, std=RGB).double().train()
    fill(model, golden("model")["slide_parameters"], 0.1)
    adam = optimizer(model, LR, 0.05, 0.65, depth=4)
    assert model.auxiliary_head is not None
    for step, row in enumerate(wanted["steps"]):
        for group in adam.param_groups:
            rate = learning_rate(step, peak=LR, steps=STEPS, warmup=WARMUP, schedule="mmseg")
            group["lr"] = rate * group["lr_scale"]
        rates = sorted({group["lr"] for group in adam.param_groups})
        assert rates[0] == pytest.approx(row["lowest"], rel=1e-12, abs=1e-18)
        assert rates[-1] == pytest.approx(row["highest"], rel=1e-12, abs=1e-18)
        truth = labels(2, 64, 64).roll(step * 5, -1)
        maps = model.neck(model.backbone(image(2, 64, 64).roll(step * 97, -1)))
        decode = pixel_loss(model.decode_head(maps), truth)
        aux = heads.aux_weight * pixel_loss(model.auxiliary_head(maps[2]), truth)
        assert decode.item() == pytest.approx(row["decode"], rel=1e-8), step
        assert aux.item() == pytest.approx(row["aux"], rel=1e-8), step
        adam.zero_grad()
        (decode + aux).backward()
        adam.step()
    for name, parameter in model.named_parameters():
        assert parameter.norm().item() == pytest.approx(wanted["norms"][name], rel=1e-6), name
    made = model.decode_head.fpn_bottleneck.bn.running_var.norm().item()
    assert made == pytest.approx(wanted["running_var"], rel=1e-8)

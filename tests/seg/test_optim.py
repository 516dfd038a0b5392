"""Learning rates and parameter groups against mmcv 1.x with BEiT's constructor, mmsegmentation 1.2.2 and DINOv3."""

from __future__ import annotations

import pytest
import torch

from mimbench.backbones.config import SIZES
from mimbench.seg.config import Heads
from mimbench.seg.model.segmenter import UPerNet
from mimbench.seg.model.vit import SegmentationViT
from mimbench.seg.optim import BETAS, Schedule, groups, learning_rate
from tests.seg.rules import golden

GOLDEN = golden("training")


@pytest.mark.parametrize(
    ("schedule", "key", "peak", "steps"),
    [
        ("beit", "lr_mmcv1x_beit_rule", 1e-4, 160_000),
        ("mmseg", "lr_mmseg_1_2_2_LinearLR_PolyLR_run_in_mmengine", 1e-4, 160_000),
        ("dinov3", "lr_dinov3_linear_lr_in_force_at_global_step", 1e-3, 40_000),
    ],
)
def test_learning_rates(schedule: Schedule, key: str, peak: float, steps: int) -> None:
    for step, wanted in GOLDEN[key].items():
        made = learning_rate(int(step), peak=peak, steps=steps, warmup=1500, schedule=schedule)
        assert made == pytest.approx(wanted, rel=1e-11 if schedule == "mmseg" else 1e-12, abs=1e-17), step


def test_the_rates_that_a_published_log_prints() -> None:
    for step, line in GOLDEN["lr_check_against_implus_log_layer0_scale_065^13"].items():
        rate = learning_rate(int(step) - 1, peak=1e-4, steps=160_000, warmup=1500, schedule="beit") * 0.65**13
        assert float(f"{rate:.3e}") == line["log"], step


def test_no_warmup() -> None:
    assert learning_rate(0, peak=1.0, steps=10, warmup=0, schedule="beit") == 1.0
    assert learning_rate(9, peak=1.0, steps=10, warmup=0, schedule="mmseg") == 0.0


def test_parameter_groups_of_vit_b() -> None:
    wanted = GOLDEN["layer_decay_vit_b"]
    with torch.device("meta"):
        backbone = SegmentationViT(SIZES["B"], image=512, outputs=(3, 5, 7, 11))
        model = UPerNet(backbone, 150, Heads(), fused=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made = groups(model, 0.05, wanted["rate"], wanted["num_layers"])
    group_of = {names[id(p)]: group for group in made for p in group["params"]}
    assert len(made) == len(wanted["groups"])
    for theirs in wanted["groups"]:
        shown = [name for name in theirs["names"] if not name.startswith("...")]  # of the heads, the first few
        [ours] = {id(group): group for group in (group_of[name] for name in shown)}.values()
        assert len(ours["params"]) == theirs["tensors"]
        assert sum(p.numel() for p in ours["params"]) == theirs["parameters"]
        assert ours["lr_scale"] == pytest.approx(theirs["lr_scale"], rel=1e-12)
        assert ours["weight_decay"] == theirs["weight_decay"]
    assert sum(p.numel() for group in made for p in group["params"]) == wanted["trainable"]
    assert tuple(wanted["adamw"]["betas"]) == BETAS

"""Options that published recipes leave off and people turn on, in whole runs of the recipes they belong to."""

from __future__ import annotations

from typing import Any

import pytest

from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.run.config import with_overrides
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import create_or_find, runs_root
from tests.soak.twins import tiny

pytestmark = pytest.mark.slow
OPTIONS = (
    ("det/mask_rcnn_vitdet_b_100ep", "compute.precision=bf16"),
    ("det/lvis_cascade_mask_rcnn_vitdet_b_100ep", "compute.precision=bf16"),
    ("cls/finetune_vitb", "ema=0.9 grad_clip=1.0 compute.accumulate=2"),
    ("cls/finetune_vitb", "jpeg_decoder=pil save_predictions=true save_logits=true"),
    ("cls/finetune_vith", "pool=cls compute.precision=fp16"),
    ("cls/finetune_vitb", "mixup=0 cutmix=1 erasing=1 randaugment=rand-m15-mmax20-n3-mstd101"),
    ("cls/finetune_vits", "checkpoint"),
    ("cls/linear_vitb", "views=cached compute.accumulate=2"),
    ("pretrain/crossmae_vitb_400ep", "recompute=true compute.accumulate=2 keep_encoder_every=1 full_export=true"),
    ("pretrain/simmim_vitb_800ep", "jpeg_decoder=pil compute.precision=fp32"),
    (
        "det/mask_rcnn_vitdet_b_100ep",
        "evaluate_every=2 test_time_augmentation.sizes=96,128 test_time_augmentation.flip=true heads.soft_nms=linear",
    ),
    ("det/mask_rcnn_vitdet_h_75ep", "heads.masks=false heads.soft_nms=gaussian recompute=true"),
    ("det/cascade_mask_rcnn_vitdet_l_100ep", "heads.class_loss=sigmoid checkpoint"),
    ("det/lvis_mask_rcnn_vitdet_b_100ep", "compute.precision=fp16 vitdet.abs_pos=false"),
)


@pytest.mark.parametrize(("recipe", "options"), OPTIONS, ids=[" ".join(each) for each in OPTIONS])
def test_an_option_runs_to_the_end(recipe: str, options: str, request: pytest.FixtureRequest) -> None:
    config: Any = tiny(find(recipe).build())
    given = options.split()
    if "checkpoint" in given:
        given[given.index("checkpoint")] = f"checkpoint={request.getfixturevalue('teacher')}"
    data = "images" if not isinstance(config, MaskRCNNConfig) else config.benchmark
    config = with_overrides(config, [*given, f"data={request.getfixturevalue(data)}"])
    run = create_or_find(recipe, config, runs_root())
    assert execute(run) == 0, run.attempts()[-1].get("why")
    assert run.read_result()

"""Twenty training steps of mmsegmentation 1.2.2 on a small model, written to golden/steps.json.

    PYTHONPATH=DIR python tests/seg/golden_training.py

DIR holds mmcv-lite 2.1.0, mmsegmentation 1.2.2, ftfy and regex.

Model, losses, optimiser groups and schedule are mmsegmentation's own (its MAE configuration, with batch norm for
SyncBN and without dropout); weights, images and labels come from the formulas of rules.py. mmcv-lite has no compiled
operators, and mmsegmentation imports the names of some.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

STEPS, WARMUP, LR = 20, 5, 1e-3
HERE = Path(__file__).parent


class _NoOperators(types.ModuleType):
    """Has every name that is imported from it; none is used."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def config() -> dict:
    norm = {"type": "BN", "requires_grad": True}
    head = {"num_classes": 150, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.0}
    return {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "MAE", "img_size": (64, 64), "patch_size": 16, "embed_dims": 32, "num_layers": 4, "num_heads": 4,
            "mlp_ratio": 4, "init_values": 1.0, "drop_path_rate": 0.0, "out_indices": [0, 1, 2, 3],
            "norm_cfg": {"type": "LN", "eps": 1e-6},
        },
        "neck": {"type": "Feature2Pyramid", "embed_dim": 32, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm},
        "decode_head": {
            "type": "UPerHead", "in_channels": [32] * 4, "in_index": [0, 1, 2, 3], "pool_scales": (1, 2, 3, 6),
            "channels": 24, **head,
        },
        "auxiliary_head": {
            "type": "FCNHead", "in_channels": 32, "in_index": 2, "channels": 20, "num_convs": 1, "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4}, **head,
        },
        "test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (42, 42)},
    }  # fmt: skip


def main() -> None:
    sys.modules["mmcv.ops"] = _NoOperators("mmcv.ops")
    sys.path.insert(0, str(HERE.parents[1]))
    from mmengine.optim import LinearLR, PolyLR, build_optim_wrapper
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    from tests.seg.rules import fill, golden, image, labels

    register_all_modules()
    model = MODELS.build(config()).double().train()
    fill(model, golden("model")["slide_parameters"], 0.1)
    wrapper = build_optim_wrapper(
        model,
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": LR, "betas": (0.9, 0.999), "weight_decay": 0.05},
            "paramwise_cfg": {"num_layers": 4, "decay_rate": 0.65, "decay_type": "layer_wise_vit"},
            "constructor": "LearningRateDecayOptimizerConstructor",
        },
    )
    schedulers = [
        LinearLR(wrapper, start_factor=1e-6, by_epoch=False, begin=0, end=WARMUP),
        PolyLR(wrapper, power=1.0, begin=WARMUP, end=STEPS, eta_min=0.0, by_epoch=False),
    ]
    rows = []
    for step in range(STEPS):
        images, truth = image(2, 64, 64).roll(step * 97, -1), labels(2, 64, 64).roll(step * 5, -1)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in truth]
        losses = model.loss(images, samples)
        decode, aux = losses["decode.loss_ce"], losses["aux.loss_ce"]
        wrapper.update_params(decode + aux)
        rates = sorted({group["lr"] for group in wrapper.param_groups})
        rows.append({"decode": decode.item(), "aux": aux.item(), "lowest": rates[0], "highest": rates[-1]})
        for scheduler in schedulers:
            scheduler.step()
    norms = {name: parameter.norm().item() for name, parameter in model.named_parameters()}
    content = {
        "steps": rows,
        "norms": norms,
        "running_var": model.decode_head.fpn_bottleneck.bn.running_var.norm().item(),
    }
    (HERE / "golden" / "steps.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(np.array([[row["decode"], row["aux"]] for row in rows]), torch.__version__)


if __name__ == "__main__":
    main()

"""Writes golden_lvis.json: what LVIS's own evaluator and detectron2's sampler make of lvis_data.py.

    PYTHONPATH=lvis-api's checkout:detectron2's:tests/det python tests/det/golden_lvis.py

lvis-api (7d7f07d) is run as it is, as detectron2's LVISEvaluator calls it; numpy's old name `float` is given back.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import lvis_data
import numpy as np
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler

np.float = float  # type: ignore[attr-defined]
sys.modules.setdefault("cv2", types.ModuleType("cv2"))  # only lvis's drawing needs it

from lvis import LVIS, LVISEval, LVISResults  # noqa: E402


def scored(file: Path, kind: str) -> dict[str, float]:
    """All of LVIS's numbers for boxes or masks."""
    results = copy.deepcopy(lvis_data.results())
    if kind == "segm":
        for result in results:
            result.pop("bbox")
    truth = LVIS(str(file))
    evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=300), kind)
    evaluation.run()
    return {name: float(value) for name, value in evaluation.get_results().items()}


def sampled() -> dict[str, Any]:
    """detectron2's repeat factors, and the first draws of an epoch."""
    content = lvis_data.annotations()
    dicts = [
        {"annotations": [a for a in content["annotations"] if a["image_id"] == image["id"]]}
        for image in content["images"]
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, repeat_thresh=0.9)
    sampler = RepeatFactorTrainingSampler(factors, seed=17)
    generator = torch.Generator().manual_seed(17)
    draws = []
    for _ in range(2):
        indices = sampler._get_epoch_indices(generator)
        draws.append(indices[torch.randperm(len(indices), generator=generator)].int().tolist())
    return {"factors": factors.tolist(), "draws": draws}


def main() -> None:
    """Run and write the file."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "lvis.json"
        file.write_text(json.dumps(lvis_data.annotations()))
        golden: dict[str, Any] = {kind: scored(file, kind) for kind in ("bbox", "segm")}
    golden |= sampled()
    Path(__file__).with_name("golden_lvis.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Two processes measure on stored features what one does: k-NN, the fast linear probe, few-shot, and the features.

python tests/cls/test_frozen_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mimbench.cls.config import FastLinear, FewShot, Knn
from mimbench.cls.run import run
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from tests.cls.conftest import TINY
from tests.ranks import as_ranks

ROOT = Path(__file__).parents[2]
PART = 16


def _configs(data: str) -> dict[str, Any]:
    compute = Compute(precision="fp32", workers=0, device="cpu", log_every=5, save_every=20)
    shared: dict[str, Any] = {"data": data, "encoder": TINY, "image": 16, "compute": compute, "eval_batch": 8}
    return {
        "knn": Knn(**shared, neighbours=(5, 20), more_pools=("cls",)),
        "fewshot": FewShot(**shared, shots=(2, 5), draws=3),
        "fast": FastLinear(
            **shared, layers=2, base_lrs=(10.0, 100.0), held_out=0.25, epochs=8, warmup_epochs=1, batch=16
        ),
    }


def _measure(directory: Path, world: int) -> None:
    from mimbench.cls.frozen import feature_store

    feature_store.PART = PART
    found = {}
    for name, config in _configs(str(directory / "colours")).items():
        about = {"recipe": f"test/{name}", "stage": "cls", "identity": "0"}
        found[name] = run(config, RunDir.create(directory / str(world) / "cls" / name, to_text(config), about)).metrics
    if os.environ.get("RANK", "0") == "0":
        (directory / f"{world}.json").write_text(json.dumps(found))


def main(directory: Path) -> None:
    """Everything by one process, then by two."""
    import mmengine.runner  # noqa: F401  (once, rather than in each process)
    import torch._dynamo  # noqa: F401

    for world in (1, 2):
        as_ranks(world, lambda world=world: _measure(directory, world))


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "colours").symlink_to(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{world}.json").read_text()) for world in (1, 2))
    for protocol in ("knn", "fewshot"):
        assert two[protocol] == one[protocol]
    assert two["fast"].keys() == one["fast"].keys()  # whose batch norm sees half a batch in each of two processes
    stores = [sorted((tmp_path / str(world) / ".features").rglob("*.safetensors")) for world in (1, 2)]
    assert len(stores[0]) == len(stores[1]) == 2 * (2 + 4)  # avg and cls of tokens; pooled: avg and cls of two blocks
    for alone, together in zip(*stores, strict=True):
        assert alone.name == together.name
        assert alone.read_bytes() == together.read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

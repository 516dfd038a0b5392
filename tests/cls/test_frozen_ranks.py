"""Two processes measure on stored features what one does: k-NN, the fast linear probe, few-shot, and the features.
The features of the papers' probe are encoded by each for its share, and are the same bits.

python tests/cls/test_frozen_ranks.py DIRECTORY     # what the test starts: one process, then two, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mimbench.cls.config import FastLinear, FewShot, Knn, Linear
from mimbench.cls.data.crops import CentreCrops, open_splits
from mimbench.cls.frozen.encoders import frozen_encoder
from mimbench.cls.frozen.features import features_of
from mimbench.cls.run import run
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.process import rank_and_world, setup_process
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
    _encode(directory, world)
    found = {}
    for name, config in _configs(str(directory / "colours")).items():
        about = {"recipe": f"test/{name}", "stage": "cls", "identity": "0"}
        found[name] = run(config, RunDir.create(directory / str(world) / "cls" / name, to_text(config), about)).metrics
    if os.environ.get("RANK", "0") == "0":
        (directory / f"{world}.json").write_text(json.dumps(found))


def _encode(directory: Path, world: int) -> None:
    """Encode as the papers' probe does, and write down the features and how many images this process looked at."""
    config = Linear(
        data=str(directory / "colours"), encoder=TINY, image=16, eval_batch=8, batch=16, views="cached",
        compute=Compute(precision="fp32", workers=0, device="cpu"),
    )  # fmt: skip
    seen = []
    crop = CentreCrops.__getitem__

    def counted(crops: CentreCrops, index: int) -> Any:
        seen.append((crops.folder.split, index))
        return crop(crops, index)

    device = setup_process(config.compute, config.seed)
    encoder, splits = frozen_encoder(config, device), open_splits(config.data)
    with patch.object(CentreCrops, "__getitem__", counted):
        found = [features_of(encoder, folder, 16, 1.0, 0) for folder in (splits.train, splits.val)]
    torch.save([*found, seen], directory / f"encoded-{world}-{rank_and_world()[0]}.pt")


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
    _same_features_by_shares(tmp_path)
    stores = [sorted((tmp_path / str(world) / ".features").rglob("*.safetensors")) for world in (1, 2)]
    assert len(stores[0]) == len(stores[1]) == 2 * (2 + 4)  # avg and cls of tokens; pooled: avg and cls of two blocks
    for alone, together in zip(*stores, strict=True):
        assert alone.name == together.name
        assert alone.read_bytes() == together.read_bytes()


def _same_features_by_shares(directory: Path) -> None:
    alone, *both = (torch.load(directory / f"encoded-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for features in both:
        for (expected, labels), (found, same) in zip(alone[:2], features[:2], strict=True):
            assert torch.equal(found, expected)
            assert torch.equal(same, labels)
    images = [[index for split, index in one[2] if split == "train"] for one in (alone, *both)]
    assert images[1] + images[2] == images[0] == list(range(len(alone[0][1])))
    assert abs(len(images[1]) - len(images[2])) <= 8  # a batch
    assert len(both[0][2]) + len(both[1][2]) == len(alone[2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""However a batch is divided among processes and micro-batches, a detector trains as on the whole batch; and one that
is killed in the middle of an epoch ends where one that never stopped does. Two processes measure as one: the first
alone.

python tests/det/test_division.py DIRECTORY     # what the test starts; DIRECTORY holds `shapes`, a COCO data set
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mimbench.backbones.config import ViT
from mimbench.det.config import Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.data.coco import read_split
from mimbench.det.evaluation.predict import from_file
from mimbench.det.evaluation.validate import Evaluation
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.run import run
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.process import rank_and_world, setup_process
from mimbench.engine.run.ranks import computed_by_first
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.state import load_state, newest_valid
from tests.kills import dying, forked, killed
from tests.ranks import as_ranks

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 4, 8  # of 19 images: an epoch is 2 steps
DIVISIONS = {
    "whole": (1, 1),
    "parts": (1, 4),
    "processes": (2, 1),
    "both": (2, 2),
    "shares": (2, 2),
}  # processes, micro-batches


def config_of(data: Path, samples: int = 4000) -> MaskRCNNConfig:
    """A small detector; with so many samples nothing is left to chance but what is drawn for each image."""
    return MaskRCNNConfig(
        data=str(data),
        encoder=ViT(16, 2, 2, patch=4, image=16),
        vitdet=ViTDetConfig(window=4, drop_path=0.0, channels=16, scales=(1.0, 0.5)),
        proposals=Proposals(
            convs=1, anchor_sizes=(16.0, 24.0, 32.0), samples=samples, before_nms=(50, 50), after_nms=(40, 20)
        ),
        heads=Heads(samples=samples, convs=1, channels=16, fc=32, detections=10),
        augment=Augment(smallest=0.8, largest=1.25),
        image=64,
        steps=STEPS,
        batch=BATCH,
        lr=1e-3,
        warmup=1.0,
        milestones=(),
        shown=0,
        compute=Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=1, save_every=1),
    )


def _train(directory: Path, name: str, config: MaskRCNNConfig) -> None:
    about = {"recipe": f"test/{name}", "stage": "det", "identity": "0", "checkpoint": None}
    run(config, RunDir.create(directory / name, to_text(config), about))


def _divided(directory: Path, name: str, rank: int, port: int) -> Callable[[], None]:
    world, parts = DIVISIONS[name]
    config = config_of(directory / "shapes")
    config = replace(config, compute=replace(config.compute, accumulate=parts, shard=name == "shares"))
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def work() -> None:
        with patch.dict(os.environ, {key: str(value) for key, value in about.items()}):
            _train(directory, name, config)

    return work


def _measure(directory: Path, world: int) -> None:
    """Evaluate the trained detector, and write down what this process gets and keeps."""
    config = config_of(directory / "shapes")
    config = replace(config, heads=replace(config.heads, score_threshold=0.0))
    device, (rank, _) = setup_process(config.compute, 0), rank_and_world()
    evaluation = Evaluation(config, read_split(directory / "shapes", "val"), device)
    found = [evaluation(from_file(RunDir(directory / "whole").detector).model.eval()), evaluation.of_record()]
    with pytest.raises(ValueError, match="no such thing"):
        computed_by_first(lambda: config_of(missing()), evaluation.group)
    kept = {"metrics": found, "results": list(evaluation.results), "truth": evaluation._metrics is not None}
    (directory / f"measured-{world}-{rank}.json").write_text(json.dumps(kept))


def missing() -> Path:
    """Raise, in the first process alone."""
    assert rank_and_world()[0] == 0
    raise ValueError("no such thing")


def main(directory: Path) -> None:
    """Train in every division, then without a stop and with a kill in the middle of an epoch."""
    import mmengine.runner  # noqa: F401  (once, rather than in each process)
    import torch._dynamo  # noqa: F401

    for name, (world, _) in DIVISIONS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [forked(_divided(directory, name, rank, port)) for rank in range(world)]
        ends = [killed(child) for child in children]
        assert not any(ends)
    for world in (1, 2):
        as_ranks(world, partial(_measure, directory, world))
    config = replace(config_of(directory / "shapes", samples=16), batch=4, steps=7)  # an epoch is 4 steps
    assert not killed(forked(lambda: _train(directory, "unstopped", config)))
    with patch.object(MaskRCNN, "forward", dying(MaskRCNN.forward, 6)):
        assert killed(forked(lambda: _train(directory, "stopped", config)))
    assert not killed(forked(lambda: _train(directory, "stopped", config)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which `main` has trained."""
    from tests.det.conftest import write_coco

    directory = tmp_path_factory.mktemp("division")
    write_coco(directory / "shapes", 19)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(directory)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = newest_valid(RunDir(directory).checkpoints)
    assert newest is not None
    return load_state(newest)["stepper"]["model"]


def _losses(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "processes", "both", "shares"])
def test_a_divided_batch_is_the_whole_batch(trained: Path, name: str) -> None:
    whole, divided = _losses(trained / "whole"), _losses(trained / name)
    assert len(whole) == STEPS
    assert divided == pytest.approx(whole, rel=1e-5)
    for weight, value in _weights(trained / "whole").items():
        if not weight.endswith("qkv.bias"):  # of keys: softmax has no gradient there, and Adam makes steps of rounding
            torch.testing.assert_close(_weights(trained / name)[weight], value, rtol=1e-4, atol=2e-5, msg=weight)


@pytest.mark.slow
def test_the_first_process_measures_for_all(trained: Path) -> None:
    alone, first, second = (
        json.loads((trained / f"measured-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert len(alone["results"]) > 19
    assert first == alone
    assert second["metrics"] == alone["metrics"]
    assert (second["results"], second["truth"]) == ([], False)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(trained: Path) -> None:
    assert len((trained / "stopped" / "metrics.jsonl").read_text().splitlines()) == 8  # 7 steps and an evaluation
    for name, value in _weights(trained / "unstopped").items():
        assert torch.equal(value, _weights(trained / "stopped")[name]), name
    digests = {
        hashlib.sha256((trained / name / "predictions.json").read_bytes()).hexdigest()
        for name in ("unstopped", "stopped")
    }
    assert len(digests) == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))

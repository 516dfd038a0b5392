"""Which checkpoint several processes go on from: the one that the first of them has chosen, or none of them does.

python tests/engine/test_chosen_state.py DIRECTORY     # what the test starts: two processes, forked from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import rank_and_world, setup_process
from mimbench.engine.training.state import load_newest, save_state, state_path
from tests.ranks import as_ranks

ROOT = Path(__file__).parent.parent.parent
# the steps that each of two processes sees in its own view of the directory, and what becomes of it
CASES: dict[str, tuple[list[int], list[int]]] = {
    "the same": ([10, 20], [10, 20]),
    "the other sees more": ([10], [10, 20]),
    "the first sees none": ([], [10]),
    "the other sees less": ([10, 20], [10]),
    "other bytes": ([10, 20], [10, -20]),
    "late": ([10, 20], [10]),
}


def _work(directory: Path, name: str) -> None:
    setup_process(Compute(device="cpu", workers=0), seed=0)
    rank, _ = rank_and_world()
    mine = directory / name / str(rank)
    for step in CASES[name][rank]:
        value = step if step > 0 else 7
        save_state(state_path(mine, abs(step)), {"step": abs(step), "weight": torch.full((3,), float(value))})
    if name == "late" and rank == 1:
        late = {"step": 20, "weight": torch.full((3,), 20.0)}
        threading.Thread(target=lambda: (time.sleep(1.5), save_state(state_path(mine, 20), late))).start()
    torch.distributed.barrier()
    try:
        found = load_newest(mine, wait=20.0 if name == "late" else 0.1)
        said: object = None if found is None else [found[0].name, found[1]["step"], found[1]["weight"][0].item()]
    except ValueError as error:
        said = str(error)
    (mine / "said.json").write_text(json.dumps(said))


def main(directory: Path) -> None:
    """Every case, in two processes with a directory each, as two nodes may see one."""
    import torch._dynamo  # noqa: F401  (once, rather than in each process)

    for name in CASES:
        for rank in range(2):
            (directory / name / str(rank)).mkdir(parents=True)
        as_ranks(2, lambda name=name: _work(directory, name))


def test_all_go_on_from_what_the_first_has_chosen(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = {
        name: [json.loads((tmp_path / name / str(rank) / "said.json").read_text()) for rank in range(2)]
        for name in CASES
    }
    newest, older = ["step-00000020.pt", 20, 20.0], ["step-00000010.pt", 10, 10.0]
    assert said["the same"] == said["late"] == [newest, newest]
    assert said["the other sees more"] == [older, older]
    assert said["the first sees none"] == [None, None]
    for name, fault in (("the other sees less", "does not see"), ("other bytes", "reads different bytes in")):
        for rank, message in enumerate(said[name]):
            assert message.startswith(f"process 1 {fault} {tmp_path / name / str(rank)}"), message
            assert "file system that all nodes share" in message


def test_one_process_takes_the_newest_whole_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_newest(tmp_path) is None
    for step in (1, 2):
        save_state(state_path(tmp_path, step), {"step": step})
    state_path(tmp_path, 2).write_bytes(b"damaged")
    found = load_newest(tmp_path)
    assert found is not None
    assert (found[0], found[1]) == (state_path(tmp_path, 1), {"step": 1})
    assert "skipping the damaged checkpoint" in caplog.text


if __name__ == "__main__":
    main(Path(sys.argv[1]))

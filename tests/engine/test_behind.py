"""Work in a thread beside the main one: its order, its errors, and the precision of an evaluation."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mimbench.engine.run.behind import WAITING, Behind
from mimbench.engine.run.precision import evaluating_in


def test_results_come_in_order_while_the_main_thread_goes_on() -> None:
    gate, threads = threading.Event(), []

    def work(number: int) -> int:
        gate.wait(10)
        threads.append(threading.current_thread())
        time.sleep(0.01 * (number == 0))
        return number

    with Behind[int]() as behind:
        for number in range(WAITING):
            behind.add(lambda number=number: work(number))  # returns, although nothing is done yet
        gate.set()
        for number in range(WAITING, 9):
            behind.add(lambda number=number: work(number))
        assert behind.results() == list(range(9))
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


def test_errors_reach_the_main_thread() -> None:
    def fail() -> int:
        raise ValueError("mask 3 has no pixels")

    with pytest.raises(ValueError, match="mask 3"), Behind[int]() as behind:
        behind.add(lambda: 1)
        behind.add(fail)
        for _ in range(WAITING + 1):
            behind.add(lambda: 2)
    with pytest.raises(ValueError, match="mask 3"), Behind[int]() as behind:
        behind.add(fail)
        behind.results()


def test_the_precision_of_an_evaluation() -> None:
    values, before = torch.rand(4, 4), torch.backends.cuda.matmul.allow_tf32
    kinds = {}
    for precision in ("fp32", "tf32", "bf16"):
        with evaluating_in(precision, torch.device("cpu")):
            kinds[precision] = (values @ values).dtype, torch.backends.cuda.matmul.allow_tf32
    assert kinds == {
        "fp32": (torch.float32, before), "tf32": (torch.float32, True), "bf16": (torch.bfloat16, before)
    }  # fmt: skip
    with pytest.raises(KeyError), evaluating_in("tf32", torch.device("cpu")):
        raise KeyError
    assert torch.backends.cuda.matmul.allow_tf32 == before

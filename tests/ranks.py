"""Processes forked from a test program that work together as the ranks of one run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from tests.kills import forked


def as_ranks(world: int, work: Callable[[], None]) -> None:
    """Have `world` processes, do `work`, each under torchrun's variables.

    Raises:
        AssertionError: if one of them failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [forked(partial(_rank, rank, world, port, work)) for rank in range(world)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world


def _rank(rank: int, world: int, port: int, work: Callable[[], None]) -> None:
    where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    with patch.dict(os.environ, {**where, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}):
        work()

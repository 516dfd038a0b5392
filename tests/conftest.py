"""Settings for every test: one CPU thread a worker, and a home and a runs root of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers on two cores must not fight


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the settings, caches or runs of the person who runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MIMBENCH_HOME", str(home / "settings"))
    monkeypatch.setenv("MIMBENCH_RUNS", str(home / "runs"))
    for name in [name for name in os.environ if name.startswith("MIMBENCH_DATA_")]:
        monkeypatch.delenv(name)
    return home

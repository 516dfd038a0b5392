"""The progress bar of long work: silent when quick, on a terminal's stderr when not; it passes on what it is given."""

from __future__ import annotations

import logging
import sys

import pytest

from mimbench.engine.run import bar
from mimbench.engine.run.bar import track


def test_quick_work_is_silent(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(track(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert (capsys.readouterr().err, caplog.text) == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_is_shown(
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with caplog.at_level(logging.INFO):
        assert list(track(iter("abc"), "counting", 3)) == ["a", "b", "c"]
    assert ("counting" in capsys.readouterr().err) == terminal
    assert "counting: 3 in " in caplog.text


def test_errors_pass_through_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(ZeroDivisionError):
        for number in track([2, 1, 0], "dividing", 3):
            assert 1 / number

"""The progress bar of long work: silent when quick, on a terminal's stderr when not; it passes on what it is given."""

from __future__ import annotations

import io
import logging
import sys
import time
from types import SimpleNamespace

import pytest

from mimbench.engine.run import bar
from mimbench.engine.run.bar import make_room, track, working


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
    monkeypatch.setattr(bar, "REPORTED", 0.0)
    monkeypatch.setattr(bar, "REDRAW", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with caplog.at_level(logging.INFO):
        assert [_slowly(one) for one in track(iter("abc"), "counting", 3)] == ["a", "b", "c"]
    shown = capsys.readouterr().err
    assert ("counting" in shown, " 1/3 " in shown, " 2/3 " in shown) == (terminal,) * 3
    assert not terminal or shown.endswith("\r\x1b[K"), "the line is erased at the end"
    assert "counting: 3 in " in caplog.text


def _slowly(value: str) -> str:
    time.sleep(0.1)
    return value


@pytest.mark.parametrize("terminal", [True, False])
def test_work_of_unknown_length_moves(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    monkeypatch.setattr(bar, "REDRAW", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with working("reading"):
        time.sleep(0.2)
        with working("importing"):
            time.sleep(0.1)
        time.sleep(0.1)
        make_room()
        capsys_before = capsys.readouterr().err
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
    if terminal:
        drawn = capsys_before.split("\r")
        assert len({line for line in drawn if line.startswith("reading")}) > 3
        assert any(line.startswith("importing") for line in drawn)
    else:
        assert capsys_before == "reading ...\nimporting ...\n"


def test_errors_pass_through_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(ZeroDivisionError):
        for number in track([2, 1, 0], "dividing", 3):
            assert 1 / number


@pytest.mark.parametrize("below_another_display", [False, True])
def test_a_terminal_shows_work_at_once(below_another_display: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    proxy = SimpleNamespace(rich_proxied_file=terminal, isatty=lambda: True)  # as rich's live displays replace stderr
    monkeypatch.setattr(sys, "stderr", proxy if below_another_display else terminal)
    with working("reading"):
        shown = terminal.getvalue()
    assert shown.startswith("\rreading  ━") is not below_another_display
    assert terminal.getvalue().endswith("\r\x1b[K") is not below_another_display

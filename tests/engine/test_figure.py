"""Pictures of very tall images, and of many of them, within matplotlib's limits."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from mimbench.engine.run.figure import printable, row_heights, write_figure


def test_a_tall_figure_is_written(tmp_path: Path) -> None:
    write_figure(tmp_path / "tall.png", Figure(figsize=(0.2, 700.0)), 110)
    width, height = Image.open(tmp_path / "tall.png").size
    assert 64_000 < height < 65_536
    assert width == 18
    write_figure(tmp_path / "usual.png", Figure(figsize=(2.0, 3.0)), 110)
    assert Image.open(tmp_path / "usual.png").size == (220, 330)


def test_heights_of_rows() -> None:
    assert row_heights([(3, 4), (5000, 1), (8, 4)]) == [0.75, 4.0, 2.0]


def test_names_that_are_not_utf_8_are_drawn(tmp_path: Path) -> None:
    assert printable("\xe9 \udcff.png") == "\xe9 ?.png"
    figure = Figure(figsize=(1.0, 1.0))
    figure.subplots().set_title(printable("\udcff"), parse_math=False)
    write_figure(tmp_path / "name.png", figure, 50)

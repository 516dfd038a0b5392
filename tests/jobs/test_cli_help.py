"""The help of `mimbench`: panels, an example for each command that its parser takes, one spelling for one thing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mimbench.jobs.cli.main import PANELS, app
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import protocols
from mimbench.jobs.studies.study_files import ready_studies
from mimbench.jobs.tables import paper

PANEL_COMMANDS = {
    "Evaluate": "evaluate inspect embed export lazyconfig predict intervals compare-predictions",
    "Pretrain and run": "demo run recipes explain memory flops status watch logs cancel retry",
    "Studies": "plan submit studies sweep prune",
    "Tables and reports": "table compare report serve card cost papers",
    "Data": "data",
    "Clusters": "cluster",
    "Setup": "doctor gc",
}
ROOT = typer.main.get_command(app)


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its words, groups and those inside them."""
    if words:
        yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*words, name))


COMMANDS = dict(_commands(ROOT))
LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}


def mimbench(*arguments: str | Path) -> Any:
    """Call the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimbench")


def test_the_help_lists_the_commands_by_panel_a_line_each() -> None:
    text = mimbench("--help").stdout
    sections = dict(re.findall(r"^(\S[\w ]+):\n((?:  .*\n)+)", text, re.MULTILINE))
    listed = {title: [line.split()[0] for line in sections[title].splitlines()] for title in PANEL_COMMANDS}
    assert listed == {title: names.split() for title, names in PANEL_COMMANDS.items()}
    assert [title for title in sections if title in PANEL_COMMANDS] == [panel.title for panel in PANELS]
    assert "..." not in "".join(sections[title] for title in PANEL_COMMANDS), "a line is cut off"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_and_an_example_that_parses(name: str) -> None:
    done = mimbench(*name.split(), "--help")
    assert done.exit_code == 0
    assert mimbench(*name.split(), "-h").stdout == done.stdout
    examples = re.findall(r"^  (mimbench .*)$", done.stdout.partition("\nExample:\n")[2], re.MULTILINE)
    assert examples, f"`mimbench {name} --help` has no example"
    for example in examples:
        assert example.startswith(f"mimbench {name}")
        _parse(shlex.split(example)[1:])


def _parse(words: list[str]) -> None:
    """Read by the command's own parser; what it names is there."""
    command: Any = ROOT
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    parameters = command.make_context("mimbench", list(words)).params
    named = str(parameters.get("recipe") or parameters.get("target") or parameters.get("run") or "")
    if re.match(r"(pretrain|cls|det)/", named):
        resolve(named, [] if command.name == "sweep" else parameters.get("overrides") or [])
    if "on" in parameters:
        assert set(parameters["on"].split(",")) <= set(protocols())
    if command.name == "table":
        assert paper.find(parameters["name"])
    if command.name in ("plan", "submit"):
        assert parameters["study"] in ready_studies()


@pytest.mark.parametrize("name", LEAVES)
def test_what_is_written_goes_to_output(name: str) -> None:
    options = {option for parameter in LEAVES[name].params for option in parameter.opts}
    assert not options & {"--out", "--outfile", "--file", "--html", "--dest"}
    assert ("--output" in options) == ("-o" in options)
    for parameter in LEAVES[name].params:
        assert getattr(parameter, "help", None), f"`mimbench {name}`: {parameter.name} has no help"


def test_former_spellings_are_taken_and_not_shown() -> None:
    for name, former in (("predict", "--out"), ("export", "--out"), ("lazyconfig", "--out"), ("compare", "--html")):
        command = LEAVES[name]
        words = {"predict": ["d.pth", "a.png"], "export": ["v.pth", "--to", "mae"], "compare": ["a", "b"]}
        given = words.get(name, ["det/mask_rcnn_vitdet_b_100ep"])
        for spelt in ([former, "here"], [f"{former}=here"], ["--output", "here"], ["-o", "here"]):
            assert command.make_context("mimbench", [*given, *spelt]).params["output"] == Path("here")
        assert not re.search(rf"{former}\b", mimbench(name, "--help").stdout)
    assert LEAVES["compare"].make_context("mimbench", ["--", "--html", "b"]).params["first"] == "--html"
    refused = mimbench("status", "--out", "here")
    assert refused.exit_code == 2
    assert "No such option: --out" in refused.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evaluat vit.pth", "Did you mean 'evaluate'?"),
        ("compare-prediction a b", "'compare-predictions'"),
        ("data ad x y", "Did you mean 'add'?"),
        ("status --sttudy x", "--study"),
        ("table --fromat csv", "--format"),
        ("export v.pth --to tim", "'timm'"),
        ("run cls/knnn", "did you mean cls/knn"),
        ("plan crossmae/tabel2", "crossmae/table2"),
        ("table crossmae/tabel2", "crossmae/table2"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest_name(words: str, offered: str) -> None:
    done = mimbench(*words.split())
    assert done.exit_code in (1, 2)
    assert offered in done.stderr.splitlines()[-1]

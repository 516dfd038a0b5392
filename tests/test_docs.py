"""What the pages in docs/ tell people to type is there, and so are the tables and recipes they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from jobs import paper
from jobs.cli import app
from jobs.recipes import find

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
COMMANDS = sorted({
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("mimbench ")
})  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_command_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while getattr(command, "commands", None):
        command = command.commands[words[0]]  # type: ignore[attr-defined]
        words = words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.match(r"mimbench table \w+/", line)])
def test_table_exists(line: str) -> None:
    name = shlex.split(line)[2]
    assert name == "crossmae/compute" or paper.find(name)


def test_inline_commands_exist() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`mimbench (\w+)", text)) <= known, page
        for name in re.findall(r"`((?:pretrain|cls|det)/\w+)`", text):
            find(name)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

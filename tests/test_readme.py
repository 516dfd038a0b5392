"""What README.md tells people to type is there: commands, options, recipes and the keys of their configs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from jobs.cli import app
from jobs.evaluate import STAGE
from jobs.store import resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("mimbench ")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_exists(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while getattr(command, "commands", None):
        command = command.commands[words[0]]
        words = words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "run"], ids=" ".join)
def test_recipe_and_keys_exist(words: list[str]) -> None:
    resolve(words[1], words[2:])


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "evaluate"], ids=" ".join)
def test_protocols_exist(words: list[str]) -> None:
    assert set(words[words.index("--on") + 1].split(",")) <= set(STAGE)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)\b", "\n".join(LINES)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target

"""The `mimbench` command.

    mimbench demo                                  pretrain, evaluate and report on this machine, in minutes
    mimbench evaluate vit.pth --on linear          a checkpoint under the papers' protocols
    mimbench run cls/linear_vitb base_lr=0.2       a recipe; RUN_DIR resumes a run, as cluster jobs do
    mimbench submit crossmae/table2 --cluster a100

Each panel of the help has its own file of commands. Exit codes: 0 done, 1 failed or wrong input, 2 wrong usage,
130 and 143 interrupted by Ctrl-C and SIGTERM. With --json, stdout holds JSON alone and the rest goes to stderr.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mimbench.jobs.cli import runs  # adds to RUNS
from mimbench.jobs.cli.cluster import CLUSTERS
from mimbench.jobs.cli.data import DATA
from mimbench.jobs.cli.evaluation import EVALUATE
from mimbench.jobs.cli.panels import HELP, Commands
from mimbench.jobs.cli.reports import TABLES
from mimbench.jobs.cli.setup import SETUP
from mimbench.jobs.cli.studies import STUDIES

PANELS = (EVALUATE, runs.RUNS, STUDIES, TABLES, DATA, CLUSTERS, SETUP)


class Mimbench(Commands):
    """All commands."""

    titles = tuple(panel.title for panel in PANELS)


app = typer.Typer(
    cls=Mimbench,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    epilog="mimbench evaluate vit.pth --on linear,fewshot --data imagenet",
)


def main() -> None:
    """Run the command line, for the console script and `python -m mimbench`."""
    app(prog_name="mimbench")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mimbench {version('mimbench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pretrain masked-image-modelling encoders, evaluate them under the papers' protocols, compare the numbers.

    Runs are kept in ./runs; set MIMBENCH_RUNS to use another directory. `mimbench COMMAND --help` shows an example.
    """


for panel in PANELS:
    panel.add_to(app)

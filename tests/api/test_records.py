"""`run`, `results` and `table`: the numbers of the command line as data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import mimbench
from mimbench.engine.run import result
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.tables import paper
from tests.jobs.conftest import images, stage  # noqa: F401  (fixtures)
from tests.jobs.published import Published
from tests.jobs.test_formats import fill

Install = Callable[[Callable[[Any, RunDir], Outcome]], None]


def _command(*words: str) -> Any:
    return json.loads(CliRunner().invoke(app, list(words), prog_name="mimbench").stdout)


def test_a_recipe_is_run_once(images: Path, stage: Install) -> None:  # noqa: F811
    asked: list[Any] = []

    def knn(config: Any, run: RunDir) -> Outcome:
        asked.append(config)
        return Outcome({"knn_top1": 12.5})

    stage(knn)
    values = {"k": np.int64(10), "neighbours": (10, 20), "checkpoint": None}
    record = mimbench.run("cls/knn", ["compute.workers=0"], data=images, **values)
    assert record.metrics == {"knn_top1": 12.5}
    assert (record.stage, record.recipe, record.state, record.science["k"]) == ("cls", "knn", "done", 10)
    assert (asked[0].k, asked[0].neighbours, asked[0].checkpoint, asked[0].compute.workers) == (10, (10, 20), None, 0)
    again = mimbench.run("cls/knn", data=str(images), k=10, neighbours=[10, 20])
    assert again.run.path == record.run.path
    assert mimbench.run(record.run.path).metrics == record.metrics
    assert len(asked) == 1
    assert _command("run", str(record.run.path), "--json")["metrics"] == record.metrics


def test_a_run_that_fails_says_why_and_can_be_run_again(images: Path, stage: Install) -> None:  # noqa: F811
    def fail(config: Any, run: RunDir) -> Outcome:
        raise ValueError(f"{config.data} holds no images")

    def interrupted(config: Any, run: RunDir) -> Outcome:
        raise KeyboardInterrupt

    stage(fail)
    with pytest.raises(RuntimeError, match=r"cls/knn-\w+ failed: .*some images holds no images"):
        mimbench.run("cls/knn", data=images)
    stage(interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same call resumes it"):
        mimbench.run("cls/knn", data=images)
    stage(lambda config, run: Outcome({"knn_top1": 1.0}))
    assert mimbench.run("cls/knn", data=images).metrics == {"knn_top1": 1.0}


@pytest.mark.parametrize(
    ("target", "values", "complaint"),
    [
        ("cls/kn", {}, "unknown recipe 'cls/kn'; did you mean cls/knn"),
        ("cls/knn", {"kk": 3}, "unknown key 'kk'"),
        ("cls/knn", {"k": "many"}, "k='many': input should be a valid integer"),
        ("cls/knn", {"k": True}, "k=true"),
    ],
)
def test_wrong_settings_are_refused(target: str, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        mimbench.run(target, **values)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        mimbench.run("cls/knn_handwritten", checkpoint=Path("nowhere.pth"))
    assert not runs_root().exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A root with finished runs of published recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "commit", lambda: None)
        return fill(tmp_path_factory.mktemp("published") / "runs")


def test_results_are_the_records_of_all_runs(runs: Published) -> None:
    records = mimbench.results(runs.root)
    assert len(records) == len(list(runs.root.glob("*/*/run.json"))) > 5
    assert [one.started for one in records] == sorted(one.started for one in records)
    assert isinstance(records[1:3], mimbench.Results)
    assert repr(records[1:3]) == "Results(2 runs)"
    for record, row in zip(records, records.to_dicts(), strict=True):
        written = json.loads((record.run.path / "result.json").read_text())
        assert {name: row[f"metrics.{name}"] for name in written["metrics"]} == written["metrics"]
        assert f"{row['stage']}/{row['recipe']}" == written["recipe"]
        assert (row["state"], row["seconds"], row["device"]) == ("done", written["seconds"], written["device"])
    assert len(mimbench.results(runs.root / "none")) == 0


def test_a_data_frame_has_a_row_for_each_run(runs: Published) -> None:
    records = mimbench.results(runs.root)
    frame = records.to_dataframe()
    assert len(frame) == len(records)
    detections = frame[frame.stage == "det"]
    assert detections["metrics.box_ap"].tolist() == [one.metrics["box_ap"] for one in records if one.stage == "det"]
    assert frame["config.seed"].tolist() == [one.science["seed"] for one in records]
    assert frame["metrics.loss"].isna().sum() == (frame.stage != "pretrain").sum()


def test_without_pandas_there_are_dictionaries(runs: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    records = mimbench.results(runs.root)
    assert len(records.to_dicts()) == len(records)
    for convert in (records.to_dataframe, mimbench.table("crossmae/table2").to_dataframe):
        with pytest.raises(ModuleNotFoundError, match=r"needs pandas, .*; `pip install pandas`, or use to_dicts\(\)"):
            convert()


# --------------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize("name", ["crossmae/table1", "crossmae/table2"])
def test_a_papers_table_has_the_numbers_of_the_command(
    name: str, runs: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_RUNS", str(runs.root))
    table = mimbench.table(name)
    [told] = _command("table", name, "--format", "json")
    assert (table.name, table.title) == (told["table"], told["title"])
    assert list(table.columns) == [column["key"] for column in told["columns"]]
    assert [row.label for row in table.rows] == [row["label"] for row in told["rows"]]
    measured = 0
    for row, other in zip(table.rows, told["rows"], strict=True):
        assert row.cells.keys() == other["cells"].keys()
        for key, cell in row.cells.items():
            wanted, ours = other["cells"][key], other["cells"][key]["ours"]
            assert cell.published == wanted["paper"]["value"]
            assert cell.measured == (ours["mean"] if ours else None)
            if ours:
                measured += 1
                assert cell.difference == pytest.approx(ours["mean"] - wanted["paper"]["value"], abs=1e-9)
                assert cell.comparable == (wanted["verdict"]["status"] == "same")
                assert len(cell.values) == len(cell.runs) > 0
                assert cell.notes
    assert measured > 0
    missing = {command for one in told["missing"] for command in one["commands"]}
    assert set(table.commands) == missing
    frame = table.to_dataframe()
    assert len(frame) == sum(len(row.cells) for row in table.rows)
    assert frame.measured.notna().sum() == measured
    assert isinstance(frame, pd.DataFrame)


def test_the_table_of_all_runs_is_the_commands(runs: Published) -> None:
    table = mimbench.table(root=runs.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_RUNS", str(runs.root))
        told = _command("table", "--json")
    assert len(table.rows) == len(told) > 1
    for row, other in zip(table.rows, told, strict=True):
        assert (row.kind, row.note) == (other["kind"], other["note"])
        shown = {key: cell for key, cell in other["metrics"].items() if cell is not None}
        assert {key: cell.measured for key, cell in row.cells.items()} == {
            key: cell["mean"] for key, cell in shown.items()
        }
    assert mimbench.table(root=runs.root / "none").rows == ()


def test_tables_that_are_no_single_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"crossmae has \d+ tables; name one of crossmae/table1, "):
        mimbench.table("crossmae", tmp_path)
    with pytest.raises(ValueError, match="crossmae/tabel2"):
        mimbench.table("crossmae/tabel2", tmp_path)
    with pytest.raises(ValueError, match="`mimbench table crossmae/compute --format json` prints it"):
        mimbench.table("crossmae/compute", tmp_path)
    for name in paper.tables():
        assert mimbench.table(name, tmp_path).rows

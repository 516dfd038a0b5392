"""Plans: what a study would start, and what becomes of runs that are there; and starting them, by two at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mimbench.engine.run.result import Outcome, write_result
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.lineage import take
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies import submit as submitting
from mimbench.jobs.studies.plan import Plan, plan, render
from mimbench.jobs.studies.study import Run, Study
from mimbench.jobs.studies.study_files import load_study
from mimbench.jobs.studies.study_registry import add_members, members
from tests.jobs.encoder_file import encoder_bytes

if TYPE_CHECKING:
    from tests.jobs.conftest import Bench

ROOT = Path(__file__).parents[2]
PRETRAIN = Run("pretrain/crossmae_handwritten", label="pretrain")
PROBE = Run("cls/knn_handwritten", checkpoint=PRETRAIN, label="probe")
OTHER = Run("cls/knn_handwritten", label="scratch")
STUDY = Study("mine", [PRETRAIN, PROBE, OTHER])


def _states(found: Plan) -> dict[str, str]:
    return {line.name: line.state for line in found.lines}


def _finish(run: RunDir, weights: str = "") -> None:
    """As a real run does: what it starts from is recorded, and what it made is written before its result."""
    number = run.begin_attempt()
    taken = take(run, number)
    if weights:
        run.encoder.write_bytes(encoder_bytes(weights))
    write_result(run, Outcome({"knn_top1": 50.0}), 1.0, taken)
    run.end_attempt(number, "done")


def _fail(run: RunDir) -> None:
    run.end_attempt(run.begin_attempt(), "failed", "the data are no good")


def test_a_plan_writes_nothing_and_names_every_directory() -> None:
    found = plan(STUDY, runs_root())
    assert _states(found) == {"pretrain": "new", "probe": "new", "scratch": "new"}
    assert not runs_root().exists()
    made = STUDY.prepare(runs_root())
    assert [line.directory for line in found.lines] == list(made.values())
    assert render(found).splitlines()[-1] == "mine: 3 new"


def test_states_as_a_study_goes_on() -> None:
    made = STUDY.prepare(runs_root())
    number = made[PRETRAIN].begin_attempt()
    made[OTHER].end_attempt(made[OTHER].begin_attempt(), "interrupted")
    assert _states(plan(STUDY, runs_root())) == {"pretrain": "running", "probe": "new", "scratch": "interrupted"}
    made[PRETRAIN].end_attempt(number, "failed", "no space")
    found = plan(STUDY, runs_root())
    assert _states(found) == {"pretrain": "failed", "probe": "blocked", "scratch": "interrupted"}
    assert [line.why for line in found.lines] == ["no space", "needs pretrain, which has failed", ""]
    assert found.counts == {"failed": 1, "interrupted": 1, "blocked": 1}
    (made[OTHER].path / "attempts" / "1.json").write_text("{")
    assert _states(plan(STUDY, runs_root()))["scratch"] == "damaged"


def test_a_result_of_weights_that_have_changed_is_stale() -> None:
    made = STUDY.prepare(runs_root())
    _finish(made[PRETRAIN], "weights")
    _finish(made[PROBE])
    result = made[PROBE].read_result() or {}
    assert result["checkpoint"]["hash"] == made[PROBE].attempts()[0]["checkpoint"]
    assert len(result["checkpoint"]["hash"]) == 64
    assert _states(plan(STUDY, runs_root()))["probe"] == "done"
    made[PRETRAIN].encoder.write_bytes(encoder_bytes("other weights"))
    [line] = plan(STUDY, runs_root()).of("stale")
    assert line.name == "probe"
    assert f"it started from weights {result['checkpoint']['hash'][:10]}, which are now " in line.why


def test_a_damaged_file_is_told_of_its_run_alone() -> None:
    made = STUDY.prepare(runs_root())
    _finish(made[PRETRAIN], "weights")
    _finish(made[PROBE])
    _finish(made[OTHER])
    made[OTHER].result.write_text("{")
    made[PRETRAIN].encoder.write_bytes(encoder_bytes("weights")[:-9])
    found = plan(STUDY, runs_root())
    assert _states(found) == {"pretrain": "done", "probe": "stale", "scratch": "damaged"}
    reasons = {line.name: line.why for line in found.lines}
    assert str(made[PRETRAIN].encoder) in reasons["probe"]
    assert "damaged result.json: remove it" in reasons["scratch"]


def test_content_is_hashed_once() -> None:
    made = STUDY.prepare(runs_root())
    _finish(made[PRETRAIN], "weights")
    _finish(made[PROBE])
    plan(STUDY, runs_root())
    cache = runs_root() / ".mimbench" / "hashes.json"
    [(key, entry)] = json.loads(cache.read_text()).items()
    assert key.startswith(str(made[PRETRAIN].encoder))
    cache.write_text(json.dumps({key: [entry[0], "0" * 64, entry[2]]}))
    assert plan(STUDY, runs_root()).of("stale"), "the cache is believed as long as size and time stay"
    cache.write_text("not json")
    assert not plan(STUDY, runs_root()).of("stale"), "and a damaged one costs only time"


def test_a_need_that_never_made_its_encoder_says_so() -> None:
    made = STUDY.prepare(runs_root())
    with pytest.raises(FileNotFoundError, match=r"\(state: new\) has not written encoder.safetensors; `mimbench run "):
        take(made[PROBE], made[PROBE].begin_attempt())
    early = Run("cls/knn_handwritten", checkpoint=PRETRAIN, epoch=5)
    _finish(made[PRETRAIN], "weights")
    made[PRETRAIN].encoder.rename(made[PRETRAIN].path / "moved")
    again = r"\(state: done\) has not written encoder.safetensors; the file was removed; `mimbench retry --anew "
    with pytest.raises(FileNotFoundError, match=again):
        take(made[PROBE], 1)
    (made[PRETRAIN].path / "moved").rename(made[PRETRAIN].encoder)
    with pytest.raises(FileNotFoundError, match="has no encoder of epoch 5; pretrain with keep_encoder_every=5"):
        run = early.directory(runs_root())
        take(run, run.begin_attempt())


def test_what_is_in_the_study_no_more_is_an_orphan() -> None:
    made = STUDY.prepare(runs_root())
    add_members(runs_root(), "mine", {directory: run.name for run, directory in made.items()})
    smaller = Study("mine", [PRETRAIN, PROBE])
    [line] = plan(smaller, runs_root()).of("orphaned")
    assert (line.directory, line.name, line.why) == (made[OTHER], "scratch", "it is new")
    assert not plan(Study("another", [PRETRAIN]), runs_root()).of("orphaned")
    submitting.prune_orphans(plan(smaller, runs_root()))
    assert not plan(smaller, runs_root()).of("orphaned")
    assert made[OTHER].about.exists(), "its files stay"
    assert len(members(runs_root(), "mine")) == 2


def test_data_that_are_not_known_here_are_planned_and_not_started() -> None:
    study = Study("far", [Run("cls/knn")])
    found = plan(study, runs_root())
    assert found.missing_data == ["imagenet"]
    with pytest.raises(ValueError, match="data=imagenet is neither a directory nor a known data set"):
        submitting.local_scheduler(study, runs_root(), 1).run()
    assert not list(runs_root().glob("*/*/run.json"))


def test_submitting_here_leaves_failed_runs_alone(bench: Bench) -> None:
    study = Study("mine", [Run("cls/knn_handwritten", (f"seed={seed}",), label=f"{seed}") for seed in range(3)])
    bench.behaviours = {1: "fails"}
    tasks = submitting.local_scheduler(study, runs_root(), 2).run()
    assert [task.fate for task in tasks] == ["done", "failed", "done"]
    bench.behaviours = {}
    tasks = submitting.local_scheduler(study, runs_root(), 2).run()
    assert [task.fate for task in tasks] == ["done", "failed", "done"]
    assert "the data are no good (in an earlier attempt; `mimbench retry` starts it again)" in tasks[1].why
    assert len(bench.submitted) == 3
    assert [task.fate for task in submitting.local_scheduler(study, runs_root(), 2, retry=True).run()] == ["done"] * 3
    assert len(bench.submitted) == 4
    failed = study.prepare(runs_root())[study.runs[1]]
    assert submitting.start_again([failed], runs_root(), 1) == 0, "one that is done stays so"
    assert len(bench.submitted) == 4


def test_runs_start_again_where_they_are_after_what_they_need(bench: Bench) -> None:
    made = STUDY.prepare(runs_root())
    for run in made.values():
        _fail(run)
    assert submitting.start_again(reversed(list(made.values())), runs_root(), 1) == 0
    assert {run.state() for run in made.values()} == {"done"}
    started = [run.attempts()[-1]["started"] for run in made.values()]
    assert started[0] < started[1]
    assert not members(runs_root(), "retry")


TWO = """
import sys, time
from pathlib import Path
from mimbench.jobs.local import scheduler as local
from mimbench.jobs.studies import submit
from mimbench.jobs.runs.store import runs_root
from mimbench.jobs.studies.study import Run, Study
from tests.jobs.conftest import Bench
bench = Bench()
local.Launcher, local.POLL = bench.launcher, 0.02
study = Study("two", [Run("cls/knn_handwritten", (f"seed={seed}",), label=str(seed)) for seed in range(6)])
tasks = submit.local_scheduler(study, runs_root(), 2).run()
print(*[task.fate for task in tasks])
"""


def test_two_who_submit_at_once_run_nothing_twice() -> None:
    command = [sys.executable, "-c", TWO]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert said == [["done"] * 6] * 2
    runs = [RunDir(file.parent) for file in runs_root().glob("cls/*/run.json")]
    assert len(runs) == 6
    assert [len(run.attempts()) for run in runs] == [1] * 6
    assert len(members(runs_root(), "two")) == 6


# ---------------------------------------------------------------------------------------------------- files of studies


def _file(directory: Path, text: str) -> str:
    file = directory / "my study.py"
    file.write_text("from mimbench.jobs.studies.study import Run, Study\n" + text)
    return str(file)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No folder of the repository can be imported by its bare name, as where mimbench is installed."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("line", ["from jobs.study import Run, Study", "import engine.config", "from det import x"])
def test_a_file_for_the_former_module_names_says_what_to_write_now(tmp_path: Path, line: str) -> None:
    file = tmp_path / "old.py"
    file.write_text(f'"""An old study."""\n{line}\n')
    with pytest.raises(ValueError, match=r"old\.py:2: Module.*; write `from mimbench import Run, Study`"):
        load_study(str(file), runs_root())


@pytest.mark.usefixtures("elsewhere")
def test_modules_of_the_studys_own_may_have_those_names(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("SEED = 3\n")
    (tmp_path / "det.py").write_text("import nowhere\n")
    file = tmp_path / "own.py"
    run = 'Run("cls/knn", (f"seed={engine.SEED}",))'
    file.write_text(f'import engine\nfrom mimbench import Run, Study\nstudy = Study("own", [{run}])')
    assert load_study(str(file), runs_root()).runs[0].overrides == ("seed=3",)
    file.write_text("import det\n")
    with pytest.raises(ValueError, match=r"own\.py:1: ModuleNotFoundError: No module named 'nowhere'$"):
        load_study(str(file), runs_root())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "temperatures.py").write_text("VALUES = (0.05, 0.1)\n")
    text = """
from temperatures import VALUES
def study():
    return Study("mine", [Run("cls/knn_handwritten", (f"temperature={t}",)) for t in VALUES])
"""
    assert len(load_study(_file(tmp_path, text), runs_root()).runs) == 2
    study = load_study(_file(tmp_path, 'study = Study("", [Run("cls/knn")])'), runs_root())
    assert study.name == "my study"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("study = Study('s', [Run('cls/knn', after=('x',))])", "my study.py:2: study s: cls/knn needs x, which is"),
        ("\nstudy = Stdy('s', [])", r"my study.py:3: NameError: name 'Stdy' is not defined"),
        ("def study():\n    return 1 / 0", r"my study.py:3: ZeroDivisionError: division by zero"),
        ("study = (", r"my study.py:2: SyntaxError: '\(' was never closed"),
        ("import nowhere", r"my study.py:2: ModuleNotFoundError: No module named 'nowhere'"),
        ("runs = []", r"my study.py: `study` is missing; define it as a Study"),
        ("study = 3", r"of type int"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        load_study(_file(tmp_path, text), runs_root())
    assert "\n" not in str(caught.value)


def test_the_place_is_told_of_a_file_beside_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("x = 1\nstudy = 1 / 0\n")
    with pytest.raises(ValueError, match=r"^bad\.py:2: ZeroDivisionError: division by zero$"):
        load_study("bad.py", runs_root())
    Path("bad.py").write_text("x = (\n")
    with pytest.raises(ValueError, match=r"^bad\.py:1: SyntaxError: "):
        load_study("bad.py", runs_root())


def test_a_study_that_nobody_knows_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown study 'crossmae/tabel2'; did you mean crossmae/table2"):
        load_study("crossmae/tabel2", runs_root())
    with pytest.raises(ValueError, match="did you mean crossmae/table2"):
        load_study("table2", runs_root())
    with pytest.raises(ValueError, match=r"study nowhere\.py does not exist"):
        load_study("nowhere.py", runs_root())

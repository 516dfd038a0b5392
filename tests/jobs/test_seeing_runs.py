"""Seeing runs: their names, lists and logs, what they cost, and why a run is a run of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.cli import names, options
from mimbench.jobs.cli.commands import run_of, show_result
from mimbench.jobs.runs import gpu_hours as spent
from mimbench.jobs.runs import run_names, status
from mimbench.jobs.runs.explain import explain_place, explain_run
from mimbench.jobs.runs.store import place, resolve, runs_root
from mimbench.jobs.studies.study import Run
from mimbench.jobs.studies.study_registry import directory_name
from tests.jobs.encoder_file import encoder_bytes
from tests.jobs.mine import PRETRAIN, mimbench

if TYPE_CHECKING:
    pass


# ------------------------------------------------------------------------------------------------------ names and lists


def test_a_run_goes_by_many_names(made: list[RunDir]) -> None:
    root, run = runs_root(), made[1]
    name = run.path.name
    for text in (str(run.path), name, name[:-3], f"cls/{name}", f"cls/{name[:-3]}", name[-10:], name[-10:-5], "knn 0"):
        assert run_names.find(text, root).path == run.path, text
    with pytest.raises(ValueError, match="'knn_handwritten' matches 3 runs: cls/knn_handwritten-"):
        run_names.find("knn_handwritten", root)
    with pytest.raises(ValueError, match=r"no run under .* is called 'x'; `mimbench status` lists them"):
        run_names.find("x", root)
    with pytest.raises(ValueError, match=rf"did you mean cls/{name}\?"):
        run_names.find(f"{name}x", root)
    assert run_names.find_all([], "mine", root) == made
    for text in (f"cls/{name}", name[:-3], name[-10:]):
        assert run_of(text, []).path == run.path, "mimbench run goes on with what status names"
    with pytest.raises(ValueError, match="did you mean cls/knn_handwritten"):
        run_of("knn_handwritten", [])
    with pytest.raises(ValueError, match="name runs, or a study"):
        run_names.find_all([], None, root)


def test_the_list_says_what_each_is_doing(made: list[RunDir]) -> None:
    number = made[3].begin_attempt()
    made[3].metrics.write_text('{"step": 3, "epoch": 1, "lr": 1, "loss": 0.5}\n')
    found = {row.name: row for row in status.rows(runs_root())}
    assert [found[directory_name(run)].state for run in made] == ["done", "done", "failed", "running"]
    assert found[directory_name(made[1])].text == "knn_top1 41.5"
    assert found[directory_name(made[2])].text == "the data are no good"
    assert found[directory_name(made[1])].label == "knn 0"
    made[3].end_attempt(number, "interrupted")
    assert [row.state for row in status.rows(runs_root())] == ["failed", "interrupted", "done", "done"]
    (made[3].about).write_text("{")
    assert status.rows(runs_root())[1].state == "damaged"


def test_filters_and_formats(made: list[RunDir]) -> None:
    listed = json.loads(mimbench("status", "--state", "done", "--json").stdout)
    assert {line["name"] for line in listed} == {directory_name(run) for run in made[:2]}
    assert listed[0]["studies"] == ["mine"]
    plain = mimbench("status", "--study", "mine").stdout.splitlines()
    assert len(plain) == 4
    assert plain[0].split("\t")[:3] == ["failed", directory_name(made[2]), "knn 1"]
    assert "choose one of running, queued" in mimbench("status", "--state", "odd").stderr
    assert "no runs under" in mimbench("status", "--study", "other").stderr
    assert "mine" in mimbench("status", "--study", "other").stderr


@pytest.mark.parametrize("width", [60, 80, 140])
def test_names_are_never_cut(made: list[RunDir], width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(status.render(status.rows(runs_root()), width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(directory_name(run) in shown for run in made)
    assert "knn_top1 41.5" in shown
    assert max(map(len, shown.splitlines())) <= max(width, 68), "state, name and time"
    assert [line.split()[0] for line in shown.splitlines() if line[:1].strip()] == [
        "state",
        "failed",
        "new",
        "done",
        "done",
    ]


def test_where_there_is_nothing_it_is_said() -> None:
    done = mimbench("status")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"no runs under {runs_root()}\n")
    assert mimbench("status", "--state", "done").stderr == f"no such runs under {runs_root()}\n"
    assert json.loads(mimbench("status", "--json").stdout) == []


def test_names_and_numbers_stand_apart(made: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    made[1].result.write_text(json.dumps({"metrics": {"knn_top1": 1.5, "knn_top1_of_a_very_long_name": 2.0}}))
    show_result(made[1], as_json=False)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "knn_top1                      1.5", "knn_top1_of_a_very_long_name  2",
    ]  # fmt: skip


def test_in_a_pipe_watching_tells_what_changes(made: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    looks = iter((False, False, True))

    def until() -> bool:
        if over := next(looks):
            return over
        made[3].begin_attempt() if made[3].state() == "new" else None
        return over

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status, "REFRESH", 0.01)
        status.watch(runs_root(), None, None, until)
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:] == ["1 failed, 1 new, 2 done", f"running\t{directory_name(made[3])}\tknn 2\t\t", lines[-1]]
    assert lines[-1] == "1 running, 1 failed, 2 done"


def test_watching_shows_the_same_again_and_again(
    made: list[RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status.watch(runs_root(), None, None, until=lambda: True)
    out = capsys.readouterr().out
    assert "the data are no good" in out
    assert "1 failed, 1 new, 2 done" in out


def test_logs_are_followed_to_the_end(made: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    run = made[3]
    with pytest.raises(ValueError, match=r"has no log yet \(state: new\)"):
        status.log_file(run, None)
    run.log.write_text("".join(f"line {number}\n" for number in range(100)))
    with pytest.raises(ValueError, match=r"rank 2 \(available: none"):
        status.log_file(run, 2)
    number = run.begin_attempt()
    code = (
        "import sys, time, json; time.sleep(1); open(sys.argv[1], 'a').write('the end\\n'); time.sleep(3); "
        "a = json.load(open(sys.argv[2])); a['state'] = 'done'; json.dump(a, open(sys.argv[2], 'w'))"
    )
    attempt = run.path / "attempts" / f"{number}.json"
    writer = subprocess.Popen([sys.executable, "-c", code, str(run.log), str(attempt)])
    status.show_log(status.log_file(run, None), run, follow=True, lines=5)
    writer.wait()
    assert capsys.readouterr().out.split("\n") == [*(f"line {number}" for number in range(95, 100)), "the end", ""]


def test_the_last_words_of_a_run_are_not_lost(made: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    run, number = made[3], made[3].begin_attempt()
    run.log.write_text("going on\n")
    file = status.log_file(run, None)
    ends = threading.Timer(0.5, lambda: (_say(run.log, "the very end\n"), run.end_attempt(number, "failed")))
    ends.start()
    status.show_log(file, run, follow=True)
    ends.join()
    assert capsys.readouterr().out == "going on\nthe very end\n"


def _say(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_what_the_shell_completes(made: list[RunDir]) -> None:
    name = made[1].path.name
    assert names.states("fa") == ["failed"]
    assert options.run_names(name[:-2]) == [name]
    assert options.run_names(f"cls/{name[:-2]}") == [f"cls/{name}"]
    assert names.study_names_of_runs("mi") == ["mine"]
    assert "handwritten" in names.data_names("h")
    assert "cls=handwritten" in names.data_of_tasks("cls=h")
    assert "cls=" in names.data_of_tasks("c")
    assert "linear=cls/linear_vitb" in names.protocol_recipes("linear=cls/linear_v")
    assert names.protocol_lists("knn,lin") == ["knn,linear", "knn,linear_fast"]


# ----------------------------------------------------------------------------------------------------- cost and reasons


def _attempt(run: RunDir, state: str, began: float, ended: float | None, gpus: int = 1) -> None:
    folder = run.path / "attempts"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir())) + 1
    about = {"state": state, "started": began, "host": "elsewhere", "pid": 1, "process_started": 0.0, "gpus": gpus}
    (folder / f"{number}.json").write_text(json.dumps(about | ({"ended": ended} if ended else {})))


def test_hours_used_and_to_come() -> None:
    one, two, three, new, longer = (
        Run("cls/linear_handwritten", settings).directory(runs_root())
        for settings in (("seed=0",), ("seed=1",), ("seed=2",), ("seed=3",), ("epochs=180",))
    )
    now = time.time()
    _attempt(one, "interrupted", now - 10000, now - 6400)  # an hour
    _attempt(one, "done", now - 6000, now - 4200)  # and a half
    one.result.write_text(json.dumps({"metrics": {"linear_top1": 1.0}}))
    _attempt(two, "running", now - 3600, None)
    two.metrics.write_text(json.dumps({"step": 9, "epoch": 22.5, "lr": 1, "seconds": 1800.0}) + "\n")  # of 90 epochs
    _attempt(three, "running", now - 7200, None)
    os.utime(three.path / "attempts" / "1.json", (now - 3600,) * 2)  # killed after an hour, as its heartbeat tells
    found = {one.name: one for one in spent.spent(runs_root())}
    used = [found[directory_name(run)].used.gpu for run in (one, two, three, new)]
    assert used == pytest.approx([1.5, 1.0, 1.0, 0.0], abs=0.01)
    left = [found[directory_name(run)].left for run in (one, two, three, new, longer)]
    assert [one.hours for one in left if one] == pytest.approx([0.0, 1.5, 0.5, 1.5, 3.0], abs=0.01)
    assert [one.source for one in left if one][1::2] == ["its speed so far", "a finished run of this recipe"]
    total = json.loads(mimbench("cost", "--json").stdout)
    assert (total["used"], total["left"]) == (pytest.approx(3.5, abs=0.02), pytest.approx(6.5, abs=0.02))
    assert "5 runs: used 3.50 GPU hours; to come: about 6.5 GPU hours" in mimbench("cost").stdout


def test_time_on_a_cpu_is_no_gpu_time(made: list[RunDir]) -> None:
    now = time.time()
    one, two, old = (Run("cls/linear_handwritten", (f"seed={seed}",)).directory(runs_root()) for seed in (0, 1, 2))
    for run, gpus in ((one, 0), (old, 0)):
        _attempt(run, "done", now - 7200, now, gpus)
    file = old.path / "attempts" / "1.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "gpus"}))
    for run, device in ((one, "x"), (old, "AMD EPYC, 2 threads")):
        run.result.write_text(json.dumps({"metrics": {}, "device": device}))
    found = json.loads(mimbench("cost", "--json").stdout)
    assert found["cpu_used"] == pytest.approx(4.0, abs=0.05)
    [new] = [line for line in found["runs"] if line["name"] == directory_name(two)]
    assert (new["left"], new["unit"]) == (pytest.approx(2.0), "CPU")
    assert new["source"] == "2 finished runs of this recipe"
    assert found["used"] < 0.01, "what the fixture took"


def test_what_a_published_recipe_will_cost_is_known_before_it_starts(images: Path, tmp_path: Path) -> None:
    run = Run("pretrain/crossmae_vitb_800ep", (f"data={images}",)).directory(runs_root())
    short = Run("pretrain/crossmae_vitb_800ep", (f"data={images}", "epochs=400")).directory(runs_root())
    found = {one.name: one.left for one in spent.spent(runs_root())}
    whole, half = found[directory_name(run)], found[directory_name(short)]
    assert whole is not None and half is not None
    assert (whole.hours, whole.unit, whole.source) == (180.0, "A100", "the recipe"), (
        "45 h on 4 A100, its docstring says"
    )
    assert 60 < half.hours < 150
    assert half.source == "arithmetic at 65 TFLOP/s"
    lines = mimbench("plan", "crossmae/table1").stdout.splitlines()
    assert any(
        "pretrain/crossmae_vitb_800ep-" in line and "about 180 A100 hours (the recipe)" in line for line in lines
    )
    assert lines[-2].startswith("to come: about ")
    assert " A100 hours" in lines[-2]
    hours = json.loads(mimbench("cost", "--study", "crossmae/table1", "--json").stdout)
    assert hours["used"] == 0
    assert hours["left"] > 1000
    assert hours["runs"][0]["state"] == "new"
    assert mimbench("cost", "--study", "crossmae/table9").exit_code == 1


def test_why_a_run_is_a_run_of_its_own(made: list[RunDir]) -> None:
    root = runs_root()
    other = Run("cls/knn_handwritten", ("seed=1", "temperature=0.1"), PRETRAIN).directory(root)
    Run("cls/linear_handwritten").directory(root)
    found = explain_run(other, root)
    assert found.nearest == made[2]
    assert [(one.key, one.here, one.there) for one in found.differences] == [("temperature", 0.1, 0.07)]
    assert "temperature = 0.1, the other run has 0.07" in mimbench("explain", other.path.name).stdout
    scratch = mimbench("explain", "cls/knn_handwritten", "seed=2")
    assert "not run yet" in scratch.stdout
    identity = made[0].read_about()["identity"]
    assert f"checkpoint = none, the other run has the encoder of run {identity}" in scratch.stdout
    recipe, config = resolve("cls/linear_vitb", [])
    alone = explain_place(place(recipe.name, config, root, strict=False), root)
    assert alone.nearest is not None
    assert alone.nearest.path.name.startswith("linear_handwritten")
    recipe, config = resolve("det/mask_rcnn_handwritten", [])
    assert "no other run of this kind" in explain_place(place(recipe.name, config, root), root).text
    known = json.loads(mimbench("explain", made[1].path.name, "--json").stdout)
    assert known["exists"] is True
    assert [one["key"] for one in known["differences"]] == ["seed"]


def test_sweeps_and_plans_from_the_command_line() -> None:
    done = mimbench("sweep", "cls/knn_handwritten", "temperature=0.05,0.1", "seed=0..2", "--name", "mine")
    assert done.stdout.splitlines()[-1] == "mine: 6 new"
    assert "`mimbench submit mine` starts" in done.stderr
    assert mimbench("plan", "mine", "k=10").stdout.splitlines()[-1] == "mine: 6 new"
    assert "mine" in json.loads(mimbench("studies", "--json").stdout)
    assert "unknown key 'tempature'" in mimbench("sweep", "cls/knn_handwritten", "tempature=1,2").stderr
    assert mimbench("sweep", "cls/knn_handwritten", "tempature=1,2", "--name", "bad").exit_code == 1
    assert "unknown study 'bad'" in mimbench("plan", "bad").stderr, "what cannot be run is not kept"
    for name in ("crossmae/table2", "mine.py"):
        taken = mimbench("sweep", "cls/knn_handwritten", "seed=0,1", "--name", name)
        assert "a ready study" in taken.stderr


def test_on_the_way_and_from_the_middle_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    file.write_bytes(encoder_bytes("weights"))
    counts = json.loads(mimbench("plan", "mae/linear", "--at", "every=400", "--json").stdout)["counts"]
    assert counts == {"new": 3 + 3 * 4}
    started = mimbench("plan", "mae/linear", "--from", f"MAE ViT-B={file}", "--json")
    assert json.loads(started.stdout)["counts"] == {"new": 5}
    assert "is not every=N" in mimbench("plan", "mae/linear", "--at", "100").stderr
    assert "a pretraining of study mae/linear: 'MAE ViT-B', " in mimbench("plan", "mae/linear", "--from", "x=y").stderr

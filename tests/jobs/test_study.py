"""Studies: lists of runs that can be checked before any of them starts."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch

from mimbench.backbones.config import SIZES, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run import rundir
from mimbench.jobs.cli import pretraining
from mimbench.jobs.demo import EVALUATIONS, Method, demo
from mimbench.jobs.runs.store import config_of, runs_root
from mimbench.jobs.studies.plan import plan
from mimbench.jobs.studies.study import Run, Study, at_epochs, overridden, start_from
from mimbench.jobs.studies.study_registry import members
from mimbench.jobs.studies.submit import prepared
from tests.jobs.encoder_file import encoder_bytes


def test_a_need_must_be_listed() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    probe = Run("cls/knn_handwritten", checkpoint=pretrain)
    assert probe.need == pretrain
    with pytest.raises(ValueError, match="needs pretrain/crossmae_handwritten, which is not listed"):
        Study("s", [probe])
    Study("s", [probe, pretrain]).check()


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        Study("s", [Run("cls/knn"), Run("cls/knn")])


def test_a_mistake_in_the_last_run_shows_at_once() -> None:
    with pytest.raises(ValueError, match="unknown key 'sed'"):
        Study("s", [Run("cls/knn"), Run("cls/knn", ("sed=3",))]).check()
    with pytest.raises(ValueError, match="only MaskAlign uses a checkpoint"):
        first = Run("pretrain/crossmae_handwritten")
        Study("s", [first, Run("pretrain/crossmae_handwritten", ("seed=1",), checkpoint=first)]).check()


def test_a_run_starts_from_what_the_run_before_it_made() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    probe = Run("cls/knn_handwritten", checkpoint=pretrain)
    made, before = pretrain.directory(runs_root()), probe.directory(runs_root())
    assert config_of(before).checkpoint == str(made.encoder.absolute())
    identity = made.read_about()["identity"]
    assert before.read_about()["checkpoint"] == {"path": str(made.encoder), "hash": None, "run": identity}
    assert before.read_about()["needs"] == [f"pretrain/{made.path.name}"]
    made.encoder.write_bytes(encoder_bytes("weights"))
    assert probe.directory(runs_root()) == before, "its place was known before the encoder was there"
    by_file = Run("cls/knn_handwritten", checkpoint=made.encoder)
    by_directory = Run("cls/knn_handwritten", checkpoint=made.path)
    assert by_file.directory(runs_root()) == by_directory.directory(runs_root()) == before
    other = Run("pretrain/crossmae_handwritten", ("seed=1",))
    assert Run("cls/knn_handwritten", checkpoint=other).directory(runs_root()) != before


def test_an_encoder_of_an_epoch_on_the_way_is_another() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    made = pretrain.directory(runs_root())
    last, early = (Run("cls/knn_handwritten", checkpoint=pretrain, epoch=epoch) for epoch in (None, 5))
    run = early.directory(runs_root())
    assert run != last.directory(runs_root())
    assert config_of(run).checkpoint == str(made.path / "encoders" / "epoch-0005.safetensors")
    made.encoder_at(5).parent.mkdir()
    made.encoder_at(5).write_bytes(encoder_bytes("early weights"))
    assert Run("cls/knn_handwritten", checkpoint=made.encoder_at(5)).directory(runs_root()) == run
    with pytest.raises(ValueError, match="epoch=5 needs a checkpoint from another run"):
        Run("cls/knn_handwritten", epoch=5)


def test_needs_of_all_kinds_and_no_circles() -> None:
    first, second = Run("pretrain/crossmae_handwritten"), Run("pretrain/mae_handwritten", label="second")
    probe = Run("cls/knn_handwritten", checkpoint=first, after=("second", first))
    study = Study("s", [probe, first, second])
    assert study.needs(probe) == (first, second)
    assert list(study.ordered())[-1] == probe
    about = study.places(runs_root())[probe].about
    assert [need.partition("_")[0] for need in about["needs"]] == ["pretrain/crossmae", "pretrain/mae"]
    with pytest.raises(ValueError, match="needs third, which is not listed"):
        Study("s", [Run("cls/knn", after=("third",))])
    one, two = Run("cls/knn", label="one", after=("two",)), Run("cls/linear_vitb", label="two", after=("one",))
    with pytest.raises(ValueError, match=r"study s: (one needs two|two needs one) needs (one|two) is a circle"):
        Study("s", [one, two])


def test_a_full_disk_leaves_no_directory_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Run("cls/knn_handwritten").directory(runs_root())
    study = Study("s", [Run("cls/knn_handwritten", (f"seed={seed}",)) for seed in range(4)])
    assert study.places(runs_root())[study.runs[0]].run == kept
    real, left = rundir.write_json, [2]

    def full(path: Path, value: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, value)

    monkeypatch.setattr(rundir, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        study.prepare(runs_root())
    assert [path.name for path in (runs_root() / "cls").iterdir()] == [kept.path.name]
    monkeypatch.undo()


def test_a_really_full_disk_leaves_none_either(tmp_path: Path) -> None:
    """A file system with room for some twenty files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        study = Study("s", [Run("cls/knn_handwritten", (f"seed={seed}",)) for seed in range(9)])
        with pytest.raises(OSError, match="No space left on device"):
            study.prepare(disk / "runs")
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        assert not list(disk.glob("runs/*/*"))
        subprocess.run(["mount", "-o", "remount,nr_inodes=200", str(disk)], check=True)
        assert len(study.prepare(disk / "runs")) == 9
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_evaluations_on_the_way_are_runs_of_their_own() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    study = Study("s", [pretrain, Run("cls/knn_handwritten", checkpoint=pretrain, label="knn"), Run("cls/knn")])
    longer = at_epochs(study, 2)
    longer.check()
    assert [(run.name, run.epoch) for run in longer.runs] == [
        ("pretrain/crossmae_handwritten", None),
        ("knn", None),
        ("knn, epoch 2", 2),
        ("knn, epoch 4", 4),
        ("cls/knn", None),
    ]
    assert longer.runs[0].overrides == ("keep_encoder_every=2",)
    assert len({run.place(runs_root()).run.path for run in longer.runs[:4]}) == 4
    assert pretrain.place(runs_root()).run == longer.runs[0].place(runs_root()).run, "what it keeps is no science"
    with pytest.raises(ValueError, match="choose fewer epochs"):
        at_epochs(study, 100)


def test_a_study_can_start_in_the_middle(tmp_path: Path) -> None:
    pretrain = Run("pretrain/crossmae_handwritten", label="a")
    probe = Run("cls/knn_handwritten", checkpoint=pretrain, label="knn")
    study = start_from(Study("s", [pretrain, probe]), ["pretrained=/x/file.pth"])
    assert [(run.name, run.checkpoint) for run in study.runs] == [("knn", Path("/x/file.pth"))]
    other = Run("pretrain/mae_handwritten", label="b")
    both = Study("s", [pretrain, probe, other, Run("cls/knn_handwritten", checkpoint=other, after=("a",))])
    assert [run.checkpoint for run in start_from(both, ["a=/x/a.pth"]).runs] == [Path("/x/a.pth"), None, other]
    with pytest.raises(ValueError, match="is not NAME=FILE with a pretraining of study s: 'a', 'b'"):
        start_from(both, ["pretrained=/x/a.pth"])


def test_a_checkpoint_of_another_size_cannot_stand_in_for_a_pretraining(tmp_path: Path) -> None:
    pretrain = Run("pretrain/mae_vitb_800ep")
    study = Study("s", [pretrain, Run("cls/finetune_vitb", checkpoint=pretrain)])
    files = {letter: tmp_path / f"{letter}.safetensors" for letter in "SB"}
    for letter, file in files.items():
        file.write_bytes(encoder_bytes("weights", SIZES[letter]))
    assert [run.checkpoint for run in start_from(study, [f"pretrained={files['B']}"]).runs] == [files["B"]]
    with pytest.raises(ValueError, match="holds a ViT-S, but the recipes of this study are for a ViT-B"):
        start_from(study, [f"pretrained={files['S']}"])
    theirs = tmp_path / "theirs.pth"
    torch.save(VisionTransformer(ViT(64, 2, 1, 8, 32)).state_dict(), theirs)
    with pytest.raises(ValueError, match="holds an encoder of width 64 and depth 2"):
        start_from(study, [f"pretrained={theirs}"])


def test_what_starts_in_the_middle_keeps_what_comes_after() -> None:
    """A teacher from a file: its student, the student's probe, and what waits for that probe are still a study."""
    teachers = [Run("pretrain/crossmae_handwritten", (f"seed={seed}",)) for seed in (0, 1)]
    student = Run("pretrain/maskalign_handwritten", checkpoint=teachers[0], after=(teachers[1],))
    probe = Run("cls/knn_handwritten", checkpoint=student)
    last = Run("cls/knn_handwritten", checkpoint=teachers[1], label="last", after=(probe,))
    study = Study("s", [*teachers, student, probe, last])
    given = start_from(study, ["pretrain/crossmae_handwritten seed=0=/x/a=b.pth"])
    assert [run.name for run in given.runs] == [run.name for run in study.runs[1:]]
    assert given.runs[1].checkpoint == Path("/x/a=b.pth")
    assert given.runs[2].need == given.runs[1]
    assert given.needs(given.runs[3]) == (given.runs[0], given.runs[2])
    with pytest.raises(ValueError, match="a pretraining of study s: 'pretrain/crossmae_handwritten seed=0', "):
        start_from(study, ["pretrain/crossmae_handwritten=/x/a.pth"])


def test_overrides_of_a_whole_study_go_to_who_has_the_key() -> None:
    pretrain = Run("pretrain/crossmae_handwritten")
    study = Study("s", [pretrain, Run("cls/linear_handwritten", checkpoint=pretrain, label="linear")])
    changed = overridden(study, ["seed=3", "cls.epochs=7", "method.depth=2"])
    assert changed.runs[0].overrides == ("seed=3", "method.depth=2")
    assert changed.runs[1].overrides == ("seed=3", "epochs=7")
    assert changed.needs(changed.runs[1]) == (changed.runs[0],)
    with pytest.raises(ValueError, match=r"det\.seed=1: no run of study s has this key"):
        overridden(study, ["det.seed=1"])


def test_a_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    file = tmp_path / "an encoder = none.pth"
    file.write_bytes(encoder_bytes("weights"))
    run = Run("cls/knn_handwritten", checkpoint=file)
    assert run.need is None
    assert config_of(run.directory(runs_root())).checkpoint == str(file)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_demo_evaluates_pretrained_and_scratch_alike(method: Method) -> None:
    study = demo(method=method)
    study.check()
    teachers = int(method == "maskalign")
    assert len(study.runs) == teachers + 1 + 2 * len(EVALUATIONS)
    for recipe, *_ in EVALUATIONS:
        starts = {run.need.recipe if run.need else None for run in study.runs if run.recipe == recipe}
        assert starts == {None, f"pretrain/{method}_handwritten"}
    assert len({run.name for run in demo(3, method).runs}) == 3 * len(study.runs)


def test_maskalign_is_taught_by_the_encoder_pretrained_before_it() -> None:
    teacher, student, *_ = demo(method="maskalign").runs
    assert (student.need, teacher.recipe) == (teacher, "pretrain/crossmae_handwritten")


def test_the_command_knows_every_method_of_the_demo() -> None:
    """The command line repeats them, so as not to import the demo for its help."""
    hint = inspect.signature(pretraining.demo).parameters["method"].annotation
    assert all(f"'{method}'" in hint for method in get_args(Method))


def test_runs_of_one_name_are_told_apart() -> None:
    """A sweep without labels: each run has a title of its own, which says what is its own."""
    pretrain = [Run("pretrain/crossmae_handwritten", ("epochs=3", f"seed={seed}")) for seed in (0, 1)]
    probes = [Run("cls/knn_handwritten", (f"temperature={t}",), run) for run in pretrain for t in (0.05, 0.1)]
    study = Study("s", [*pretrain, *probes, Run("cls/knn_handwritten", label="alone")])
    first = "pretrain/crossmae_handwritten seed=0"
    assert list(study.titles.values()).count(first) == 1
    assert study.titles[probes[1]] == f"cls/knn_handwritten temperature=0.1 of {first}"
    assert study.titles[study.runs[-1]] == "alone"
    assert len(set(study.titles.values())) == len(study.runs)
    assert {line.name for line in plan(study, runs_root()).lines} == set(study.titles.values())
    with pytest.raises(ValueError, match="needs pretrain/crossmae_handwritten, which matches 2 runs"):
        Study("s", [*pretrain, Run("cls/knn_handwritten", after=("pretrain/crossmae_handwritten",))])


def test_every_run_of_a_study_is_noted_also_those_of_one_name() -> None:
    study = Study("s", [Run("cls/knn_handwritten", (f"seed={seed}",)) for seed in range(3)])
    prepared(study, runs_root())
    assert sorted(members(runs_root(), "s").values()) == [f"cls/knn_handwritten seed={seed}" for seed in range(3)]
    assert plan(Study("s", study.runs[:1]), runs_root()).counts == {"new": 1, "orphaned": 2}

"""Which directory a config belongs to."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from mimbench.backbones.checkpoints.huggingface.folder import shown_name
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.data.datasets import add
from mimbench.engine.run.config import to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.recipes import Recipe, recipes
from mimbench.jobs.runs.records import groups_of, science_of
from mimbench.jobs.runs.store import config_of, create_or_find, encoder_file, resolve, runs_root
from tests.jobs.encoder_file import encoder_bytes


def _run(*overrides: str, recipe: str = "cls/knn") -> RunDir:
    found, config = resolve(recipe, overrides)
    return create_or_find(found.name, config, runs_root())


def test_the_same_science_is_the_same_directory(images: Path) -> None:
    run = _run(f"data={images}")
    assert run.path.parent == runs_root() / "cls"
    assert run.path.name == f"knn-{run.read_about()['identity']}"
    assert _run(f"data={images}", "compute.workers=0", "eval_batch=7").path == run.path
    assert _run(f"data={images}", "k=10").path != run.path
    assert _run(f"data={images}", "seed=1").path != run.path


def test_the_last_asking_decides_what_is_not_science(images: Path) -> None:
    run = _run(f"data={images}")
    _run(f"data={images}", "compute.workers=0")
    assert config_of(run).compute.workers == 0
    number = run.begin_attempt()
    _run(f"data={images}", "compute.workers=5")
    assert config_of(run).compute.workers == 0, "not under a run that is running"
    run.end_attempt(number, "failed")
    run.result.write_text("{}")
    _run(f"data={images}", "compute.workers=5")
    assert config_of(run).compute.workers == 0, "nor of one that is done"


def test_what_it_writes_down_can_be_run_again(images: Path) -> None:
    run = _run(f"data={images}", "temperature=0.1")
    about = run.read_about()
    assert (about["recipe"], about["stage"], about["config"], about["checkpoint"]) == ("cls/knn", "cls", "Knn", None)
    assert create_or_find(about["recipe"], config_of(run), runs_root()).path == run.path


def test_a_relative_path_of_data_is_made_absolute(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    here = _run(f"data={images.name}")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / images.name / "cat").mkdir(parents=True)
    (elsewhere / images.name / "cat" / "1.jpg").write_bytes(b"a cat")
    monkeypatch.chdir(elsewhere)
    assert _run(f"data={images.name}").path != here.path
    assert _run(f"data={images}").path == here.path
    assert config_of(here).data == str(images)


def test_a_named_data_set_keeps_its_name(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("mine", images)
    assert config_of(_run("data=mine")).data == "mine"
    monkeypatch.setenv("MIMBENCH_DATA_OF_THIS_SHELL", str(images))
    assert config_of(_run("data=of-this-shell")).data == "of-this-shell"
    assert config_of(_run("data=handwritten", recipe="cls/knn_handwritten")).data == "handwritten"


def test_data_that_are_not_there_leave_nothing_behind() -> None:
    with pytest.raises(FileNotFoundError, match="data=/no/such"):
        _run("data=/no/such")
    assert not runs_root().exists()


def test_a_checkpoint_counts_by_its_content(images: Path, tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.pth", "two.pth", "other.pth"))
    for file, content in ((one, "weights"), (two, "weights"), (other, "other weights")):
        file.write_bytes(encoder_bytes(content))
    run = _run(f"data={images}", f"checkpoint={one}")
    assert _run(f"data={images}", f"checkpoint={two}").path == run.path
    assert _run(f"data={images}", f"checkpoint={other}").path != run.path
    assert _run(f"data={images}").path != run.path
    assert run.read_about()["checkpoint"]["path"] == str(one)
    assert len(run.read_about()["checkpoint"]["hash"]) == 64


def test_the_config_says_which_sizes_are_not_used(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    file.write_bytes(encoder_bytes("weights"))
    used, unused = _run(f"data={images}"), _run(f"data={images}", f"checkpoint={file}")
    assert "encoder.width = 768\n" in used.config.read_text()
    assert "encoder.width = 768  # not used: the checkpoint has its own sizes\n" in unused.config.read_text()
    assert config_of(unused).encoder == config_of(used).encoder
    assert science_of(unused.config.read_text(), unused.read_about())["encoder.width"] == 768
    assert create_or_find("cls/knn", config_of(unused), runs_root()).path == unused.path


def test_a_copy_in_a_file_is_part_of_the_checkpoint(images: Path, tmp_path: Path) -> None:
    state, vit = VisionTransformer(ViT(64, 1, 1, 8, 16)).state_dict(), tmp_path / "vit.pth"
    torch.save({"model": state, "model_ema": {key: value + 1 for key, value in state.items()}}, vit)
    run, averaged = (_run(f"data={images}", f"checkpoint={text}") for text in (vit, f"file://{vit}?copy=ema"))
    assert averaged.path != run.path
    assert config_of(averaged).checkpoint == f"{vit}?copy=ema"
    assert _run(f"data={images}", f"checkpoint=file://{vit}").path == run.path


def test_what_is_no_encoder_makes_no_run(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.pth"
    file.write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"page\.pth is a web page"):
        _run(f"data={images}", f"checkpoint={file}")
    with pytest.raises(ValueError, match="downloads nothing"):
        _run(f"data={images}", "checkpoint=https://example.org/vit.pth")
    assert not runs_root().exists()


def test_a_run_directory_stands_for_its_encoder(knn: RunDir, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"\(state: new\) has not written an encoder"):
        encoder_file(knn.path)
    knn.encoder.write_bytes(encoder_bytes("weights"))
    monkeypatch.chdir(knn.path.parent)
    assert encoder_file(Path(knn.path.name)) == knn.encoder
    name = knn.path.name
    for text in (str(knn.path), name, f"cls/{name}", name[-10:], f"cls/{name}?copy=ema"):
        monkeypatch.chdir(images)
        copy = "?copy=ema" if "?" in text else ""
        assert str(encoder_file(Path(text))) == f"{knn.encoder}{copy}"
        run = _run(f"data={images}", f"checkpoint={text.partition('?')[0]}")
        assert config_of(run).checkpoint == str(knn.encoder)
    with pytest.raises(FileNotFoundError, match=rf"checkpoint {name}x does not exist, and no run .* did you mean cls/"):
        encoder_file(Path(f"{name}x"))


def test_a_run_that_has_no_encoder_any_more_says_so(knn: RunDir) -> None:
    knn.result.write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a run of cls/knn, which saves no weights"):
        encoder_file(knn.path)
    knn.about.write_text(knn.about.read_text().replace("cls/knn", "pretrain/crossmae_vitb_800ep"))
    with pytest.raises(FileNotFoundError, match="the file was removed; `mimbench retry --anew "):
        encoder_file(knn.path)


def test_a_checkpoint_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encoder_file(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        encoder_file(tmp_path)


def test_mistakes_name_the_recipe() -> None:
    with pytest.raises(ValueError, match="cls/knn: unknown key 'tempature'; did you mean temperature"):
        resolve("cls/knn", ["tempature=1"])
    with pytest.raises(ValueError, match=r"cls/knn: k=7 must be one of neighbours=\[10, 20, 100, 200\]"):
        resolve("cls/knn", ["k=7"])
    with pytest.raises(ValueError, match=r"checkpoint=encoder.safetensors: method.kind=crossmae starts from random"):
        resolve("pretrain/crossmae_vitb_800ep", [], Path("encoder.safetensors"))


def test_a_damaged_run_directory_says_what_is_wrong(knn: RunDir) -> None:
    knn.config.write_text("k = ")
    with pytest.raises(ValueError, match=r"config.txt is not a config file"):
        config_of(knn)
    knn.config.unlink()
    with pytest.raises(ValueError, match=r"config.txt cannot be read: No such file"):
        config_of(knn)
    about = json.loads(knn.about.read_text())
    knn.about.write_text(json.dumps({**about, "config": "Gone"}))
    with pytest.raises(ValueError, match="another version of mimbench"):
        config_of(knn)


def test_a_root_that_cannot_be_written_is_an_oserror(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMBENCH_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError) as caught:
        _run(f"data={images}")
    assert caught.value.errno == errno.ENOTDIR


def test_run_json_says_which_settings_are_science(images: Path) -> None:
    recipe, config = resolve("cls/knn", [f"data={images}", "compute.workers=0"])
    run = create_or_find(recipe.name, config, runs_root())
    groups = run.read_about()["groups"]
    assert "compute.workers" in groups["speed"]
    assert "compute.log_every" in groups["plumbing"]
    text = run.config.read_text()
    science = science_of(text, run.read_about())
    assert not science.keys() & {*groups["speed"], *groups["plumbing"]}
    assert science == science_of(text, {}), "an older run.json has no groups: the comments in config.txt say the same"
    assert science_of(text.replace("  # speed", ""), run.read_about()) == science, "comments are for people"


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_groups_and_comments_agree_in_every_recipe(recipe: Recipe) -> None:
    config = recipe.build()
    text = to_text(config)
    assert science_of(text, {"groups": groups_of(config)}) == science_of(text, {})


def test_a_folder_of_transformers_stands_for_its_weights(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).touch()
        assert encoder_file(tmp_path) == tmp_path / name
        assert shown_name(tmp_path / name) == tmp_path.name
    assert str(encoder_file(Path(f"file://{tmp_path}?copy=ema"))) == f"{tmp_path / name}?copy=ema"

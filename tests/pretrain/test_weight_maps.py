"""Weight maps: their file, whose they are, when they are made, and that no kill and no second process changes them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import default_collate

from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.images import Crop, ImageFolder, Sample, normalise
from mimbench.engine.run import process
from mimbench.engine.run.config import to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.pretrain.config import AttentionMasking, CrossMAEConfig, Pretrain, SimMIMConfig
from mimbench.pretrain.masking.attention import class_attention, follow_crops, weight_map
from mimbench.pretrain.masking.attention_guide import AttentionGuide, WholeImages
from mimbench.pretrain.masking.weight_maps import Subject, WeightMaps
from mimbench.pretrain.run import build_step, run, training, training_batches
from mimbench.pretrain.step import Weighed
from tests.pretrain.killed_amt import CONFIG, images

PROGRAM = Path(__file__).with_name("killed_amt.py")
ROOT = PROGRAM.parent.parent.parent
SUBJECT = Subject(images=10, rows=4, columns=4, names="abc")


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    """The tiny config of killed_amt.py on its images."""
    return replace(CONFIG, data=str(images(tmp_path / "images")))


def directory(path: Path, config: Pretrain) -> RunDir:
    about = {"recipe": "pretrain/amt", "stage": "pretrain", "identity": "0", "checkpoint": None}
    return RunDir.create(path, to_text(config), about)


def made(path: Path, subject: Subject = SUBJECT, epoch: int = 41) -> tuple[WeightMaps, Tensor]:
    maps = WeightMaps(path, subject, "AMT")
    values = torch.rand(subject.images, subject.rows, subject.columns, generator=torch.Generator().manual_seed(0))
    maps.write(epoch, values.split(3))
    return maps, values


# ------------------------------------------------------------------------------------------------------------- the file


def test_maps_are_found_by_the_number_of_their_image(tmp_path: Path) -> None:
    maps, values = made(tmp_path)
    index = torch.tensor([7, 0, 7, 9])
    assert maps[index].dtype == torch.float32
    assert torch.allclose(maps[index], values[index], rtol=1 / 2048, atol=1e-6)  # as float16 keeps them
    again = WeightMaps(tmp_path, SUBJECT, "AMT")
    again.load_state_dict(maps.state_dict())
    assert again.epoch == 41
    assert torch.equal(again[torch.arange(10)], maps[torch.arange(10)])


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    made(tmp_path)
    with safe_open(tmp_path / "epoch-00041.safetensors", framework="pt") as file:
        assert file.get_tensor("maps").shape == (10, 4, 4)
        about = json.loads(file.metadata()["mimbench"])
    assert about == {
        "schema": 1, "epoch": 41, "made_by": "AMT", "images": 10, "rows": 4, "columns": 4, "names": "abc",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (replace(SUBJECT, names="other"), "as many, but other images"),
        (replace(SUBJECT, images=9), "holds weight maps of 10 images on a grid of 4 x 4, but this run has 9 on 4 x 4"),
        (replace(SUBJECT, rows=5, columns=5), "this run has 10 on 5 x 5"),
    ],
)
def test_maps_of_other_images_or_another_grid_are_refused(tmp_path: Path, subject: Subject, message: str) -> None:
    made(tmp_path)
    with pytest.raises(ValueError, match=message):
        WeightMaps(tmp_path, subject, "AMT").load_state_dict({"epoch": 41})


@pytest.mark.parametrize("left", [0, 5, 3000, 4200])
def test_a_damaged_file_is_named(tmp_path: Path, left: int) -> None:
    made(tmp_path)
    path = tmp_path / "epoch-00041.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"epoch-00041.safetensors is damaged"):
        WeightMaps(tmp_path, SUBJECT, "AMT").use(41)


def test_a_file_that_is_gone_is_said_and_none_are_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    maps = WeightMaps(tmp_path, SUBJECT, "AMT")
    maps.load_state_dict({"epoch": 81})
    assert maps.epoch is None
    assert "epoch-00081.safetensors do not exist" in caplog.text


def test_making_maps_that_stops_leaves_the_ones_before(tmp_path: Path) -> None:
    maps, values = made(tmp_path)

    def stopping() -> Iterator[Tensor]:
        yield values[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maps.write(81, stopping())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00041.safetensors"]
    assert maps.epoch == 41


def test_only_maps_that_no_checkpoint_can_ask_for_are_deleted(tmp_path: Path) -> None:
    for epoch in (41, 81, 121):
        maps, _ = made(tmp_path, epoch=epoch)
    (tmp_path / "notes.txt").touch()
    maps.prune(None)
    maps.prune(81)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-00081.safetensors", "epoch-00121.safetensors", "notes.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3, 7, 16])
def test_processes_share_the_images_in_order(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, found = WeightMaps(tmp_path, SUBJECT, "AMT"), []
    for rank in range(world):
        monkeypatch.setattr(process, "rank_and_world", lambda rank=rank: (rank, world))
        found += list(maps.share())
    assert found == list(range(10))


def test_images_are_known_by_their_names_wherever_they_lie(tmp_path: Path) -> None:
    subject = Subject.of(ImageFolder(images(tmp_path / "here"), "train"), (4, 4))
    assert subject.images == 12
    (tmp_path / "here").rename(tmp_path / "there")
    assert Subject.of(ImageFolder(tmp_path / "there", "train"), (4, 4)) == subject
    (tmp_path / "there" / "train" / "cat" / "3.png").rename(tmp_path / "there" / "train" / "cat" / "33.png")
    assert Subject.of(ImageFolder(tmp_path / "there", "train"), (4, 4)).names != subject.names


# ------------------------------------------------------------------------------------------------------------ the guide


def guide_of(config: Pretrain, path: Path) -> tuple[AttentionGuide, Any]:
    folder = ImageFolder(config.data, "train")
    step = build_step(config)
    guide = AttentionGuide(config, directory(path, config), step, folder)
    return guide, training_batches(config, folder, guide)


def test_maps_are_the_encoders_attention_to_whole_images_in_order(tmp_path: Path, config: Pretrain) -> None:
    guide, batches = guide_of(config, tmp_path / "run")
    guide.before_step(3, batches)
    whole = WholeImages(guide.folder, range(12), 16)
    method = guide.step.method
    with torch.no_grad():
        for index in (0, 4, 11):
            expected = weight_map(class_attention(method, normalise(whole[index][None])))
            assert torch.allclose(guide.maps[torch.tensor([index])].flatten(1), expected, rtol=1e-3, atol=1e-4)
    assert method.training


def test_maps_are_made_when_the_schedule_says(
    tmp_path: Path, config: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, batches = guide_of(config, tmp_path / "run")
    renewed: list[tuple[int, int]] = []

    def renew(epoch: int, *_: Any) -> None:
        renewed.append((step, epoch))
        guide.maps.epoch = epoch

    monkeypatch.setattr(guide, "_renew", renew)
    for step in range(18):
        guide.before_step(step, batches)
    assert renewed == [(3, 1), (9, 3), (15, 5)]
    guide.maps.epoch, renewed[:] = None, []  # an attempt that resumes in an epoch whose maps are gone
    step = 10
    guide.before_step(step, batches)
    assert renewed == [(10, 3)]


def test_batches_get_the_weights_of_their_crops_the_moment_they_are_taken(tmp_path: Path, config: Pretrain) -> None:
    guide, batches = guide_of(config, tmp_path / "run")
    taken = batches.starting_at(0)
    assert isinstance(next(taken), Sample)
    values = torch.rand(12, 4, 4, generator=torch.Generator().manual_seed(0))
    guide.maps.write(1, [values])
    batch = next(taken)
    assert isinstance(batch, Weighed)
    crops = follow_crops(values.half().float()[batch.sample.place], batch.sample.crop)
    assert torch.equal(batch.weights, crops)
    guide.maps.write(3, [values.flip(0)])
    assert not torch.equal(next(taken).weights.sum(), crops.sum())


def test_what_is_attended_to_is_predicted_wherever_a_crop_has_it(tmp_path: Path, config: Pretrain) -> None:
    """End to end, with noise that leaves the draw to the weights: lookup, crop, mirroring, draw."""
    guide, _ = guide_of(replace(config, masking=AttentionMasking(mask_ratio=0.07, start_epoch=0)), tmp_path / "run")
    spot = torch.zeros(12, 4, 4)
    spot[8, 1, 2] = 1  # of an image of 20 x 24 pixels: rows 5 to 10, columns 12 to 18
    guide.maps.write(0, [spot])
    # the whole image; and rows 4 to 14, columns 8 to 20, mirrored: there the spot is in rows 1 to 6, columns 2 to 8
    crop = Crop(*(torch.tensor(values) for values in ([0, 4], [0, 8], [20, 10], [24, 12], [0, 1], [20, 20], [24, 24])))
    noise, images = torch.full((2, 16), 0.5), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    weighed = guide.weigh(Sample(images, torch.zeros(2), torch.tensor([8, 8]), crop, noise))  # type: ignore[arg-type]
    assert isinstance(weighed, Weighed)
    masked, _ = guide.step.choose(images.float(), noise, weighed.weights, 0.0)
    assert masked.predicted.tolist() == [[4 + 2], [4 + 1]]


def test_an_image_that_cannot_be_decoded_does_not_stop_a_renewal(tmp_path: Path, config: Pretrain) -> None:
    folder = ImageFolder(config.data, "train", cache=False)
    broken = folder.paths[5]
    broken.write_bytes(b"no image")
    whole = WholeImages(folder, range(3, 9), 16)
    assert whole[2].unique().tolist() == [0]
    assert default_collate([whole[index] for index in range(6)]).shape == (6, 3, 16, 16)
    with pytest.raises(UnfitError):
        folder[5]


def test_whole_images_are_pillows_where_the_images_are(config: Pretrain) -> None:
    folder = ImageFolder(config.data, "train", cache=False, decoder="pil")
    for index in (0, 7):
        with Image.open(folder.paths[index]) as image:
            expected = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BILINEAR)))
        assert torch.equal(WholeImages(folder, range(12), 16)[index], expected.permute(2, 0, 1))


@pytest.mark.parametrize("crop_mode", ["correct", "original"])
def test_any_method_runs_with_attention(tmp_path: Path, config: Pretrain, crop_mode: Any) -> None:
    """CrossMAE and SimMIM; MAE is what the killed runs are of. Also: the picture shows the weights."""
    methods = {"correct": CrossMAEConfig(depth=1, width=16, heads=2), "original": SimMIMConfig(positions="absolute")}
    config = replace(
        config, epochs=2, method=methods[crop_mode], masking=AttentionMasking(crop_mode=crop_mode, start_epoch=1)
    )
    outcome = run(config, directory(tmp_path / "run", config))
    assert 0 < outcome.metrics["loss"] < 10
    assert outcome.facts["masked_by"] == "AMT"
    assert "caveat" not in outcome.facts
    assert (tmp_path / "run" / "weight_maps" / "epoch-00001.safetensors").is_file()


def test_a_run_with_frequencies_says_that_it_is_unverified(
    tmp_path: Path, config: Pretrain, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, epochs=2, masking=AttentionMasking(freq_mode="lowpass_energy", start_epoch=1))
    with caplog.at_level(logging.WARNING):
        outcome = run(config, directory(tmp_path / "run", config))
    assert "freq_mode=lowpass_energy is our unverified reconstruction" in caplog.text
    assert outcome.facts["masked_by"] == "FAMT-style (lowpass_energy, unverified)"
    assert outcome.facts["caveat"] == "FAMT-style, frequencies unverified"
    with safe_open(tmp_path / "run" / "weight_maps" / "epoch-00001.safetensors", framework="pt") as file:
        assert "unverified" in json.loads(file.metadata()["mimbench"])["made_by"]


def test_maps_are_part_of_a_checkpoint(tmp_path: Path, config: Pretrain) -> None:
    guide, batches = guide_of(config, tmp_path / "run")
    made = training(config, guide.step, batches, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), guide)
    assert made.extra_state == {"weight_maps": guide.maps}


def test_a_run_whose_images_are_others_by_now_says_so_and_nothing_else(tmp_path: Path, config: Pretrain) -> None:
    where = directory(tmp_path / "run", replace(config, epochs=3))
    run(replace(config, epochs=3), where)
    newest = sorted(where.checkpoints.glob("step-*.pt"))[-1]
    newest.unlink()
    image = Path(config.data) / "train" / "cat" / "3.png"
    image.rename(image.with_name("33.png"))
    expected = (
        r"^\S*epoch-00001.safetensors holds .* as many, but other images: delete \S*weight_maps to compute them again"
    )
    with pytest.raises(ValueError, match=expected):
        run(replace(config, epochs=3), where)


@pytest.mark.slow
def test_killed_at_any_moment_and_shared_by_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout)
    whole, two = outcomes.pop("never"), outcomes.pop("two processes")
    assert len(outcomes) == 7
    assert whole["kills"] == 0
    for moment, outcome in outcomes.items():
        assert outcome.pop("kills") == 1, moment
        assert outcome == {name: whole[name] for name in outcome}, moment
        assert outcome["stale"] == [], moment
    assert list(whole["maps"]) == ["epoch-00003.safetensors", "epoch-00005.safetensors"]
    for name, values in whole["maps"].items():
        assert two["maps"][name] == pytest.approx(values, abs=2e-3)
    for one, other in zip(whole["lines"], two["lines"], strict=True):
        assert other == pytest.approx(one, rel=1e-3)

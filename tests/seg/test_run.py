"""Whole segmentation runs, small: from label maps and an encoder to metrics, pictures and a file that runs again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import Compute, from_text, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.state import load_state, newest_valid
from mimbench.seg.config import (
    Augment,
    Backbone,
    Heads,
    Inference,
    LinearSegmentationConfig,
    PatchKnnConfig,
    PatchLogisticConfig,
    Segmentation,
    UPerNetConfig,
)
from mimbench.seg.data.split import open_split
from mimbench.seg.evaluation.bootstrap import counts, intervals, miou
from mimbench.seg.evaluation.draw import draw_confusion, draw_segmentations
from mimbench.seg.evaluation.metric import Confusion
from mimbench.seg.run import run
from mimbench.seg.upernet import SEGMENTER
from tests.kills import die, forked, killed
from tests.ranks import as_ranks

ENCODER = ViT(32, 4, 2, patch=8, image=32)
SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=1, save_every=2)
AUGMENT = Augment(long=256, short=48, smallest=0.75, largest=1.5)
UPERNET = UPerNetConfig(
    data="x",
    encoder=ENCODER,
    backbone=Backbone(drop_path=0.1),
    heads=Heads(channels=16, aux_channels=16),
    augment=AUGMENT,
    inference=Inference(long=256, short=48),
    image=32,
    steps=4,
    batch=4,
    lr=1e-3,
    warmup=2,
    shown=2,
    compute=SMALL,
)
LINEAR = LinearSegmentationConfig(
    data="x", encoder=ENCODER, augment=AUGMENT, inference=UPERNET.inference, image=32, steps=4, batch=4, warmup=2,
    shown=2, compute=SMALL,
)  # fmt: skip
CACHED = replace(LINEAR, views="cached", layers=2)
LOGISTIC = PatchLogisticConfig(data="x", encoder=ENCODER, image=32, strengths=(0.01, 1.0), eval_batch=4, compute=SMALL)
KNN = PatchKnnConfig(data="x", encoder=ENCODER, image=32, neighbours=(1, 3), eval_batch=4, compute=SMALL)


def _run_dir(path: Path, config: Segmentation) -> RunDir:
    return RunDir.create(
        path, to_text(config), {"recipe": "seg/test", "stage": "seg", "identity": "0", "config": type(config).__name__}
    )


def test_from_label_maps_to_numbers(make_pairs, tmp_path) -> None:
    data = make_pairs(6)
    for folder in ("images", "labels"):  # two images may have one name in two folders
        (data / folder / "val" / "night").mkdir()
        (data / folder / "val" / "005.png").rename(data / folder / "val" / "night" / "000.png")
    config = replace(UPERNET, data=str(data), evaluate_every=2, save_predictions=True)
    directory = _run_dir(tmp_path / "run", config)
    outcome = run(config, directory)
    assert set(outcome.metrics) == {"miou", "macc", "aacc"}
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert outcome.facts["data_layout"] == "images and labels"
    assert outcome.facts["stride"] == 21
    assert outcome.facts["blocks"] == [0, 1, 2, 3]
    assert from_text(UPerNetConfig, directory.config.read_text()) == config
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "miou" in line] == [2, 4]
    assert {"loss", "loss_decode", "loss_aux"} <= set(lines[0])
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_decode"] + lines[0]["loss_aux"], rel=1e-6)
    classes = json.loads((directory.path / "classes.json").read_text())
    assert [one["name"] for one in classes] == ["ground", "disc", "bar"]
    known = [one["iou"] for one in classes if one["iou"] is not None]
    assert sum(known) / len(known) == pytest.approx(outcome.metrics["miou"])
    for name in ("segmentations", "worst_segmentations", "confusion"):
        assert (directory.plots / f"{name}.png").stat().st_size > 5_000
    written = sorted((directory.path / "predictions").rglob("*.png"))
    names = [str(file.relative_to(directory.path / "predictions")) for file in written]
    assert names == [*(f"{number:03d}.png" for number in range(5)), "night/000.png"]
    val = open_split(config.data, "val")
    right = total = 0
    for index, file in enumerate(written):
        labels = val.labels(index)
        known_pixels = labels != 255
        right += (np.asarray(Image.open(file))[known_pixels] == labels[known_pixels]).sum()
        total += known_pixels.sum()
    assert 100 * right / total == pytest.approx(outcome.metrics["aacc"])
    directory.result.write_text(json.dumps({"metrics": outcome.metrics}))
    spreads, images = intervals(directory, 40)
    assert (set(spreads), images) == ({"miou"}, 6)
    assert spreads["miou"].value == pytest.approx(outcome.metrics["miou"])
    assert spreads["miou"].low <= spreads["miou"].value <= spreads["miou"].high
    times, copies = [2, 0, 1, 3, 0, 0], Confusion(3)  # a draw is the mIoU of copies of the images
    for index, file in enumerate(written):
        for _ in range(times[index]):
            predicted, labels = (torch.from_numpy(np.array(one)) for one in (Image.open(file), val.labels(index)))
            copies.add(predicted, labels)
    drawn = np.stack([np.asarray(times, float) @ part for part in counts(val, directory)])
    assert miou(drawn[None])[0] == pytest.approx(copies.metrics()["miou"])


def test_a_trained_segmenter_is_evaluated_as_it_is(make_ade, tmp_path, caplog) -> None:
    """On an ADE-shaped tree, from an encoder whose images have a mean of their own, and that is no plain ViT."""
    traits = Traits(registers=2, layer_scale=True)
    file, half = tmp_path / "encoder.safetensors", (0.5, 0.5, 0.5)
    torch.manual_seed(0)
    encoder = VisionTransformer(ENCODER, final_norm=True, traits=traits)
    save_encoder(file, encoder.state_dict(), EncoderInfo("mimbench", ENCODER, True, mean=half, std=half, traits=traits))
    config = replace(UPERNET, data=str(make_ade(4)), checkpoint=str(file), pixels="checkpoint", save_predictions=True)
    trained = _run_dir(tmp_path / "trained", config)
    outcome = run(config, trained)
    assert outcome.family == "mimbench"
    assert "no relative positions are added, because it is no plain ViT (registers=2)" in caplog.text
    assert outcome.facts["rel_pos"] is False
    assert outcome.facts["unexpected"] == ["norm.bias", "norm.weight"]
    again = replace(config, checkpoint=str(trained.path / SEGMENTER), steps=0)
    alone = run(again, _run_dir(tmp_path / "alone", again))
    assert alone.metrics == pytest.approx(outcome.metrics)
    ids = np.asarray(Image.open(next((tmp_path / "alone" / "predictions").iterdir())))
    assert 1 <= ids.min() <= ids.max() <= 150  # the data set's own
    other = replace(again, checkpoint=str(file))
    with pytest.raises(ValueError, match=r"encoder\.safetensors is not one"):
        run(other, _run_dir(tmp_path / "other", other))


@pytest.mark.parametrize("config", [KNN, LOGISTIC])
def test_ignored_ids_are_those_of_a_label_map(config: Any) -> None:
    with pytest.raises(ValueError, match=r"ignore=\[0, 300\]: the ids of a label map lie in 0 to 255"):
        replace(config, ignore=(0, 300))


@pytest.mark.parametrize("config", [UPERNET, CACHED, KNN, LOGISTIC], ids=["upernet", "linear", "knn", "logistic"])
def test_what_evaluation_would_refuse_is_refused_before_training(config: Any, make_pairs, tmp_path) -> None:
    root = make_pairs(3)
    if isinstance(config, UPerNetConfig):
        whole = replace(config, data=str(root), inference=replace(config.inference, mode="whole"))
        with pytest.raises(ValueError, match=r"mode=whole: .*only 32 x 32 pixels, but an image has 64 x 48"):
            run(whole, _run_dir(tmp_path / "whole", whole))
        assert not RunDir(tmp_path / "whole").metrics.exists()
    file = root / "labels" / "val" / "002.png"
    Image.fromarray(np.full((48, 64), 3, np.uint8)).save(file)
    if not isinstance(config, UPerNetConfig):  # which reads a training image when it comes to it
        max((root / "labels" / "train").iterdir()).write_bytes(file.read_bytes())
    config = replace(config, data=str(root))
    with pytest.raises(ValueError, match=rf"^{file}: has id 3; .* 0 to 2; ids must start at 0"):
        run(config, _run_dir(tmp_path / "run", config))
    assert not RunDir(tmp_path / "run").metrics.exists()


@pytest.mark.parametrize(
    "config", [LINEAR, replace(LINEAR, layers=2, norm="none", dropout=0.1, decay_all=False), CACHED, KNN, LOGISTIC]
)
def test_frozen_protocols(config: Any, make_ade, tmp_path) -> None:
    torch.manual_seed(0)
    encoder, file = VisionTransformer(ENCODER, final_norm=True), tmp_path / "encoder.safetensors"
    save_encoder(file, encoder.state_dict(), EncoderInfo("mimbench", ENCODER, final_norm=True))
    config = replace(config, data=str(make_ade(6)), checkpoint=str(file))
    outcome = run(config, _run_dir(tmp_path / "run", config))
    key = {PatchKnnConfig: "seg_knn_miou", PatchLogisticConfig: "seg_logistic_miou"}.get(
        type(config), "seg_linear_miou"
    )
    assert 0 <= outcome.metrics[key] <= 100
    assert outcome.facts["final_norm"] is True
    if isinstance(config, PatchKnnConfig):
        assert set(outcome.facts["held_out_miou"]) == {"k=1 cosine", "k=3 cosine", "k=1 L2", "k=3 L2"}
        assert outcome.facts["ignore"] == [0, 255]
        assert outcome.metrics[key] > 25  # colours alone tell these classes
    elif isinstance(config, PatchLogisticConfig):
        assert set(outcome.facts["held_out_miou"]) == {"C=0.01", "C=1"}
        assert outcome.facts["ignore"] == [0, 255]
        assert outcome.metrics[key] > 25
    else:
        weights = load_state(newest_valid(tmp_path / "run" / "checkpoints"))["stepper"]["model"]
        assert not any("backbone" in name for name in weights)  # the encoder is not saved


MINE = """
import torch
from mimbench.backbones.contract import Features

class Colours(torch.nn.Module):
    patch, width, mean, std = 8, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def forward(self, images):
        grid = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        return Features(grid.mean((1, 2)), grid)

def build():
    return Colours()
"""


@pytest.mark.parametrize("config", [LINEAR, KNN], ids=["linear", "knn"])
def test_a_users_own_encoder(config: Any, make_ade, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    config = replace(config, data=str(make_ade(6)), checkpoint=f"{tmp_path / 'mine.py'}:build")
    outcome = run(config, _run_dir(tmp_path / "run", config))
    assert outcome.family == "user code"
    assert outcome.facts["encoder"] == "mine.py:build"
    if isinstance(config, LinearSegmentationConfig):
        with pytest.raises(ValueError, match="layers=1 blocks=none"):
            run(replace(config, layers=2), _run_dir(tmp_path / "two", config))
        whole = replace(UPERNET, data=config.data, checkpoint=config.checkpoint)
        with pytest.raises(ValueError, match="not a VisionTransformer"):
            run(whole, _run_dir(tmp_path / "whole", whole))


@pytest.mark.parametrize("config", [UPERNET, LINEAR, CACHED], ids=["upernet", "linear", "cached"])
def test_a_killed_run_ends_with_the_same_weights(config: Any, make_pairs, tmp_path) -> None:
    config = replace(config, data=str(make_pairs(6)), steps=5, shown=0)
    step = random.SystemRandom().randrange(1, 5)  # of a run that saves every second step
    whole = run(config, _run_dir(tmp_path / "whole", config))
    directory = _run_dir(tmp_path / "killed", config)
    assert killed(forked(lambda: _killed_at(step, config, directory)))
    again = run(config, directory)
    states = [load_state(newest_valid(tmp_path / name / "checkpoints")) for name in ("whole", "killed")]
    ours, theirs = (state["stepper"]["model"] for state in states)
    assert states[1]["step"] == 5
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"killed at step {step}"
    assert again.metrics == whole.metrics


def _killed_at(step: int, config: Any, directory: RunDir) -> None:
    from unittest.mock import patch

    from mimbench.engine.training import step as stepping

    plain = stepping.Stepper.step

    def dying(stepper: Any, index: int, batches: Any) -> Any:
        if index == step:
            die()
        return plain(stepper, index, batches)

    with patch.object(stepping.Stepper, "step", dying):
        run(config, directory)


@pytest.mark.parametrize("protocol", ["upernet", "cached"])
def test_two_processes_are_one_with_the_whole_batch(protocol: str, make_pairs, tmp_path) -> None:
    """Batch norm sees the whole batch, the loss is its mean, and no validation image is counted twice."""
    heads, backbone = replace(UPERNET.heads, dropout=0.0), replace(UPERNET.backbone, drop_path=0.0)
    config: Any = replace(UPERNET, data=str(make_pairs(5)), heads=heads, backbone=backbone, steps=3)
    if protocol == "cached":
        config = replace(CACHED, data=config.data, steps=3)
    one = run(config, _run_dir(tmp_path / "one", config))
    two = tmp_path / "two"
    _run_dir(two, config)
    as_ranks(2, lambda: _kept(run(config, RunDir(two)), two))
    states = [load_state(newest_valid(tmp_path / name / "checkpoints"))["stepper"]["model"] for name in ("one", "two")]
    for name, value in states[0].items():
        torch.testing.assert_close(
            value, states[1][name], rtol=2e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for mine, theirs in zip(*lines, strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    classes = [json.loads((tmp_path / name / "classes.json").read_text()) for name in ("one", "two")]
    assert [one["pixels"] for one in classes[0]] == [two["pixels"] for two in classes[1]]
    assert json.loads((two / "metrics").read_text()) == pytest.approx(one.metrics, abs=1.0)


def _kept(outcome: Any, path: Path) -> None:
    if __import__("os").environ["RANK"] == "0":
        (path / "metrics").write_text(json.dumps(outcome.metrics))


def test_settings_that_cannot_be(make_pairs, tmp_path) -> None:
    config = replace(UPERNET, data=str(make_pairs(4)))
    for changes, match in (
        ({"compute": replace(SMALL, accumulate=4)}, "batch norm one image at a time"),
        ({"batch": 8}, "lower the batch"),
        ({"image": 36}, "patch=8; use 32 or 40"),
        ({"inference": Inference(mode="whole")}, r"inference\.mode=whole"),
    ):
        wrong = replace(config, **changes)
        with pytest.raises(ValueError, match=match):
            run(wrong, _run_dir(tmp_path / str(len(match)), wrong))
    with pytest.raises(ValueError, match="whole segmenter"):
        replace(UPERNET, steps=0)


@pytest.mark.parametrize("config", [UPERNET, LINEAR], ids=["upernet", "linear"])
def test_settings_that_would_fail_later_or_give_a_wrong_number(config: Any) -> None:
    for changes, match in (
        ({"inference": Inference(stride=33)}, r"stride=33 exceeds the window, image=32"),  # class 0 between windows
        ({"shown": -1}, "shown=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(config, **changes)
    assert replace(config, inference=Inference(mode="whole", stride=33)).inference.stride == 33
    with pytest.raises(ValueError, match="grad_clip=0"):
        replace(UPERNET, grad_clip=0.0)
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        replace(LINEAR, dropout=1.5)


def test_whole_images_that_do_not_fit_are_refused_before_training(make_pairs, tmp_path) -> None:
    data = make_pairs(4)
    for folder in ("images", "labels"):
        for number in range(3):  # the last image alone differs
            file = data / folder / "val" / f"{number:03d}.png"
            Image.open(file).resize((32, 32), Image.Resampling.NEAREST).save(file)
    config = replace(UPERNET, data=str(data), inference=Inference(mode="whole", short=32, long=32))
    directory = _run_dir(tmp_path / "run", config)
    with pytest.raises(ValueError, match=r"fit only 32 x 32 pixels, but an image has 32 x 24"):
        run(config, directory)
    assert not directory.metrics.exists()


def test_names_of_any_kind_are_drawn(make_pairs, tmp_path) -> None:
    """Half a formula as a class, and a file name that is not UTF-8; both ended a run after its training."""
    data = make_pairs(2)
    (data / "classes.txt").write_text("$a_{$\ndisc\n$b^$\n")
    for folder in ("images", "labels"):
        (data / folder / "val" / "000.png").rename(data / folder / "val" / "\udcff.png")
    split = open_split(data, "val")
    predictions = {index: split.labels(index) % 3 for index in range(2)}
    draw_segmentations(split, predictions, [0, 1], tmp_path / "segmentations.png")
    confusion = Confusion(3)
    confusion.counts += 1
    draw_confusion(confusion, split.classes, tmp_path / "confusion.png")
    assert (tmp_path / "segmentations.png").is_file()
    assert (tmp_path / "confusion.png").is_file()


def test_images_of_any_shape_come_to_an_end(make_pairs, tmp_path) -> None:
    """A line of one pixel, and one that rounds to no pixel at all: resized, segmented and drawn."""
    data = make_pairs(2)
    for name, size in (("wide", (3000, 1)), ("tall", (1, 3000))):
        for folder, mode in (("images", "RGB"), ("labels", "L")):
            Image.new(mode, size).save(data / folder / "val" / f"{name}.png")
            Image.new(mode, size).save(data / folder / "train" / f"{name}.png")
    config = replace(UPERNET, data=str(data), backbone=Backbone(rel_pos=False), steps=1, shown=9)
    directory = _run_dir(tmp_path / "run", config)
    assert 0 <= run(config, directory).metrics["miou"] <= 100
    assert max(Image.open(directory.plots / "segmentations.png").size) < 4000


@pytest.mark.slow
def test_it_learns(make_pairs: Callable[..., Path], tmp_path) -> None:
    """Discs, bars and the ground told apart, from a random encoder."""
    config = replace(UPERNET, data=str(make_pairs(24)), steps=120, batch=8, lr=2e-3, warmup=10, layer_decay=0.9)
    config = replace(config, compute=replace(SMALL, save_every=1000, log_every=20))
    outcome = run(config, _run_dir(tmp_path / "run", config))
    assert outcome.metrics["miou"] > 80

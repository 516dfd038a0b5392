"""A pretraining run from its config to its files, on a handful of images."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.config import ViT
from mimbench.engine.data.images import Crop, ImageFolder, Sample, normalise
from mimbench.engine.run.config import Compute, identity, to_text
from mimbench.engine.run.rundir import RunDir
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig, Pretrain, RandomMasking
from mimbench.pretrain.masking.strategies import Random
from mimbench.pretrain.methods.table import build_method
from mimbench.pretrain.run import build_step, run, training, training_batches
from mimbench.pretrain.step import Step

TINY = Pretrain(
    data="images",
    encoder=ViT(width=16, depth=2, heads=2, patch=4, image=16),
    method=CrossMAEConfig(depth=1, width=16, heads=2),
    epochs=2,
    warmup_epochs=0.5,
    batch=4,
    base_lr=1e-1,
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=2, save_every=3),
)


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    """The tiny config on 12 training and 6 validation images of unequal size."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 6), ("val", 3)):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 256, (20 + index, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return replace(TINY, data=str(tmp_path / "images"))


def directory(path: Path, config: Pretrain) -> RunDir:
    about = {"recipe": "pretrain/tiny", "stage": "pretrain", "identity": identity(config, "pretrain", None)}
    return RunDir.create(path, to_text(config), {**about, "checkpoint": None})


def test_a_run_leaves_an_encoder_a_picture_and_a_loss(tmp_path: Path, config: Pretrain) -> None:
    where = directory(tmp_path / "run", config)
    outcome = run(config, where)
    state, info = load_encoder(where.encoder)
    assert (info.family, info.vit, info.recipe) == ("crossmae", config.encoder, "pretrain/tiny")
    assert info.identity == identity(config, "pretrain", None)
    assert len(state) == 4 + 2 * 12
    assert (where.plots / "reconstructions.png").stat().st_size > 1000
    assert 0 < outcome.metrics["loss"] < 10
    assert outcome.facts["steps"] == 6
    assert outcome.images_per_second
    lines = [json.loads(line) for line in where.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert outcome.metrics["loss"] == lines[-1]["val_loss"]


def test_the_same_config_gives_the_same_bytes(tmp_path: Path, config: Pretrain) -> None:
    bytes_of = []
    for name in ("first", "second"):
        where = directory(tmp_path / name, config)
        run(config, where)
        bytes_of.append(where.encoder.read_bytes())
    run(config, directory(tmp_path / "first", config))  # asked for again: the checkpoint of the last step is there
    assert bytes_of[0] == bytes_of[1] == (tmp_path / "first" / "encoder.safetensors").read_bytes()


def test_without_validation_images_the_picture_is_of_training_images(
    tmp_path: Path, config: Pretrain, caplog: pytest.LogCaptureFixture
) -> None:
    for file in sorted((tmp_path / "images" / "val").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "images" / "val").rmdir()
    with caplog.at_level(logging.WARNING):
        outcome = run(replace(config, epochs=1), directory(tmp_path / "run", config))
    assert outcome.metrics["loss"] > 0
    assert "no validation images" in caplog.text


def test_too_few_images_are_said(tmp_path: Path, config: Pretrain) -> None:
    with pytest.raises(ValueError, match=r"12 training samples .* 16"):
        run(replace(config, batch=16), directory(tmp_path / "run", config))


def test_the_schedule_starts_at_zero_and_peaks_after_warm_up(config: Pretrain) -> None:
    longer = replace(config, epochs=8, warmup_epochs=2.0)
    batches = training_batches(longer, ImageFolder(longer.data, "train"))
    made = training(longer, build_step(longer), batches, torch.zeros(1, 3, 16, 16))
    rates = [made.learning_rate(step) for step in range(made.steps)]
    assert made.steps == 8 * 3
    assert rates[0] == 0
    assert max(rates) == rates[6] == pytest.approx(0.1 * 4 / 256 / 3)
    assert rates[3] == pytest.approx(rates[6] / 2)
    assert 0 < rates[-1] < rates[-2] < rates[-3]


def test_weight_decay_leaves_out_biases_and_norms_only(config: Pretrain) -> None:
    step = build_step(config)
    batches = training_batches(config, ImageFolder(config.data, "train"))
    groups = training(config, step, batches, torch.zeros(1)).optimizer.param_groups
    names = {id(parameter): name for name, parameter in step.method.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert {"cls_token", "mask_token", "wfm.linear.weight", "patch_embed.proj.weight"} <= decayed
    assert not any(name.endswith(".bias") or ".norm" in name for name in decayed)
    trained = {names[id(p)] for group in groups for p in group["params"]}
    assert set(names.values()) - trained == {"pos_embed", "decoder_pos_embed"}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_the_step_is_the_loss_of_normalised_images(config: Pretrain) -> None:
    method = build_method(config.method, config.encoder)
    images, noise = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.rand(2, 16)
    none = torch.zeros(2)
    found = Step(method, Random(RandomMasking()))(Sample(images, none, none, Crop(*[none] * 7), noise))["loss"]
    masked = Random(RandomMasking())(noise, None, (4, 4), 0.0)
    assert torch.equal(found, method(normalise(images), masked))
    assert images.dtype == torch.uint8


def test_the_noise_of_a_sample_depends_on_seed_epoch_and_index_alone(config: Pretrain) -> None:
    folder = ImageFolder(config.data, "train")
    together = next(training_batches(config, folder).starting_at(4))
    split = replace(config, compute=replace(config.compute, accumulate=2))
    halves = list(itertools.islice(training_batches(split, folder).starting_at(8), 2))
    for name in ("place", "noise", "image"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(half, name) for half in halves]))
    assert together.noise.shape == (4, 16)
    assert len(together.noise.unique()) == 64


@pytest.mark.parametrize(
    ("method", "norm"),
    [
        (MAEConfig(depth=1, width=16, heads=2), True),
        (CrossMAEConfig(depth=1, width=16, heads=2), False),
        (CrossMAEConfig(depth=1, width=16, heads=2, mixing="none"), True),
    ],
)
def test_all_weights_are_written_when_asked_for(
    tmp_path: Path, config: Pretrain, method: MAEConfig | CrossMAEConfig, norm: bool
) -> None:
    """Under the authors' names, so that their code loads them; and what they are can be told from them."""
    shape = replace(config.encoder, width=64, heads=1)
    asked = replace(config, epochs=1, full_export=True, method=method, encoder=shape)
    where = directory(tmp_path / "run", asked)
    run(asked, where)
    whole = torch.load(where.path / "model.pth", weights_only=True)["model"]
    assert whole.keys() == build_method(asked.method, asked.encoder).state_dict().keys()
    state, info = load_encoder(where.encoder)
    assert (info.family, info.final_norm) == (method.kind, norm)
    again, found = load_encoder(where.path / "model.pth")
    assert (found.family, found.final_norm, found.vit) == (method.kind, norm, shape)
    assert again.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(whole[name], value)
        assert torch.equal(again[name], value)

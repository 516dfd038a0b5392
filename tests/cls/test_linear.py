"""The linear probe: its head, what it is trained on, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mimbench.backbones.checkpoint import load_encoder, save_encoder
from mimbench.cls.accuracy import Tally, accuracy
from mimbench.cls.config import Linear
from mimbench.cls.data.crops import CentreCrops, open_splits
from mimbench.cls.frozen.encoders import frozen_vit
from mimbench.cls.frozen.features import RowBatches, features_of
from mimbench.cls.frozen.linear import EncodedBatches, Probe, prepare, schedule
from mimbench.cls.run import run
from mimbench.engine.data.batches import Batches
from mimbench.engine.run.config import Compute
from mimbench.engine.training.optim import LARS
from mimbench.engine.training.state import load_state, newest_valid
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=5)


def _config(folder: Path, checkpoint: Path, **changes: Any) -> Linear:
    base = Linear(
        data=str(folder), checkpoint=str(checkpoint), image=16, views="cached", epochs=40, warmup_epochs=2,
        batch=16, base_lr=100.0, compute=SMALL, eval_batch=10, evaluate_every=None,
    )  # fmt: skip
    return replace(base, **changes)


def test_the_head_is_batch_norm_without_weights_then_linear() -> None:
    torch.manual_seed(0)
    probe = Probe(8, 3)
    assert [name for name, _ in probe.named_parameters()] == ["linear.weight", "linear.bias"]
    assert probe.linear.bias.abs().sum() == 0
    assert probe.linear.weight.abs().max() < 0.05
    features, labels = torch.randn(12, 8) * 3 + 1, torch.arange(12) % 3
    normal = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    expected = F.cross_entropy(normal @ probe.linear.weight.T, labels)
    torch.testing.assert_close(probe((features, labels))["loss"], expected)
    torch.testing.assert_close(probe.norm.running_mean, 0.1 * features.mean(0))  # momentum .1


def test_the_learning_rate_is_the_published_one() -> None:
    rate = schedule(Linear(), steps_per_epoch=78)  # 1,281,167 images in batches of 16,384
    assert rate(0) == 0
    assert rate(5 * 78) == pytest.approx(3.2)
    assert rate(10 * 78) == pytest.approx(6.4)
    assert rate(50 * 78) == pytest.approx(3.2)
    assert rate(90 * 78) == pytest.approx(0, abs=1e-9)


def test_separable_features_are_learned() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 5
    features = F.one_hot(labels, 5).float() @ torch.randn(5, 12) * 4 + torch.randn(300, 12) * 0.3
    probe = Probe(12, 5)
    batches = RowBatches(lambda index: (features[index], labels[index]), 300, 50, seed=0)
    optimizer = LARS(probe.parameters(), lr=20.0)
    for batch in islice(batches.starting_at(0), 120):
        probe(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    probe.eval()
    assert accuracy("linear", probe.logits, [(features, labels)], CPU)["linear_top1"] == 100


def test_cached_features_come_in_the_order_of_their_images(folder: Path, checkpoint: Path) -> None:
    config = _config(folder, checkpoint)
    train, encoder = open_splits(str(folder)).train, frozen_vit(config, CPU)
    features, labels = features_of(encoder, train, 16, 1.0, 0)
    cached = RowBatches(lambda index: (features[index], labels[index]), len(labels), 16, seed=3)
    images = Batches(CentreCrops(train, 16, 1.0), 16, seed=3)
    encoded = EncodedBatches(encoder, CentreCrops(train, 16, 1.0), 16, 3, accumulate=1, workers=0)
    assert len(cached) == len(images) == 4
    for from_memory, loaded, fresh in zip(
        islice(cached.starting_at(3), 6), images.starting_at(3), encoded.starting_at(3), strict=False
    ):
        assert torch.equal(from_memory[1], loaded[1])
        torch.testing.assert_close(from_memory[0], encoder(loaded[0]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(from_memory[0], fresh[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", ["cached", "augmented"])
def test_a_run_learns_and_says_what_it_did(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], views: Any
) -> None:
    config = _config(folder, checkpoint, views=views)
    directory = new_run(config)
    outcome = run(config, directory)
    assert set(outcome.metrics) == {"linear_top1", "linear_top5", "linear_loss"}
    assert outcome.metrics["linear_top1"] > 80
    assert outcome.metrics["linear_top5"] == 100  # of three classes
    assert outcome.facts["views"] == views
    assert ("not the papers'" in outcome.facts["protocol"]) == (views == "cached")
    assert (outcome.images_per_second is None) == (views == "cached")
    newest = newest_valid(directory.checkpoints)
    assert newest is not None
    weights = load_state(newest)["stepper"]["model"]
    assert "linear.weight" in weights
    assert not any("blocks" in name for name in weights)  # the encoder is not saved again with every state


def test_a_probe_taken_up_again_ends_the_same(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, checkpoint, compute=replace(SMALL, save_every=30, keep=9), seed=2)
    directory = new_run(config)
    whole = run(config, directory)
    newest = newest_valid(directory.checkpoints)
    assert newest is not None
    newest.unlink()  # as if killed before the end
    assert run(config, directory).metrics == whole.metrics


def test_the_encoder_is_left_as_it_was(folder: Path, checkpoint: Path) -> None:
    config = _config(folder, checkpoint, views="augmented")
    encoder = frozen_vit(config, CPU)
    before = [parameter.clone() for parameter in encoder.model.parameters()]
    training = prepare(config, encoder, open_splits(str(folder)))
    training.model(next(training.batches.starting_at(0)))["loss"].backward()
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.model.parameters(), strict=True))


def test_random_weights_depend_on_the_seed_alone(folder: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    config = Linear(data=str(folder), encoder=TINY, image=16, compute=SMALL)
    features = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        features.append(frozen_vit(config, CPU)(images))
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_accuracy_counts_every_image_once() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(23, 8), torch.randint(0, 8, (23,))
    tally = Tally(CPU)
    for part in ((0, 10), (10, 20), (20, 23)):
        tally.add(logits[slice(*part)], labels[slice(*part)])
    found = tally.metrics("x")
    order = logits.argsort(1, descending=True)
    assert found["x_top1"] == 100 * sum(order[i, 0] == labels[i] for i in range(23)).item() / 23
    assert found["x_top5"] == 100 * sum(labels[i] in order[i, :5] for i in range(23)) / 23
    assert found["x_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())


def test_an_overflow_on_validation_images_alone_is_no_result(
    tmp_path: Path, checkpoint: Path, new_run: Callable[[Any], Any]
) -> None:
    """A white image is beyond float16 in the patch embedding; the training images, grey as the mean, are not."""
    for split, names in (("train", "abcdefgh"), ("val", "ab")):
        for channel, class_name in enumerate(("red", "green")):
            (tmp_path / "data" / split / class_name).mkdir(parents=True)
            for number, name in enumerate(names):
                pixels = np.full((16, 16, 3), (124, 116, 104), dtype=np.uint8)
                pixels[number, :, channel] += 1
                white = split == "val" and (channel, name) == (1, "b")
                Image.fromarray(pixels | 255 if white else pixels).save(
                    tmp_path / "data" / split / class_name / f"{name}.png"
                )
    state, info = load_encoder(checkpoint)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].abs() * 3e3
    save_encoder(tmp_path / "large.safetensors", state, info)
    compute = replace(SMALL, precision="fp16")
    config = _config(tmp_path / "data", tmp_path / "large.safetensors", batch=4, epochs=2, compute=compute)
    with pytest.raises(ValueError, match=r"linear_loss is nan.*try compute.precision=bf16 or fp32"):
        run(config, new_run(config))


def test_a_batch_larger_than_the_data_is_refused(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, checkpoint, batch=128)
    with pytest.raises(ValueError, match=r"72 training samples .* 128"):
        run(config, new_run(config))


@pytest.mark.parametrize("views", ["augmented", "cached"])
def test_a_single_image_for_the_batch_norm_is_refused(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], views: Any
) -> None:
    config = _config(folder, checkpoint, batch=4, views=views, compute=Compute(accumulate=4, device="cpu"))
    with pytest.raises(ValueError, match=r"batch=4 in 4 micro-batches is a single image .* use batch=8 or more"):
        run(config, new_run(config))


def test_shares_are_refused_before_features_are_computed() -> None:
    with pytest.raises(ValueError, match=r"compute\.shard=true .* LARS"):
        Linear(data="x", compute=Compute(shard=True))

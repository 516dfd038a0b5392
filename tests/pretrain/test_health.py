"""What is measured of an encoder while it is pretrained, and what speeds a step up without changing it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.data.images import ImageFolder, Sample, normalise
from mimbench.engine.run.config import Compute, identity, to_text
from mimbench.engine.run.process import setup_process
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.session import Session
from mimbench.pretrain.config import (
    AttentionMasking,
    CrossMAEConfig,
    GridMasking,
    KeepMasking,
    MAEConfig,
    MaskAlignConfig,
    MethodConfig,
    MonitorConfig,
    Pretrain,
    RandomMasking,
    SimMIMConfig,
)
from mimbench.pretrain.monitor import Monitor, Squares, encoder_of, feature_rank, neighbours_top1
from mimbench.pretrain.run import _save, build_step, run, training, training_batches
from mimbench.pretrain.step import Weighed

TINY = Pretrain(
    encoder=ViT(width=16, depth=2, heads=2, patch=4, image=16),
    method=CrossMAEConfig(depth=1, width=16, heads=2),
    epochs=4,
    warmup_epochs=1.0,
    batch=4,
    base_lr=1e-1,
    monitor=MonitorConfig(every=2.0, images=8),
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=3, save_every=4),
)


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    """The tiny config on 12 training and 6 validation images of two classes, bright and dark."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 6), ("val", 3)):
        for kind, brightness in (("bright", 120), ("dark", 0)):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = brightness + torch.randint(0, 100, (20 + index, 24, 3), generator=generator)
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")
    return replace(TINY, data=str(tmp_path / "images"))


def directory(path: Path, config: Pretrain) -> RunDir:
    about = {"recipe": "pretrain/tiny", "stage": "pretrain", "identity": identity(config, "pretrain", None)}
    return RunDir.create(path, to_text(config), {**about, "checkpoint": None})


def _lines(run_dir: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------- the figures


def test_feature_rank_is_that_of_the_paper() -> None:
    """RankMe, eq. 1: exp(-sum p log p), p = s / |s|_1 + 1e-7, of the singular values s."""
    torch.manual_seed(0)
    values = torch.tensor([5.0, 3.0, 1.0, 1.0])
    left, right = torch.linalg.qr(torch.randn(40, 4))[0], torch.linalg.qr(torch.randn(6, 4))[0]
    shares = [value / 10 + 1e-7 for value in values.tolist()]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert feature_rank(left @ values.diag() @ right.T) == pytest.approx(expected, rel=1e-4)
    assert feature_rank(torch.ones(30, 8)) == pytest.approx(1, abs=1e-3)
    assert feature_rank(torch.eye(8)) == pytest.approx(8, abs=1e-3)


def test_neighbours_agree_with_scikit_learn() -> None:
    torch.manual_seed(0)
    label_M, answer_Q = torch.randint(0, 5, (200,)), torch.randint(0, 5, (60,))
    centres = torch.randn(5, 12)
    train_MD, query_QD = centres[label_M] + torch.randn(200, 12), centres[answer_Q] + torch.randn(60, 12)
    unit = [torch.nn.functional.normalize(features, dim=1).numpy() for features in (train_MD, query_QD)]

    def weights(distances: Any) -> Any:
        return torch.tensor((1 - distances**2 / 2) / 0.07).exp().numpy()  # cosine from the distance of unit vectors

    theirs = KNeighborsClassifier(20, weights=weights).fit(unit[0], label_M).score(unit[1], answer_Q)
    assert neighbours_top1(query_QD, answer_Q, train_MD, label_M, 5) == pytest.approx(100 * theirs)
    assert neighbours_top1(train_MD[:3], label_M[:3], train_MD[:3], label_M[:3], 5) == 100  # fewer than 20 to ask


@pytest.mark.parametrize(
    "method", [CrossMAEConfig(depth=1, width=16, heads=2), MAEConfig(depth=1, width=16, heads=2), SimMIMConfig()]
)
def test_features_are_those_of_the_encoder_that_is_written(
    tmp_path: Path, config: Pretrain, method: MethodConfig
) -> None:
    masking = RandomMasking(mask_ratio=0.75, predict=0.75)
    config = replace(config, method=method, masking=masking, lr_factor="none", epochs=1, warmup_epochs=0.5)
    where = directory(tmp_path / "run", config)
    torch.manual_seed(0)
    step = build_step(config)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    before = [value.clone() for value in step.method.state_dict().values()]
    found = encoder_of(step)(step.normalised(images)).pooled
    assert all(torch.equal(one, other) for one, other in zip(before, step.method.state_dict().values(), strict=True))
    _save(config, where, step, where.encoder)
    written, info = build_encoder(str(where.encoder), config.encoder, "avg")
    assert info is not None
    torch.testing.assert_close(found, written.eval()(normalise(images)).pooled, rtol=1e-5, atol=1e-5)


def test_images_are_spread_over_the_classes_and_broken_ones_passed_over(config: Pretrain) -> None:
    folder = ImageFolder(config.data, "train")
    assert [label for _, label in (Squares(folder, 4, 16)[i] for i in range(4))] == [0, 0, 1, 1]
    assert len(Squares(folder, 100, 16)) == 12
    broken = folder.paths[0]
    broken.write_bytes(b"no image")
    image, label = Squares(ImageFolder(config.data, "train"), 12, 16)[0]
    assert torch.equal(image, Squares(folder, 12, 16)[1][0])
    assert label == 0


def test_features_that_overflow_are_not_measured(config: Pretrain, caplog: pytest.LogCaptureFixture) -> None:
    train, val = ImageFolder(config.data, "train"), ImageFolder(config.data, "val")
    step = build_step(config)
    with torch.no_grad():
        encoder_of(step).patch_embed.proj.weight.mul_(1e6)  # beyond fp16, whose largest number is 65,504
    assert Monitor(config, step, train, val).measure().keys() == {"feature_rank", "probe_knn"}
    half = replace(config, compute=replace(config.compute, precision="fp16"))
    assert Monitor(half, step, train, val).measure() == {}
    assert "overflow with compute.precision=fp16" in caplog.text


@pytest.mark.parametrize("every", [0.0, math.inf, math.nan])
def test_measurements_come_after_a_number_of_epochs(every: float) -> None:
    with pytest.raises(ValueError, match=f"every={every} epochs must be positive and finite"):
        MonitorConfig(every=every)


def test_bright_and_dark_are_told_apart(config: Pretrain) -> None:
    torch.manual_seed(0)
    train, val = ImageFolder(config.data, "train"), ImageFolder(config.data, "val")
    found = Monitor(config, build_step(config), train, val).measure()
    assert found["probe_knn"] == 100
    assert 1 <= found["feature_rank"] <= 8
    without = replace(config, monitor=MonitorConfig(images=0))
    assert Monitor(without, build_step(without), train, val).measure() == {}


# --------------------------------------------------------------------------------------------------------------- a run


def test_a_run_is_looked_at_every_so_often_and_nothing_of_it_changes(tmp_path: Path, config: Pretrain) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where, plain = directory(tmp_path / "run", config), directory(tmp_path / "plain", config)
    outcome = run(config, where)
    run(replace(config, monitor=MonitorConfig(every=100.0, images=0)), plain)
    lines = _lines(where)
    looks = [line for line in lines if "probe_knn" in line]
    assert [line["step"] for line in looks] == [6, 12]
    assert all({"val_loss", "feature_rank"} <= line.keys() for line in looks)
    assert [line["step"] for line in lines if "grad_norm" in line] == [3, 6, 9, 12]
    assert all(line["grad_norm"] > 0 for line in lines if "grad_norm" in line)
    assert outcome.metrics == {
        "loss": looks[-1]["val_loss"],
        **{key: looks[-1][key] for key in ("feature_rank", "probe_knn")},
    }
    events = EventAccumulator(str(where.path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("feature_rank")] == [6, 12]
    pictures = events.Images("reconstructions")
    assert [picture.step for picture in pictures] == [6, 12]
    assert pictures[-1].encoded_image_string == (where.plots / "reconstructions.png").read_bytes()
    assert pictures[0].encoded_image_string != pictures[-1].encoded_image_string
    assert where.encoder.read_bytes() == plain.encoder.read_bytes()
    assert [line["loss"] for line in lines if "loss" in line] == [
        line["loss"] for line in _lines(plain) if "loss" in line
    ]


def test_images_that_cannot_be_decoded_are_in_the_result(tmp_path: Path, config: Pretrain) -> None:
    broken = Path(config.data) / "train" / "dark" / "3.png"
    broken.write_bytes(broken.read_bytes()[:70])
    with pytest.raises(ValueError, match=r"1 of 12 images .*skip=0.01 .*3\.png"):
        run(config, directory(tmp_path / "strict", config))
    lenient = replace(config, skip=0.1)
    outcome = run(lenient, directory(tmp_path / "run", lenient))
    assert outcome.facts["skipped_images"] == 1
    assert str(broken) in outcome.facts["skipped"][0]


# ------------------------------------------------------------------------------------------- faster, and just the same


def _gradients(config: Pretrain, steps: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of some training steps, and the gradient of the last."""
    torch.manual_seed(0)
    step = build_step(config)
    batches = training_batches(config, ImageFolder(config.data, "train"))
    made = training(config, step, batches, torch.zeros(1, 3, 16, 16))
    stream, losses = batches.starting_at(0), []
    for index in range(steps):
        for group in made.optimizer.param_groups:
            group["lr"] = made.learning_rate(index + 1)
        made.optimizer.zero_grad()
        loss = step(next(stream))["loss"]
        loss.backward()
        losses.append(float(loss.detach()))
        if index + 1 < steps:
            made.optimizer.step()
    return losses, {name: p.grad for name, p in step.method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", [CrossMAEConfig(depth=2, width=16, heads=2), MAEConfig(depth=2, width=16, heads=2)])
def test_computing_activations_again_gives_the_same_gradients(config: Pretrain, method: MethodConfig) -> None:
    config = replace(config, method=method)
    losses, gradients = _gradients(config)
    again, same = _gradients(replace(config, recompute=True))
    assert losses == again
    assert gradients.keys() == same.keys()
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_activations_that_are_computed_again_are_not_kept(config: Pretrain) -> None:
    def kept(config: Pretrain) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        step = build_step(config)
        batch = next(training_batches(config, ImageFolder(config.data, "train")).starting_at(0))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(batch)
        return total

    deep = replace(config, encoder=replace(config.encoder, depth=6), method=CrossMAEConfig(depth=4, width=16, heads=2))
    assert kept(replace(deep, recompute=True)) < 0.5 * kept(deep)


@pytest.mark.slow
def test_compiled_losses_are_the_same(config: Pretrain) -> None:
    plain, _ = _gradients(config, steps=5)
    compiled, _ = _gradients(replace(config, compile=True), steps=5)
    assert compiled == pytest.approx(plain, rel=1e-5)


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "index", "index_put"}
TAKES = {"tolist", "numpy", "cpu", "__array__"}  # on a CPU these reach no operation


class Operations(TorchDispatchMode):
    """Notes operations whose result a CPU would have to wait for, had the tensors been on a GPU."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__.rstrip("_")
        by_places = name in ("index", "index_put") and all(i is None or i.dtype != torch.bool for i in args[1])
        if name in WAITS and not by_places:
            self.seen.append(name)
        return op(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Notes calls that take numbers out of a tensor."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in TAKES:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def reads() -> Iterator[list[str]]:
    seen: list[str] = []
    with Operations(seen), Calls(seen):
        yield seen


def test_reads_are_noticed() -> None:
    values = torch.arange(4.0, requires_grad=True)
    with reads() as seen:
        float(values.detach()[2])
        (values[values > 1] * values.sum().detach().item()).sum().backward()
        torch.where(values > 1, values, 0)[torch.tensor([0, 2])].detach().tolist()
    assert seen == ["_local_scalar_dense", "index", "_local_scalar_dense", "index_put", "tolist"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": MAEConfig(depth=1, width=16, heads=2), "masking": GridMasking(), "grad_clip": 1.0},
        {"method": SimMIMConfig(), "masking": RandomMasking(mask_ratio=0.75, predict=0.75)},
        {"method": MaskAlignConfig(teacher=None, layers="top2"), "masking": KeepMasking(), "lr_factor": "none"},
        {"method": MAEConfig(depth=1, width=16, heads=2), "masking": AttentionMasking(start_epoch=0, interval=1)},
    ],
    ids=["crossmae", "mae", "simmim", "maskalign", "amt"],
)
def test_the_device_is_read_at_lines_of_metrics_only(tmp_path: Path, config: Pretrain, changes: dict[str, Any]) -> None:
    compute = replace(config.compute, accumulate=2, log_every=4)
    config = replace(config, compute=compute, **changes)
    if isinstance(config.method, MaskAlignConfig):
        file, shape = tmp_path / "teacher.safetensors", ViT(width=24, depth=3, heads=2, patch=4, image=16)
        save_encoder(file, VisionTransformer(shape).state_dict(), EncoderInfo("crossmae", shape, False))
        config = replace(config, checkpoint=str(file))
    device = setup_process(compute, config.seed)
    batches = training_batches(config, ImageFolder(config.data, "train"))
    prepared = training(config, build_step(config), batches, torch.zeros(1, 3, 16, 16))
    session = Session(directory(tmp_path / "run", config), replace(prepared, evaluate=None), device)
    loaded: list[Sample | Weighed] = list(itertools.islice(batches.starting_at(0), 10))
    if isinstance(config.masking, AttentionMasking):
        loaded = [Weighed(batch, torch.rand(len(batch.image), 16)) for batch in loaded]
    with reads() as seen:
        for index in range(5):  # a line of metrics would follow the fourth
            session.means.add(index + 1, session.stepper.step(index, iter(loaded[2 * index :])))
    assert seen == []
    with reads() as seen:
        session.means.take()
    assert seen == ["tolist"]
    session.close()

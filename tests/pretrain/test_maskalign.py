"""MaskAlign against the authors' numbers, and what it adds to them.

Golden values were computed by the authors' code (github.com/OpenDriveLab/maskalign, 250d018), never by ours; how is in
golden/maskalign.py. There and here the teacher is a function that returns sines, 12 layers of 768 channels.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import Compute
from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import KeepMasking, Pretrain, RandomMasking
from mimbench.pretrain.masking.strategies import Keep, Masked, Random
from mimbench.pretrain.methods.configs import MaskAlignConfig
from mimbench.pretrain.methods.maskalign import MaskAlign, counting_layers
from mimbench.pretrain.methods.method import Context
from mimbench.pretrain.methods.teachers import Teacher
from mimbench.pretrain.run import decay_groups, schedule
from tests.pretrain.originals import golden_noise, gradient_norms, sines

STUDENT = ViT(width=48, depth=12, heads=4, patch=8, image=32)
SMALL = ViT(width=16, depth=3, heads=2, patch=8, image=32)
COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES: dict[str, MaskAlignConfig] = {
    "recipe": MaskAlignConfig(),
    "random": MaskAlignConfig(),
    "out_l2_simple": MaskAlignConfig(layers="out", loss="l2", fusion="simple", target_norm="none"),
    "mean_l1_sum": MaskAlignConfig(layers="mean", loss="l1", fusion="sum", target_norm="l2"),
    "decay_bn_mlp": MaskAlignConfig(layers="linear_decay", target_norm="bn", head="mlp"),
    "mid_mlp2": MaskAlignConfig(layers="mid3", head="mlp2"),
    "mid_simple_norm": MaskAlignConfig(layers="mid3", head="norm_linear", fusion="simple"),
    "shallow_sum": MaskAlignConfig(fusion="sum", layers="mean"),
}


@cache
def golden() -> dict[str, Any]:
    """The authors' numbers."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "maskalign.json").read_text())
    return found


def teacher_of(width: int, depth: int) -> Teacher:
    """One that has sizes and no numbers."""
    with torch.device("meta"):
        network = VisionTransformer(ViT(width, depth, 4, patch=8, image=32))
    return Teacher(network, 16, 32, *COLOURS)


def small_teacher(depth: int = 4) -> Teacher:
    """One that can be asked."""
    torch.manual_seed(7)
    return Teacher(VisionTransformer(ViT(24, depth, 2, patch=8, image=32)), 16, 32, *COLOURS)


def filled(shape: ViT, config: MaskAlignConfig) -> MaskAlign:
    """The student with the weights of the golden numbers."""
    model = MaskAlign(shape, replace(config, drop_path=0.0), teacher_of(768, 12)).double()
    state = model.state_dict()
    for name in set(state) - {"pos_embed"}:
        wave = torch.arange(state[name].numel(), dtype=torch.float64)
        value = 0.05 * torch.sin(0.37 * wave + zlib.crc32(name.encode()) % 1000)
        state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)
    return model


def looked(model: MaskAlign, batch: int) -> Context:
    """What the teacher of sines makes of `batch` images, whatever they are."""
    wave = torch.arange(batch * 17 * 768, dtype=torch.float64).view(batch, 17, 768)
    layers = [(1 + layer / 4) * torch.sin(0.013 * wave + 0.7 * layer) for layer in range(1, 13)]
    pairs = [(layers[layer][:, :1], layers[layer][:, 1:]) for layer in model.layers]
    scores = 3 * torch.sin(0.29 * torch.arange(batch * 12 * 17 * 17, dtype=torch.float64)).view(batch, 12, 17, 17)
    return Context(scores.softmax(-1)[:, :, 0, 1:].mean(1), tuple(part for pair in pairs for part in pair))


def masked_by(context: Context, noise_BN: Tensor, kind: str = "keep") -> Masked:
    if kind == "keep":
        return Keep(KeepMasking())(noise_BN, context.importance, (4, 4), 0.0)
    return Random(RandomMasking(mask_ratio=0.7, predict=0.7))(noise_BN, None, (4, 4), 0.0)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_the_authors(name: str) -> None:
    model = filled(replace(STUDENT, depth=4 if name == "shallow_sum" else 12), CASES[name])
    context = looked(model, 2)
    masked = masked_by(context, golden_noise(2, 16), "random" if name == "random" else "keep")
    loss = model(sines(2, 3, 32, 32), masked, context)
    loss.backward()
    expected = golden()["cases"][name]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    norms = gradient_norms(model)
    norms["gradient"] = math.sqrt(sum(norm**2 for norm in norms.values()))
    for parameter, norm in expected["gradients"].items():
        assert norms[parameter] == pytest.approx(norm, rel=1e-7), parameter
    if name == "recipe":
        assert {*norms} == {*expected["gradients"]}


def config_of(epochs: int, warmup: float) -> Pretrain:
    return Pretrain(
        encoder=STUDENT,
        method=MaskAlignConfig(),
        masking=KeepMasking(),
        epochs=epochs,
        warmup_epochs=warmup,
        batch=256,
        base_lr=1e-3,
        min_lr=1e-5,
        lr_factor="none",
        compute=Compute(device="cpu"),
    )


def test_a_training_of_50_steps_is_the_authors() -> None:
    config, images = config_of(5, 1.0), sines(4, 3, 32, 32)
    model = filled(STUDENT, MaskAlignConfig())
    context, rate = looked(model, 4), schedule(config, 10)
    optimizer = adamw(decay_groups(model, config), config.learning_rate, config.betas)
    losses, rates = [], []
    for step in range(50):
        rates.append(rate(step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        loss = model(images, masked_by(context, golden_noise(4, 16, 0.1 * step)), context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert rates == pytest.approx(golden()["trajectory"]["rates"], rel=1e-12)
    assert losses == pytest.approx(golden()["trajectory"]["losses"], rel=1e-7)


def test_weight_decay_spares_what_the_authors_spare() -> None:
    model = filled(STUDENT, MaskAlignConfig(layers="mean"))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = decay_groups(model, config_of(5, 1.0))
    found = {str(group["weight_decay"]): sorted(names[id(p)] for p in group["params"]) for group in groups}
    expected = golden()["groups"]
    assert found["0.05"] == expected["0.05"]
    assert found["0.0"] == [name for name in expected["0.0"] if not name.startswith("norm.")]  # never trained


def test_the_same_seed_draws_the_authors_weights() -> None:
    teacher = teacher_of(768, 12)
    torch.manual_seed(0)
    state = MaskAlign(STUDENT, MaskAlignConfig(drop_path=0.0), teacher).state_dict()
    for name, (*first, total) in golden()["seeded"].items():
        assert state[name].flatten()[:3].tolist() == pytest.approx(first, abs=1e-7), name
        assert state[name].abs().sum().item() == pytest.approx(total, rel=1e-5), name


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ("top5", {7: 0.2, 8: 0.2, 9: 0.2, 10: 0.2, 11: 0.2}),
        ("out", {11: 1.0}),
        ("mid0", {0: 1.0}),
        ("linear_decay", {layer: layer / 66 for layer in range(1, 12)}),
        ("mean", dict.fromkeys(range(12), 1 / 12)),
    ],
)
def test_layers_have_their_weights(layers: str, found: dict[int, float]) -> None:
    numbers, weights = counting_layers(layers, 12)
    assert dict(zip(numbers, weights, strict=True)) == pytest.approx(found)


def test_layers_that_the_teacher_has_not_are_said() -> None:
    for layers in ("top13", "mid12"):
        with pytest.raises(ValueError, match=f"layers={layers} exceeds the teacher's 12 layers, 0 to 11"):
            counting_layers(layers, 12)
    with pytest.raises(ValueError, match="layers='top' must be mean, out"):
        MaskAlignConfig(layers="top")


def test_the_mixing_starts_from_the_block_at_the_layers_height() -> None:
    equal = MaskAlign(SMALL, MaskAlignConfig(layers="out"), teacher_of(24, 3))
    assert torch.equal(equal.distill_weights, torch.eye(3) + 0.01)
    deeper = MaskAlign(SMALL, MaskAlignConfig(layers="mean"), teacher_of(24, 6))
    assert deeper.heights == [0, 0, 1, 1, 2, 2]
    shallower = MaskAlign(replace(SMALL, depth=4), MaskAlignConfig(layers="out"), teacher_of(24, 2))
    assert shallower.heights == [1, 3]
    assert torch.equal(shallower.distill_weights, torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]]) + 0.01)


def plain_loss(model: MaskAlign, images: Tensor, masked: Masked) -> Tensor:
    """The loss as the paper and its figure describe it, with nothing left out; whitened targets, smooth L1."""
    shown = masked.shown
    maps = model.forward_tokens(images, shown)[1:]
    targets = model.teacher.network.network.forward_tokens(images)[1:]  # type: ignore[operator]
    height = [min(block for block in range(len(maps)) if (block + 1) / len(maps) >= (layer + 1) / len(targets) - 1e-9)
              for layer in range(len(targets))]  # fmt: skip
    total = torch.zeros(())
    for layer, target in enumerate(targets):
        weights = F.one_hot(torch.tensor(height[layer]), len(maps)).float()
        if model.config.fusion != "simple":
            weights = model.distill_weights[layer]
        chosen = [block for block in range(len(maps)) if weights[block] != 0]
        if model.config.order == "mix_adapt":
            ours = model.distill_heads[str(layer)](sum(weights[block] * maps[block] for block in chosen))
        else:
            ours = sum(weights[block] * model.distill_heads[str(block)](maps[block]) for block in chosen)
        rows = torch.cat([torch.zeros_like(shown[:, :1]), 1 + shown], dim=1)
        theirs = F.layer_norm(target, target.shape[-1:])[torch.arange(len(images))[:, None], rows]
        total = total + 2 * F.smooth_l1_loss(ours, theirs) / len(targets)
    return total


@pytest.mark.parametrize("order", ["mix_adapt", "adapt_mix"])
@pytest.mark.parametrize("fusion", ["linear", "sum", "simple"])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_both_orders_and_unequal_depths_are_their_plain_form(order: Any, fusion: Any, depth: int) -> None:
    config = MaskAlignConfig(layers="mean", order=order, fusion=fusion, drop_path=0.0)
    model = MaskAlign(SMALL, config, small_teacher(depth))
    images = torch.randn(2, 3, 32, 32)
    context = model.compute_context(images)
    masked = masked_by(context, torch.rand(2, 16))
    loss = model(images, masked, context)
    loss.backward()
    assert loss.item() == pytest.approx(plain_loss(model, images, masked).item(), rel=1e-5)
    assert {*gradient_norms(model)} == {name for name, p in model.named_parameters() if p.requires_grad}


def test_blocks_that_nothing_reads_are_not_trained_and_cost_nothing() -> None:
    model = MaskAlign(SMALL, MaskAlignConfig(layers="mid0", fusion="simple"), teacher_of(24, 3))
    trained = [{parameter.requires_grad for parameter in block.parameters()} for block in model.blocks]
    assert trained == [{True}, {False}, {False}]
    assert {*model.distill_heads} == {"0"}
    called = []
    model.blocks[1].register_forward_hook(lambda *_: called.append(1))
    context = Context(torch.ones(1, 16), (torch.randn(1, 1, 24), torch.randn(1, 16, 24)))
    model(torch.randn(1, 3, 32, 32), masked_by(context, torch.rand(1, 16)), context).backward()
    assert not called


def test_the_order_of_patches_does_not_matter() -> None:
    model = MaskAlign(SMALL, MaskAlignConfig(drop_path=0.0, layers="top2"), small_teacher()).double()
    model.teacher.network.double()
    images = sines(2, 3, 32, 32)
    context = model.compute_context(images)
    masked = masked_by(context, golden_noise(2, 16))
    other = Masked(masked.shown.flip(1), masked.predicted, masked.dropped)
    assert model(images, masked, context).item() == pytest.approx(model(images, other, context).item(), rel=1e-12)


def test_the_teacher_is_neither_trained_nor_kept() -> None:
    teacher = small_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = MaskAlign(SMALL, MaskAlignConfig(layers="top2", drop_path=0.5), teacher)
    model.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    ours = {id(parameter) for parameter in model.parameters()}
    assert not ours & {id(parameter) for parameter in teacher.parameters()}
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "cls_token", "pos_embed", "patch_embed", "blocks", "distill_heads", "distill_weights",
    }  # fmt: skip
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    context = model.compute_context(images)
    assert not any(part.requires_grad for part in (context.importance, *context.targets) if part is not None)
    model(images.detach(), masked_by(context, torch.rand(2, 16)), context).backward()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_drop_path_rises_to_the_last_block() -> None:
    model = MaskAlign(SMALL, MaskAlignConfig(drop_path=0.2, layers="out"), teacher_of(24, 3))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_reduced_precision_changes_little_and_the_loss_stays_single() -> None:
    model = MaskAlign(SMALL, MaskAlignConfig(drop_path=0.0, layers="top2"), small_teacher())
    images = torch.randn(4, 3, 32, 32)
    noise, losses, types = torch.rand(4, 16), [], []
    last: Any = model.teacher.network.network.blocks[-1]  # type: ignore[union-attr,index]
    last.mlp.fc1.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    masked = masked_by(model.compute_context(images), noise)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            context = model.compute_context(images)
            losses.append(model(images, masked, context))
    assert types[-2:] == [torch.float32, torch.bfloat16]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-2)


def test_no_patch_hidden_is_feature_distillation() -> None:
    """All patches shown, the last layer alone: what the paper starts from."""
    model = MaskAlign(SMALL, MaskAlignConfig(layers="out", fusion="simple", loss="l2", drop_path=0.0), small_teacher())
    images = torch.randn(2, 3, 32, 32)
    context = model.compute_context(images)
    masked = Keep(KeepMasking(mask_ratio=0.0))(torch.rand(2, 16), context.importance, (4, 4), 0.0)
    assert masked.shown.shape == (2, 16)
    ours = model.distill_heads["3"](model.forward_tokens(images)[-1])
    theirs = model.teacher.network.network.forward_tokens(images)[-1]  # type: ignore[operator]
    expected = F.mse_loss(ours, F.layer_norm(theirs, (24,)))
    assert model(images, masked, context).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_loss_and_teacher_compile_whole() -> None:
    model = MaskAlign(SMALL, MaskAlignConfig(drop_path=0.0, layers="top2"), small_teacher())
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    plain = model.compute_context(images)
    expected = model(images, masked_by(plain, noise), plain)
    model.compile(backend="eager", fullgraph=True)
    context = model.compute_context(images)
    loss = model(images, masked_by(context, noise), context)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

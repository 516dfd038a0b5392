"""The classifier: numbers of the authors' one, what it loads, and the rules of fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mimbench.backbones.classifier import TraitsClassifier, build_classifier, layer_of, load_encoder_into, no_decay
from mimbench.backbones.config import SIZES, Traits, ViT
from mimbench.backbones.vit import VisionTransformer

TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)
# Logits of MAE's and CrossMAE's classifier (timm 0.9.7), weights and input filled with sines, in float64.
LOGITS = [
    [0.2024341323568295, 0.09474352159698171, -0.08090097989764201, -0.12633147978874829],
    [0.2462106383234784, 0.12501291017784785, -0.09665535401124452, -0.17118560791577933],
]
LOGIT_SUM = 0.2768496175920231


def fill_with_sines(model: nn.Module) -> None:
    state = model.state_dict()
    for rank, name in enumerate(sorted(state)):
        value = 0.05 * torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 1.3 * rank)
        state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)


def test_logits_are_those_of_the_authors_classifier() -> None:
    model = build_classifier(TINY, 10, drop_path=0.0, pool="avg", image=32).double().eval()
    fill_with_sines(model)
    images = torch.sin(0.011 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    logits = model(images)
    assert torch.allclose(logits[:, :4], torch.tensor(LOGITS, dtype=torch.float64), rtol=1e-12, atol=1e-13)
    assert logits.sum().item() == pytest.approx(LOGIT_SUM, rel=1e-11)


@pytest.mark.parametrize("final_norm", [False, True])
def test_averaging_takes_the_last_blocks_output(final_norm: bool) -> None:
    encoder = VisionTransformer(TINY, final_norm)
    model = build_classifier(TINY, 10, 0.0, "avg", 32).eval()
    load_encoder_into(model, encoder.state_dict())
    images = torch.randn(2, 3, 32, 32)
    mean = encoder.forward_tokens(images)[-1][:, 1:].mean(1)
    assert torch.allclose(
        model.forward_head(model.forward_features(images), pre_logits=True), model.fc_norm(mean), atol=1e-5
    )


def test_class_token_of_an_encoder_without_final_norm_gets_a_fresh_one() -> None:
    encoder = VisionTransformer(TINY)
    model = build_classifier(TINY, 10, 0.0, "cls", 32).eval()
    load_encoder_into(model, encoder.state_dict())
    assert torch.equal(model.norm.weight, torch.ones(48))
    images = torch.randn(2, 3, 32, 32)
    token = nn.functional.layer_norm(encoder.forward_tokens(images)[-1][:, 0], (48,), eps=1e-6)
    assert torch.allclose(model(images), model.head(token), atol=1e-5)


def test_class_token_keeps_the_final_norm_of_the_encoder() -> None:
    encoder = VisionTransformer(TINY, final_norm=True)
    nn.init.constant_(encoder.norm.weight, 1.5)
    model = build_classifier(TINY, 10, 0.0, "cls", 32)
    load_encoder_into(model, encoder.state_dict())
    assert torch.equal(model.norm.weight, encoder.norm.weight)


def test_another_image_size_resizes_positions() -> None:
    model = build_classifier(TINY, 10, 0.0, "avg", 64)
    load_encoder_into(model, VisionTransformer(TINY).state_dict())
    assert model.pos_embed.shape == (1, 65, 48)
    assert model.pos_embed.requires_grad


def test_the_head_starts_near_zero() -> None:
    model = build_classifier(TINY, 10, 0.0, "avg", 32)
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert not model.head.bias.any()


def test_drop_path_rises_linearly() -> None:
    model = build_classifier(TINY, 10, 0.2, "avg", 32)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_an_encoder_that_does_not_fit_is_refused(change: str) -> None:
    state = VisionTransformer(TINY).state_dict()
    if change == "missing":
        del state["blocks.1.mlp.fc1.bias"]
    elif change == "unexpected":
        state["decoder_pred.weight"] = torch.zeros(1)
    else:
        state["blocks.0.norm1.weight"] = torch.zeros(7)
    with pytest.raises(ValueError, match="does not fit the classifier") as error:
        load_encoder_into(build_classifier(TINY, 10, 0.0, "avg", 32), state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "decay", "groups", "first", "second"),
    [("S", 0.65, 28, 0.00369721, 0.00568801), ("L", 0.75, 52, 0.000752543, 0.00100339)],
)
def test_layer_decay_has_the_authors_groups_and_scales(
    size: str, decay: float, groups: int, first: float, second: float
) -> None:
    vit = SIZES[size]
    with torch.device("meta"):
        model = build_classifier(vit, 1000, 0.0, "avg", 224)
    found = list(dict.fromkeys((layer_of(n, vit.depth), no_decay(n, p)) for n, p in model.named_parameters()))
    scale = [decay ** (vit.depth + 1 - layer) for layer, _ in found]
    assert len(found) == groups
    assert found[0] == (0, True)
    assert math.isclose(min(scale), first, rel_tol=1e-5)
    assert math.isclose(sorted(set(scale))[1], second, rel_tol=1e-5)
    assert max(scale) == 1.0


EVERY = {
    "beit": Traits(positions="relative", layer_scale=True),
    "grad_clip": Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu"),
    "dinov2": Traits(layer_scale=True, registers=4, mlp="swiglu", hidden=40),
    "dinov3": Traits(positions="rope", layer_scale=True, registers=4, norm_eps=1e-5),
}


@pytest.mark.parametrize("pool", ["avg", "cls"])
@pytest.mark.parametrize("kind", EVERY)
def test_an_encoder_with_traits_keeps_its_own_blocks(kind: str, pool: str) -> None:
    traits = EVERY[kind]
    encoder = VisionTransformer(TINY, True, traits=traits).eval()
    model = build_classifier(TINY, 10, 0.2, pool, 32, traits)  # type: ignore[arg-type]
    assert isinstance(model, TraitsClassifier)
    load_encoder_into(model, encoder.state_dict())
    images = torch.randn(2, 3, 32, 32)
    tokens = encoder.encode(images)
    read = model.fc_norm(tokens[:, traits.prefix :].mean(1)) if pool == "avg" else encoder.norm(tokens)[:, 0]
    assert torch.allclose(model.eval()(images), model.head(read), atol=1e-6)
    model.train()(images).sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(trained) == len(list(model.parameters()))
    assert {layer_of(name, 3) for name in trained} == {0, 1, 2, 3, 4}
    assert not traits.registers or no_decay("reg_token", model.reg_token)
    assert layer_of("norm_pre.weight", 3) == layer_of("reg_token", 3) == 0


def test_a_classifier_with_traits_at_another_size() -> None:
    traits = EVERY["dinov2"]
    encoder = VisionTransformer(TINY, traits=traits, interpolation="bicubic-offset").eval()
    model = build_classifier(TINY, 10, 0.0, "avg", 64, traits).eval()
    load_encoder_into(model, encoder.state_dict(), "bicubic-offset")
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model(images), model.head(model.fc_norm(encoder(images).pooled)), atol=1e-6)
    assert model.pos_embed.requires_grad


def test_relative_positions_are_not_for_another_size() -> None:
    with pytest.raises(ValueError, match=r"image=64.*use image=32"):
        build_classifier(TINY, 10, 0.0, "avg", 64, EVERY["beit"])

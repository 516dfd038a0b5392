"""SimMIM against its authors' numbers, and with AMT's throwing.

`golden/simmim.json` was computed by the authors' code (golden/simmim.py), never by ours.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.engine.run.config import Compute
from mimbench.engine.training.optim import adamw
from mimbench.pretrain.config import Pretrain, RandomMasking, SimMIMConfig
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.masking.units import unit_patches
from mimbench.pretrain.methods.table import build_masking, build_method
from mimbench.pretrain.run import decay_groups, schedule
from tests.pretrain.golden.simmim import AMT_MASKED, AMT_THROWN, MASKED, fill, images, units
from tests.pretrain.originals import gradient_norms

SHAPE = ViT(48, 3, 4, 8, 64)


@cache
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "simmim.json").read_text())
    return found


def masked_units(masked: int, thrown: int = 0) -> Masked:
    """The authors' masks: of 4 x 4 units in the order of `units()` the first are masked, the next thrown away."""
    order = units()
    parts = order.split((masked, thrown, 16 - masked - thrown), dim=1)
    predicted, dropped, shown = (unit_patches(part, 8, 2) for part in parts)
    return Masked(shown, predicted.sort(dim=1).values, dropped)


def filled(config: SimMIMConfig, fixed: tuple[str, ...] = ()) -> Any:
    model = build_method(config, SHAPE).double()
    fill(model, fixed)
    return model


def must_agree(model: Any, loss: torch.Tensor, expected: dict[str, float]) -> set[str]:
    """Returns the parameters that have a gradient here and none in the authors' code."""
    loss.backward()
    found = gradient_norms(model)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    assert expected.keys() - {"loss", "gradient"} <= found.keys()
    for name, norm in found.items():
        if name in expected:
            assert norm == pytest.approx(expected[name], rel=1e-7, abs=1e-12), name
    return found.keys() - expected.keys()


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_loss_and_gradients_are_the_authors(positions: Any) -> None:
    model = filled(SimMIMConfig(positions=positions, drop_path=0.0))
    assert not must_agree(model, model(images(), masked_units(MASKED)), golden()[positions])


def test_throwing_is_what_amt_describes() -> None:
    """AMT's encoder and decoder, and the loss on the image without what was thrown away; see golden/simmim.py."""
    model = filled(SimMIMConfig(positions="absolute", drop_path=0.0), fixed=("gamma_1",))
    ours_alone = must_agree(model, model(images(), masked_units(AMT_MASKED, AMT_THROWN)), golden()["throwing"])
    assert ours_alone == {f"encoder.blocks.{number}.gamma_1" for number in range(3)}  # there they are not applied


def test_throwing_with_relative_positions_is_attention_among_the_kept() -> None:
    """The same loss as with all tokens, whose scores to what is thrown away are minus infinity."""
    model = filled(SimMIMConfig(drop_path=0.0)).float()
    masked = masked_units(AMT_MASKED, AMT_THROWN)
    loss = model(images().float(), masked)
    whole = Masked(torch.cat([masked.shown, masked.dropped], 1), masked.predicted, masked.dropped[:, :0])
    blind = torch.zeros(2, 65).scatter(1, 1 + masked.dropped, -torch.inf)[:, None, None]
    open_bias = model.encoder.bias
    model.encoder.bias = lambda kept: open_bias(kept) + blind
    assert model(images().float(), whole).item() == pytest.approx(loss.item(), rel=1e-5)


def test_fifty_steps_of_training_and_their_rates_are_the_authors() -> None:
    config = Pretrain(
        encoder=SHAPE, method=SimMIMConfig(drop_path=0.0), epochs=10,
        masking=RandomMasking(mask_ratio=0.6, predict=0.6, unit=2),
        warmup_epochs=2, batch=256, base_lr=4e-3, start_lr=1e-5, min_lr=2e-5, weight_decay=0.05, betas=(0.9, 0.999),
        lr_factor="none", schedule="simmim_steps", drops=(8,), compute=Compute(device="cpu"),
    )  # fmt: skip
    model = filled(config.method)  # type: ignore[arg-type]
    groups = decay_groups(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = [names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]]
    assert sorted(spared) == golden()["spared"]
    rate = schedule(config, 5)
    rates = [rate(step) for step in range(50)]
    assert rates == pytest.approx(golden()["rates"]["multistep"], rel=1e-12)
    optimizer = adamw(groups, 0.0, config.betas)
    losses = []
    for step in range(50):
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        loss = model(images(), masked_units(MASKED))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(golden()["losses"], rel=1e-6)


def test_the_cosine_of_amts_simmim_is_the_authors() -> None:
    config = Pretrain(
        encoder=SHAPE, method=SimMIMConfig(), epochs=10, warmup_epochs=2, batch=256, base_lr=4e-3, start_lr=1e-5,
        min_lr=2e-5, lr_factor="none", schedule="simmim_cosine",
    )  # fmt: skip
    rate = schedule(config, 5)
    assert [rate(step) for step in range(50)] == pytest.approx(golden()["rates"]["cosine"], rel=1e-12)


def test_the_class_tokens_attention_is_the_authors() -> None:
    model = filled(SimMIMConfig(positions="absolute", drop_path=0.0), fixed=("gamma_1",))
    with torch.no_grad():
        attention = model.class_attention(images())
    assert attention.shape == (2, 4, 64)
    assert attention.flatten().tolist()[::7] == pytest.approx(golden()["attention"], rel=1e-7)


def test_relative_biases_are_part_of_the_attention() -> None:
    model = filled(SimMIMConfig(drop_path=0.0))
    with torch.no_grad():
        with_biases = model.class_attention(images())
        model.encoder.rel_pos_bias.relative_position_bias_table[-3] += 5  # from the class token to patches
        moved = model.class_attention(images())
    assert moved.sum(-1).min() > with_biases.sum(-1).max()


def test_first_weights_are_beits() -> None:
    torch.manual_seed(0)
    model: Any = build_method(SimMIMConfig(), ViT(192, 4, 3, 16, 64))
    model.requires_grad_(False)
    blocks = model.encoder.blocks
    assert blocks[0].attn.qkv.weight.std() == pytest.approx(0.02, rel=0.03)
    assert model.encoder.patch_embed.proj.weight.std() == pytest.approx(0.02, rel=0.03)
    for number, block in enumerate(blocks, start=1):
        assert block.mlp.fc2.weight.std() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.03)
        assert block.gamma_1.unique().item() == pytest.approx(0.1)
    assert model.encoder.mask_token.abs().max() <= 0.02
    assert model.encoder.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


@pytest.mark.parametrize(
    "config", [SimMIMConfig(), SimMIMConfig(positions="absolute"), SimMIMConfig(positions="absolute", layer_scale=None)]
)
def test_the_encoder_is_handed_to_evaluations(config: SimMIMConfig, tmp_path: Path) -> None:
    """What an evaluation loads computes what the trained encoder does."""
    model: Any = build_method(config, SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    about = EncoderInfo("simmim", SHAPE, model.final_norm, traits=model.traits, positions=model.positions)
    save_encoder(tmp_path / "encoder.safetensors", model.encoder_state(), about)
    encoder, _ = build_encoder(tmp_path / "encoder.safetensors", SHAPE)
    with torch.no_grad():
        found = encoder.eval()(images().float()).grid.flatten(1, 2)
        expected = model.eval().encoder(images().float(), None, None)[:, 1:]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_painted_patch_is_in_rows_columns_and_colours() -> None:
    model = filled(SimMIMConfig(drop_path=0.0))
    masked = masked_units(MASKED)
    flat = model.predict(images(), masked)
    painted = model.rebuild(images(), masked)
    assert torch.equal(painted.view(2, -1, 8, 8, 3).permute(0, 1, 4, 2, 3).flatten(2), flat.float())


def test_simmims_own_counts() -> None:
    masking = build_masking(RandomMasking(mask_ratio=0.6, predict=0.6, unit=2), ViT(), 800)
    assert masking.counts(196, 0) == (76, 0, 120)  # 30 of 49 units of 32 pixels masked


def test_bfloat16_and_recomputing_give_the_same_loss() -> None:
    model = filled(SimMIMConfig(drop_path=0.0)).float()
    masked = masked_units(AMT_MASKED, AMT_THROWN)
    loss = model(images().float(), masked)
    model.encoder.recompute = True
    again = model(images().float(), masked)
    again.backward()
    assert again.item() == loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images().float(), masked).item() == pytest.approx(loss.item(), rel=2e-2)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_scale=0.0 must be positive, or none"):
        SimMIMConfig(layer_scale=0.0)
    with pytest.raises(ValueError, match=r"drop_path=1.0 must lie in \[0, 1\)"):
        SimMIMConfig(drop_path=1.0)
    with pytest.raises(ValueError, match="drops="):
        Pretrain(schedule="simmim_steps", drops=(900,))

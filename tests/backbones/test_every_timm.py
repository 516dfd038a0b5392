"""Every Vision Transformer that timm has, by the names and shapes of its file: read as what it is, or refused.

The models are built without memory (device meta), so that all sizes are tried. What a file cannot tell (`assumed`) may
differ from the model's; with its name beside it (timm's `arch`, or config.json) nothing may.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import QuickGELU
from timm.layers.activations import GELUTanh
from torch import Tensor, nn

from mimbench.backbones.checkpoints.match import Matched, match
from mimbench.backbones.checkpoints.opening import Opened

MODULES = ("vision_transformer", "eva", "beit", "deit", "vision_transformer_relpos", "vision_transformer_sam")
MODULES = (*MODULES, "vision_transformer_hybrid")

FEWEST_READ = 80  # of the distinct ones of timm 1.0.31, with their names beside them


@pytest.fixture(autouse=True, scope="module")
def without_initial_values() -> Iterator[None]:
    """No model is initialised, which would take most of the time: there is no memory to fill."""
    with pytest.MonkeyPatch.context() as patch:
        for fill in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"):
            patch.setattr(torch.Tensor, fill, lambda tensor, *_values, **_options: tensor)
        yield


@cache
def model_of(name: str) -> Any:
    """A model without memory and without initial values, of its first block alone: the others are like it."""
    with torch.device("meta"):
        arguments = {} if "sapiens2" in name else {"depth": 1}  # its blocks differ
        model = timm.create_model(name, **arguments)
    model.full_depth = _depth(name)
    return model


def _depth(name: str) -> int:
    """The blocks that timm gives the model, as its builder is asked for them."""
    module = importlib.import_module(timm.model_entrypoint(name).__module__)
    builders = [builder for builder in vars(module) if builder.startswith("_create_")]
    with pytest.MonkeyPatch.context() as patch:
        for builder in builders:
            patch.setattr(module, builder, lambda *_args, **arguments: arguments)
        arguments: Any = timm.model_entrypoint(name)()
    return int(arguments.get("depth", 12)) if isinstance(arguments, dict) else 12


def state_of(model: Any) -> dict[str, Tensor]:
    """Its names and shapes; tokens and tables of positions have numbers, which recognition may look at."""
    torch.manual_seed(0)
    state = {}
    for key, value in model.state_dict().items():
        numbers = range(model.full_depth) if key.startswith("blocks.0.") else range(1)
        state |= {key.replace("blocks.0.", f"blocks.{number}.", 1): value for number in numbers}
    told = {key: torch.randn(value.shape) for key, value in state.items() if "token" in key or "pos_embed" in key}
    return {**state, **told}


@cache
def distinct(module: str) -> tuple[str, ...]:
    """Of the models that differ in the grid of patches alone, the first."""
    found: dict[str, str] = {}
    for name in timm.list_models(module=module):
        model = model_of(name)
        shapes = [(key, tuple(value.shape)) for key, value in model.state_dict().items() if key != "pos_embed"]
        attributes = (model.full_depth, _facts(model), model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        found.setdefault(repr((shapes, attributes)), name)
    return tuple(found.values())


def _facts(model: Any) -> str:
    """The attributes of a model that no key shows."""
    block, rope = model.blocks[0], getattr(model, "rope", None)
    names = ("ref_feat_shape", "temperature", "grid_indexing", "grid_offset")
    facts = [type(block).__name__, repr(block), *(repr(getattr(rope, name, None)) for name in names)]
    return repr([*facts, type(rope).__name__, getattr(getattr(block, "attn", None), "num_heads", None)])


def read(name: str, **beside: Any) -> Matched | None:
    """What the file of a model is read as; None where it is refused, in one line."""
    opened = Opened(Path("/nowhere") / name, "torch", 0, state_of(model_of(name)), "", **beside)
    try:
        found = match(opened)
        found.require(allow_partial=True)
    except ValueError as error:
        assert "\n" not in str(error)
        return None
    return found


def departures(found: Matched, model: Any) -> set[str]:
    """In what the encoder that was read is another than the model; by the model's attributes alone."""
    block = model.blocks[0]
    truth: dict[str, Any] = {
        "heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "prefix": getattr(model, "num_prefix_tokens", 0),  # SAM's has no such attribute
    }
    truth |= {name: [round(value, 4) for value in model.pretrained_cfg[name]] for name in ("mean", "std")}
    read = {"heads": found.vit.heads, "norm_eps": found.traits.norm_eps, "prefix": found.traits.prefix}
    read |= {name: [round(value, 4) for value in getattr(found, name)] for name in ("mean", "std")}
    if found.traits.mlp == "mlp":
        truth["activation"], read["activation"] = _activation(block.mlp.act), found.traits.activation
    rope = getattr(model, "rope", None)
    truth["rotary"], read["rotary"] = type(rope).__name__, "NoneType"
    if found.traits.rotary:
        read["rotary"] = "RotaryEmbeddingCat" if found.traits.rope else "RotaryEmbeddingDinoV3"
    if found.traits.rope is not None:
        ours = found.traits.rope
        span = None if rope.ref_feat_shape is None else rope.ref_feat_shape[0]
        order = "xy" if rope.grid_indexing == "xy" else "yx"
        truth["rope"], read["rope"] = (
            (span, rope.temperature, order, rope.grid_offset),
            (ours.span, ours.theta, ours.order, ours.offset),
        )
    truth["block"], read["block"] = type(block).__name__, "Block" if type(block).__name__ == "Block" else "EvaBlock"
    return {key for key in truth if truth[key] != read[key]}


def _activation(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    tanh = isinstance(module, GELUTanh) or getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if tanh else "gelu"


@pytest.mark.parametrize("module", MODULES)
def test_no_model_is_read_as_another(module: str) -> None:
    wrong = {}
    for name in distinct(module):
        found = read(name)
        if found is not None and (differing := departures(found, model_of(name)) - set(found.assumed)):
            wrong[name] = (found.family.name, differing)
    assert not wrong


def test_with_its_name_beside_it_nothing_is_assumed_wrongly() -> None:
    wrong, taken = {}, 0
    for name in (name for module in MODULES for name in distinct(module)):
        found = read(name, arguments={"arch": name})
        if found is None:
            continue
        taken += 1
        if (differing := departures(found, model_of(name))) or set(found.assumed) - {"grid"}:
            wrong[name] = (found.family.name, differing, found.assumed)
    assert not wrong
    assert taken >= FEWEST_READ


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_ape_224", "vit_pe_spatial_base_patch16_512"])
def test_a_file_of_two_encoders_is_asked_about(name: str, tmp_path: Path) -> None:
    assert read(name) is None
    other = {"vit_base_patch16_rope_ape_224": "deit3", "vit_pe_spatial_base_patch16_512": "clip"}[name]
    own = {"vit_base_patch16_rope_ape_224": "rope_vit", "vit_pe_spatial_base_patch16_512": "pe_spatial"}[name]
    with pytest.raises(ValueError, match=f"family={own}") as asked:
        match(Opened(tmp_path / "a.pth", "torch", 0, state_of(model_of(name)), ""))
    assert f"family={other}" in str(asked.value)
    if own == "pe_spatial":  # its former name is still taken
        former = read(name, options={"family": "pe"})
        assert former is not None
        assert former.family.name == own
    for family in (own, other):
        found = read(name, options={"family": family})
        assert found is not None
        assert (found.family.name, found.traits.rotary) == (family, family == own)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    found = match(Opened(tmp_path / "a.pth", "torch", 0, state_of(model_of(name)), ""))
    assert (found.family.name, found.traits.rotary) == (own, True)

"""The names and shapes of an encoder's weights, from its sizes and traits alone: nothing is built, timm is not needed.

    encoder_shapes(VIT_B16, final_norm=False, traits=Traits())      {"cls_token": (1, 1, 768), "pos_embed": ...}

`vit.VisionTransformer` has exactly these; `tests/backbones/test_shapes.py` compares the two for every trait. Importing
timm takes longer than everything else that `mimbench inspect` does.
"""

from __future__ import annotations

from collections.abc import Iterator

from mimbench.backbones.config import Traits, ViT

Shape = tuple[int, ...]


def encoder_shapes(vit: ViT, final_norm: bool, traits: Traits) -> dict[str, Shape]:
    """Return the names and shapes of an encoder's weights, in the order of its state dictionary."""
    width, tokens = vit.width, vit.grid**2 + int(traits.class_token)
    shapes: dict[str, Shape] = {}
    if traits.class_token:
        shapes["cls_token"] = (1, 1, width)
    if traits.registers:
        shapes["reg_token"] = (1, traits.registers, width)
    if traits.positions == "absolute":
        shapes["pos_embed"] = (1, tokens, width)
    shapes["patch_embed.proj.weight"] = (width, 3, vit.patch, vit.patch)
    if traits.patch_bias:
        shapes["patch_embed.proj.bias"] = (width,)
    if traits.patch_norm:
        shapes.update(_norm("patch_embed.norm", width, traits))
    if traits.positions == "rope":
        shapes["rope.periods"] = (width // vit.heads // 4,)
    if traits.pre_norm:
        shapes.update(_norm("norm_pre", width, traits))
    for number in range(vit.depth):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in _block(vit, traits, number)}
    if final_norm:
        shapes.update(_norm("norm", width, traits))
    return shapes


def _norm(name: str, width: int, traits: Traits) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    if traits.norm == "layer":
        yield f"{name}.bias", (width,)


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _block(vit: ViT, traits: Traits, number: int) -> Iterator[tuple[str, Shape]]:
    width = vit.width
    if traits.layer_scale and traits.gammas:
        yield "gamma_1", (width,)
        yield "gamma_2", (width,)
    yield from _norm("norm1", width, traits)
    if traits.windows is not None:  # rows for each offset of two patches along an axis
        side = traits.windows.side_of(number, vit.grid)
        yield from ((f"attn.rel_pos_{axis}", (2 * side - 1, width // vit.heads)) for axis in "hw")
    yield from _attention(vit, traits)
    if traits.layer_scale and not traits.gammas:
        yield "ls1.gamma", (width,)
    yield from _norm("norm2", width, traits)
    yield from _mlp(width, traits)
    if traits.layer_scale and not traits.gammas:
        yield "ls2.gamma", (width,)


def _attention(vit: ViT, traits: Traits) -> Iterator[tuple[str, Shape]]:
    width, relative = vit.width, traits.positions == "relative"
    if traits.separate_bias and (relative or traits.rotary):
        yield "attn.q_bias", (width,)
        yield "attn.v_bias", (width,)
    if relative:  # one row for each offset of two patches, and three for the class token
        yield "attn.relative_position_bias_table", ((2 * vit.grid - 1) ** 2 + 3, vit.heads)
    fused = traits.qkv_bias and not relative and not (traits.rotary and traits.separate_bias)
    yield from _linear("attn.qkv", width, 3 * width, fused)
    if traits.attention_norm and not relative:
        yield from _norm("attn.norm", width, traits)
    yield from _linear("attn.proj", width, width, traits.proj_bias)


def _mlp(width: int, traits: Traits) -> Iterator[tuple[str, Shape]]:
    hidden, bias = traits.hidden or 4 * width, traits.mlp_bias
    if traits.mlp == "swiglu_split":
        yield from _linear("mlp.fc1_g", width, hidden, bias)
        yield from _linear("mlp.fc1_x", width, hidden, bias)
    else:
        yield from _linear("mlp.fc1", width, hidden * (2 if traits.mlp == "swiglu" else 1), bias)
    if traits.mlp_norm:
        yield from _norm("mlp.norm", hidden, traits)
    yield from _linear("mlp.fc2", hidden, width, bias)

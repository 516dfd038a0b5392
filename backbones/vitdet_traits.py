"""How ViTDet treats an encoder's traits, which ones it refuses, and which ones detectron2's ViT lacks."""

from __future__ import annotations

from collections.abc import Sequence

from mimbench.backbones.config import Prefix, Traits, ViT, vitdet_global_blocks, vitdet_window

PLAIN = Traits()


def vitdet_reason(traits: Traits, prefix: Prefix = "drop") -> str | None:
    """Return the reason why ViTDet cannot use an encoder with `traits`, in one line; None if it can.

    It refuses only what has no meaning in windows; every other trait is kept unchanged.
    """
    if traits.positions == "relative" and traits.registers and prefix != "drop":
        return (
            f"this encoder's table of relative positions has rows for one class token and none for its "
            f"{traits.registers} registers; prefix=drop leaves them out"
        )
    return None


def detectron2_lacks(traits: Traits) -> list[str]:
    """Return what an encoder with `traits` has that detectron2's ViT lacks, a phrase each; it has only MAE's blocks."""
    lacking = {
        "registers": f"{traits.registers} registers",
        "positions": f"{traits.positions} positions instead of a table of absolute positions",
        "rope": "rotary positions",
        "pre_norm": "a norm before the first block",
        "layer_scale": "LayerScale",
        "activation": f"{traits.activation} as activation",
        "mlp": "SwiGLU instead of the MLP",
        "hidden": f"an MLP of width {traits.hidden} instead of four times the encoder's width",
        "patch_bias": "no bias in the patch embedding",
        "qkv_bias": "no bias in query, key and value",
        "key_bias": "no bias in keys",
        "proj_bias": "no bias in attention's projection",
        "mlp_bias": "no bias in the MLP",
        "attention_norm": "a norm inside attention",
        "mlp_norm": "a norm inside the MLP",
        "patch_norm": "a norm of embedded patches",
        "norm": f"{traits.norm} norms",
        "windows": "windows of its own, with trained relative positions",
        "norm_eps": f"norms with eps {traits.norm_eps:g} instead of {PLAIN.norm_eps:g}",
    }
    return [what for name, what in lacking.items() if getattr(traits, name) != getattr(PLAIN, name)]


def detectron2_reason(traits: Traits) -> str | None:
    """Return the reason why detectron2's ViT cannot be an encoder with `traits`, in one line; None if it can.

    detectron2's loader silently skips unknown weights, which changes the encoder and gives a poor AP.
    """
    found = detectron2_lacks(traits)
    if not found:
        return None
    return (
        f"detectron2's ViT cannot be this encoder, because it does not support {'; '.join(found)}; leaving that out "
        "would change the encoder. engine=mimbench trains it unchanged"
    )


def vitdet_plan(
    vit: ViT,
    traits: Traits,
    image: int = 1024,
    *,
    window: int | None = None,
    blocks: Sequence[int] | None = None,
    tiled: bool = False,
    rel_pos: bool = True,
    computed: bool = False,
) -> tuple[str, ...]:
    """Describe what ViTDet does with an encoder at images of `image` pixels, one phrase for each part.

    Args:
        window: the windows' side in patches; None describes the COCO recipes' default for the encoder.
        blocks: the blocks that attend globally; None for the default.
        tiled: whether a table of absolute positions is repeated, not resized.
        rel_pos: whether decomposed relative positions are added, where an encoder takes them.
        computed: whether the fixed table is computed for each grid, not resized.
    """
    everywhere = vitdet_global_blocks(vit.depth, traits) if blocks is None else tuple(blocks)
    fitted = vitdet_window(vit, traits, image)
    side = str(window) if window is not None else "14" if fitted == 14 else f"{fitted} (vitdet.window=none)"
    named = f"blocks {', '.join(map(str, everywhere))} attend" if everywhere else "no block attends"
    said = [f"windows of {side}, {named} globally"]
    if traits.prefix > 1:
        said.append(f"the class token and {traits.registers} registers are dropped")
    elif traits.class_token:
        said.append("the class token is dropped")
    if traits.positions == "absolute":
        fitted_to = "computed for" if computed else "resized to"
        said.append("positions are tiled" if tiled else f"positions are {fitted_to} the image's grid")
    if traits.rotary:
        said.append("rotary positions count from each window's corner")
    if traits.positions == "relative":
        said.append("the table of relative positions is exact in windows and stretched for global blocks")
    if traits.windows is not None:
        said.append("windows and decomposed relative positions are the encoder's own")
    elif rel_pos and traits.positions == "absolute" and not traits.rotary:
        said.append("decomposed relative positions are added, starting at zero")
    return tuple(said)

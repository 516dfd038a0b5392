"""Makes plain_vits.json: what the originals of the plain ViT families give, by weights that `sine.filled` makes.

    python -m tests.backbones.golden.plain_vits ORIGINALS

ORIGINALS holds clones of facebookresearch/{mae,dino,deit,moco-v3} and TonyLianLong/CrossMAE under those names. Their
code is run as it is; what current versions of torch and timm took away from them is put back first (`restore`).
All in float64, on one image at the pretraining size and at others.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.layers
import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn

from tests.backbones.golden.sine import filled, image, summary

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 4}
NORM = partial(nn.LayerNorm, eps=1e-6)
Model = Callable[[int], nn.Module]  # of the side of an image
Tokens = Callable[[nn.Module, Tensor], Tensor]


def restore() -> None:
    """What the originals ask of timm 0.3 and 0.4, of torch 1 and of numpy 1."""
    np.float = float  # type: ignore[attr-defined]
    layers, helpers, registry = (types.ModuleType(name) for name in ("layers", "helpers", "registry"))
    layers.__dict__.update(timm.layers.__dict__)
    helpers.to_2tuple = timm.layers.to_2tuple
    registry.register_model = lambda function: function
    sys.modules.update({
        "timm.models.layers": layers, "timm.models.layers.helpers": helpers, "timm.models.registry": registry
    })  # fmt: skip
    block = timm_vit.Block

    class Block(block):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    timm_vit.Block = Block
    timm_vit.VisionTransformer.num_tokens = 1


def original(folder: Path, name: str) -> Any:
    """A module of the original in `folder`, alone on the path: the originals share names."""
    for loaded in [key for key in sys.modules if key.split(".")[0] in ("util", "utils", "vits", name)]:
        del sys.modules[loaded]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def behind(module: nn.Module, model: Any, images: Tensor) -> Tensor:
    """What `module` of a classifier gives when it sees `images`; its head is not run."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model.forward_features(images)
    handle.remove()
    return seen[-1]


def mae_tokens(model: Any, images: Tensor) -> Tensor:
    """MAE's encoder with nothing masked, its tokens put back in order."""
    tokens, _, restore_order = model.forward_encoder(images, 0.0)
    order = restore_order[..., None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order)], dim=1)


def cross_tokens(model: Any, images: Tensor) -> Tensor:
    """CrossMAE's last encoder map with nothing masked, in order."""
    maps, _, restore_order, _ = model.forward_encoder(images, 0.0, 0.0)
    order = restore_order[..., None].expand(-1, -1, maps[-1].shape[2])
    return torch.cat([maps[-1][:, :1], maps[-1][:, 1:].gather(1, order)], dim=1)


def case(
    build: Model,
    tokens: Tokens,
    sides: tuple[tuple[int, int], ...],
    first: int = 1,
    *,
    resize: Callable[[nn.Module, dict[str, Tensor]], None] | None = None,
    keep: tuple[str, ...] = (),
    zero: tuple[str, ...] = (),
    saved: nn.Module | None = None,
    of: str = "",
) -> dict[str, Any]:
    """Names, shapes and features of an original.

    `build(side)` makes the model for an image; `resize` is the original's own way to bring a state to a model; the
    names in `keep` keep their initial values, the tables in `zero` have nothing for the class token (CrossMAE never
    adds that row, for it is always zero); `saved` is the whole that is written out, of which the model is `of`.
    """
    torch.manual_seed(0)
    whole = saved or build(32)
    initial = {name: value.clone() for name, value in whole.state_dict().items()}
    shapes = {name: list(value.shape) for name, value in initial.items()}
    state = filled(shapes, {name: initial[name] for name in keep})
    for name in zero:
        state[name][:, 0] = 0
    own = {name.removeprefix(of): value.double() for name, value in state.items() if name.startswith(of)}
    features = {}
    for rows, columns in sides:
        model = build(rows).double()
        brought = dict(own)
        if resize:
            resize(model, brought)
        model.load_state_dict(brought)
        with torch.no_grad():
            features[f"{rows}x{columns}"] = summary(tokens(model.eval(), image(rows, columns)), first)
    return {"shapes": shapes, "keep": list(keep), "zero": list(zero), "features": features}


def cases(root: Path) -> dict[str, Any]:
    """Every case by its name."""
    grow_and_shrink = ((32, 32), (24, 24), (48, 48))
    free = ((32, 32), (24, 24), (40, 56))
    mae = original(root / "mae", "models_mae")
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "norm_layer": NORM}

    def mae_resize(model: Any, state: dict[str, Tensor]) -> None:
        # the original's function for the encoder's table; the decoder's is not looked at
        original(root / "mae", "util.pos_embed").interpolate_pos_embed(model, state)
        if "decoder_pos_embed" in state:
            state["decoder_pos_embed"] = model.state_dict()["decoder_pos_embed"]

    made = {
        "mae": case(
            lambda side: mae.MaskedAutoencoderViT(**{**SIZES, "img_size": side}, **decoder),
            mae_tokens, grow_and_shrink, resize=mae_resize,
        ),
        "mae encoder": case(
            lambda side: mae.MaskedAutoencoderViT(**{**SIZES, "img_size": side}, **decoder),
            mae_tokens, grow_and_shrink, resize=mae_resize, keep=("pos_embed",),
        ),
    }  # fmt: skip
    vit = original(root / "mae", "models_vit")
    made["finetuned"] = case(
        lambda side: vit.VisionTransformer(
            **{**SIZES, "img_size": side}, global_pool=True, num_classes=10, qkv_bias=True, norm_layer=NORM
        ),
        lambda model, images: behind(model.blocks[-1], model, images),  # type: ignore[index]
        grow_and_shrink,
        resize=mae_resize,
    )
    cross = original(root / "CrossMAE", "models_cross")
    made["crossmae"] = case(
        lambda side: cross.MaskedAutoencoderViT(
            **{**SIZES, "img_size": side}, **decoder, weight_fm=True, use_input=True, use_fm=[-1]
        ),
        cross_tokens, grow_and_shrink, resize=mae_resize, zero=("pos_embed",),
    )  # fmt: skip
    made.update(dino(root, free))
    made.update(deit(root, grow_and_shrink))
    made.update(moco(root))
    made.update(timm_cases(free))
    return made


def dino(root: Path, sides: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """DINO: teacher and student are a backbone and a head; any image size by its own interpolation."""
    vits = original(root / "dino", "vision_transformer")
    wrapper = original(root / "dino", "utils").MultiCropWrapper
    sizes = {**SIZES, "img_size": [32], "qkv_bias": True, "norm_layer": NORM}
    whole = wrapper(vits.VisionTransformer(**sizes), vits.DINOHead(128, 16, hidden_dim=32, bottleneck_dim=8))
    tokens: Tokens = lambda model, images: model.get_intermediate_layers(images, 1)[0]  # type: ignore[operator] # noqa: E731
    build: Model = lambda side: vits.VisionTransformer(**sizes)  # noqa: E731
    return {"dino": case(build, tokens, sides, saved=whole, of="backbone.")}


def deit(root: Path, sides: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """DeiT with a distillation token, and DeiT III."""
    pos_embed = original(root / "mae", "util.pos_embed").interpolate_pos_embed  # DeiT's own, word for word in its main
    models, third = original(root / "deit", "models"), original(root / "deit", "models_v2")
    last: Tokens = lambda model, images: behind(model.norm, model, images)  # type: ignore[arg-type] # noqa: E731
    common = {"qkv_bias": True, "norm_layer": NORM, "num_classes": 10}
    return {
        "deit": case(
            lambda side: models.DistilledVisionTransformer(**{**SIZES, "img_size": side}, **common),
            last, sides, first=2, resize=pos_embed,
        ),
        "deit3": case(
            lambda side: third.vit_models(
                **{**SIZES, "img_size": side}, **common, block_layers=third.Layer_scale_init_Block
            ),
            last, sides, resize=pos_embed,
        ),
    }  # fmt: skip


def moco(root: Path) -> dict[str, Any]:
    """MoCo v3: both encoders with their heads, and a linear probe of one; its positions are fixed, its images 32 px."""
    vits = original(root / "moco-v3", "vits")
    builder = original(root / "moco-v3", "moco.builder")
    sizes = {**SIZES, "qkv_bias": True, "norm_layer": NORM}
    build: Model = lambda side: vits.VisionTransformerMoCo(**sizes, num_classes=0)  # noqa: E731
    probe: Model = lambda side: vits.VisionTransformerMoCo(**sizes, num_classes=10)  # noqa: E731
    last: Tokens = lambda model, images: behind(model.norm, model, images)  # type: ignore[arg-type] # noqa: E731
    whole = builder.MoCo_ViT(lambda num_classes: vits.VisionTransformerMoCo(**sizes, num_classes=num_classes), 8, 16)

    def without_head(_model: nn.Module, state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith("head.")]:
            del state[name]

    only = ((32, 32),)
    return {
        "mocov3": case(
            build, last, only, saved=whole, of="base_encoder.", resize=without_head, keep=("base_encoder.pos_embed",)
        ),
        "mocov3 probe": case(probe, last, only, keep=("pos_embed",)),
    }


def timm_cases(sides: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """timm's own VisionTransformer: plain, without a class token, without its row, with registers, on ImageNet-21k."""
    last: Tokens = lambda model, images: model.forward_features(images)  # type: ignore[operator] # noqa: E731

    def build(**options: Any) -> Model:
        sizes = {**SIZES, "dynamic_img_size": True, "num_classes": 10}
        return lambda side: timm_vit.VisionTransformer(**{**sizes, **options})

    return {
        "vit": case(build(), last, sides),
        "vit without a class token": case(
            build(class_token=False, global_pool="avg", fc_norm=False), last, sides, first=0
        ),
        "vit without the token's row": case(build(no_embed_class=True), last, sides),
        "vit with registers": case(build(reg_tokens=2, no_embed_class=True), last, sides, first=3),
        "augreg": case(build(num_classes=21843), last, sides[:1]),
    }


if __name__ == "__main__":
    restore()
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(cases(Path(sys.argv[1])), separators=(",", ":")) + "\n")
    print(target, target.stat().st_size)

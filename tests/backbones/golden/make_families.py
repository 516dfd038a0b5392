"""Writes NAME.json beside this file: what the originals of the checkpoint families make of known weights and images.

    python -m tests.backbones.golden.make_families NAME CHECKOUT

    simmim       microsoft/SimMIM d3e29bc
    simmim_amt   guijiejie/AMT dfe380e, its folder SimMIM-AMT
    amt          the same, mae-AMT
    maskalign    OpenDriveLab/maskalign 250d018; needs transformers 4.46
    beit         microsoft/unilm 768a3c8, its folder beit
    beit2        the same, beit2
    dinov2       facebookresearch/dinov2 b8931f7
    dinov3       facebookresearch/dinov3 6876159; needs what it imports
    clip         openai/CLIP d05afc4
    hf           transformers 4.46 itself, whatever CHECKOUT is
    timm         timm 1.0.31 itself: CLIP, DINOv2, DINOv3, BEiT

Runs the originals as they are, in float64 on a CPU. What the old ones ask for and no version of today has is given to
them: timm's Block took `qk_scale`, which all of them leave at None, and numpy had `float`.

A file holds the names and shapes of a state dictionary, filled by `sine.filled` with `SWING`, the few values that the
rule does not make (`given`), and for some sizes of images what comes of them, as `sine.summary` keeps it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backbones.golden.sine import filled, image, summary

HERE = Path(__file__).parent
WIDTH, DEPTH, PATCH, SIDE = 64, 2, 8, 32
SWING = 0.2  # wide enough that every part of an encoder shows in its features
UNTIED = "untie_global_and_local_cls_norm"
NORM = partial(nn.LayerNorm, eps=1e-6)
SAME = (SIDE, SIDE)
SIZES = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1, "qkv_bias": True}


def case(model: nn.Module, source: str, given: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Fill `model` by the rule, but for `given` and whole numbers; what a file says of it before any image."""
    state = model.state_dict()
    integers = {name: value for name, value in state.items() if not value.is_floating_point()}
    shapes = {name: list(value.shape) for name, value in state.items()}
    model.load_state_dict(filled(shapes, {**integers, **(given or {})}, SWING))
    model.double().eval()
    kept = {name: value.tolist() for name, value in (given or {}).items()}
    return {"source": source, "state": shapes, "integers": list(integers), "given": kept, "features": []}


def look(into: dict[str, Any], tokens_1TD: Tensor, size: tuple[int, int], prefix: int = 1, **about: Any) -> None:
    """Add what comes of an image of `size`: tokens, of which the first `prefix` are no patches."""
    assert tokens_1TD.dtype == torch.float64
    into["features"].append({"size": size, **summary(tokens_1TD, prefix), **about})


def hooked(model: Callable[..., Any], module: nn.Module, *inputs: Any) -> Tensor:
    """What `module` gives while `model` runs on `inputs`."""
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _input, output: caught.append(output))
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    return caught[-1]


def write(name: str, content: dict[str, Any]) -> None:
    """Write NAME.json."""
    (HERE / f"{name}.json").write_text(json.dumps(content) + "\n")


def old_block() -> None:
    """timm's Block as the originals call it."""
    from timm.models import vision_transformer

    new = vision_transformer.Block

    def block(*sizes: int, qk_scale: None = None, **options: Any) -> nn.Module:
        return new(*sizes, **options)

    vision_transformer.Block = block


def simmim(root: Path) -> None:
    sys.path.insert(0, str(root))
    vit = importlib.import_module("models.vision_transformer")
    method = importlib.import_module("models.simmim")
    sizes = {**SIZES, "norm_layer": NORM}
    for name, options in [("simmim", {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}), ("simmim_ape", {})]:
        encoder = method.VisionTransformerForSimMIM(
            **sizes, **options, num_classes=0, init_values=0.1, use_mean_pooling=False
        )
        model = method.SimMIM(encoder, encoder_stride=PATCH)
        found = case(model, "microsoft/SimMIM d3e29bc")
        look(found, hooked(encoder, encoder.norm, image(*SAME), torch.zeros(1, 4, 4)), SAME)
        write(name, found)
    options = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_mean_pooling": True, "num_classes": 10}
    model = vit.VisionTransformer(**sizes, **options, init_values=0.1)
    found = case(model, "microsoft/SimMIM d3e29bc, fine-tuned")
    look(found, hooked(model, model.blocks[-1], image(*SAME)), SAME)
    write("simmim_finetuned", found)


def simmim_amt(root: Path) -> None:
    sys.modules.setdefault("requests", types.SimpleNamespace(patch=None))  # imported and never used
    sys.path.insert(0, str(root / "SimMIM-AMT"))
    method = importlib.import_module("models.simmim")
    encoder = method.VisionTransformerForSimMIM(
        **SIZES, norm_layer=NORM, num_classes=0, init_values=0.1, use_mean_pooling=False
    )
    model = method.SimMIM(encoder, encoder_stride=PATCH)
    unused = {f"encoder.blocks.{block}.gamma_1": torch.full((WIDTH,), 0.1) for block in range(DEPTH)}
    found = case(model, "guijiejie/AMT dfe380e, SimMIM-AMT", unused)
    look(found, hooked(encoder, encoder.norm, image(*SAME), torch.zeros(1, 4, 4)), SAME)
    write("simmim_amt", found)


def mae_like(name: str, source: str, model: nn.Module, root: Path) -> None:
    """A method with MAE's encoder: its pretraining weights, as its own fine-tuning loads them for two sizes."""
    given = {key: value for key, value in model.state_dict().items() if key.endswith("pos_embed")}
    found = case(model, source, given)
    vit = importlib.import_module("models_vit")
    interpolate = importlib.import_module("util.pos_embed").interpolate_pos_embed
    for side in (SIDE, 48):
        options = {**SIZES, "img_size": side}
        encoder = vit.VisionTransformer(**options, norm_layer=NORM, num_classes=10).double().eval()
        weights = dict(model.state_dict())
        interpolate(encoder, weights)
        missing = encoder.load_state_dict(weights, strict=False).missing_keys
        assert set(missing) == {"head.weight", "head.bias"}
        look(found, hooked(encoder.forward_features, encoder.norm, image(side, side)), (side, side))
    write(name, found)
    assert root.is_dir()


def amt(root: Path) -> None:
    sys.path.insert(0, str(root / "mae-AMT"))
    old_numpy()
    method = importlib.import_module("models_mae")
    model = method.MaskedAutoencoderViT(
        SIDE, PATCH, 3, WIDTH, DEPTH, 1, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1, norm_layer=NORM
    )
    mae_like("amt", "guijiejie/AMT dfe380e, mae-AMT", model, root)


def old_numpy() -> None:
    import numpy as np

    np.float = float  # type: ignore[attr-defined]
    old_block()


def maskalign(root: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    small |= {"image_size": 16, "patch_size": 8}
    for teacher, config in ((CLIPVisionModel, CLIPVisionConfig), (ViTModel, ViTConfig)):
        teacher.from_pretrained = partial(lambda kind, what, _name: kind(what), teacher, config(**small))
    sys.path.insert(0, str(root))
    old_numpy()
    method = importlib.import_module("models_pretrain")
    for name, teacher in (("maskalign", "openai/clip-vit-base-patch16"), ("maskalign_dino", "facebook/dino-vitb16")):
        options = {"fusion_type": "sum", "head_type": "norm_linear" if "dino" in name else "linear"}
        model = method.MaskedAutoencoderViT(
            SIDE, PATCH, 3, WIDTH, DEPTH, 1, norm_layer=NORM, teacher_model=teacher, **options
        )
        mae_like(name, "OpenDriveLab/maskalign 250d018", model, root)


def beit(root: Path, second: bool = False) -> None:
    sys.path.insert(0, str(root / ("beit2" if second else "beit")))
    finetune, pretrain = importlib.import_module("modeling_finetune"), importlib.import_module("modeling_pretrain")
    sizes = {**SIZES, "norm_layer": NORM}
    options = {"vocab_size": 10, "init_values": 0.1, "use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}
    kind = "VisionTransformerForMaskedImageModeling" + "CLS" * second
    model = getattr(pretrain, kind)(**sizes, **options, **({"early_layers": 1, "head_layers": 1} if second else {}))
    found = case(model, f"microsoft/unilm 768a3c8, {'beit2' if second else 'beit'}")
    unmasked = torch.zeros(1, 16, dtype=torch.bool)
    with torch.no_grad():
        tokens = model.forward_features(image(*SAME), unmasked)
    look(found, tokens[0] if second else tokens, SAME)
    write("beit2" if second else "beit", found)
    if not second:
        model = finetune.VisionTransformer(
            **sizes, num_classes=10, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True
        )
        found = case(model, "microsoft/unilm 768a3c8, beit, fine-tuned")
        look(found, hooked(model, model.blocks[-1], image(*SAME)), SAME)
        write("beit_finetuned", found)


def dinov2(root: Path) -> None:
    os.environ["XFORMERS_DISABLED"] = "1"
    sys.path.insert(0, str(root))
    vit = importlib.import_module("dinov2.models.vision_transformer")
    for name, registers, options in [
        ("dinov2", 0, {}),
        ("dinov2_registers", 4, {"interpolate_antialias": True, "interpolate_offset": 0.0, "num_register_tokens": 4}),
        ("dinov2_swiglu", 0, {"ffn_layer": "swiglufused", "block_chunks": 1}),
    ]:
        model = vit.DinoVisionTransformer(
            **{**SIZES, "img_size": 56, "patch_size": 14, "init_values": 1.0, "block_chunks": 0, **options}
        )
        found = case(model, "facebookresearch/dinov2 b8931f7")
        for size in ((56, 56), (70, 84), (28, 42)):
            look(found, hooked(model, model.norm, image(*size)), size, 1 + registers)
        write(name, found)


def dinov3(root: Path) -> None:
    sys.path.insert(0, str(root))
    vit = importlib.import_module("dinov3.models.vision_transformer")
    for name, options in [
        ("dinov3", {"n_storage_tokens": 4, "mask_k_bias": True}),
        ("dinov3_swiglu", {"ffn_layer": "swiglu64", "ffn_ratio": 3, "qkv_bias": False, UNTIED: True}),
    ]:
        scaled = {"layerscale_init": 1.0, "norm_layer": "layernormbf16", "pos_embed_rope_dtype": "fp32"}
        model = vit.DinoVisionTransformer(**{**SIZES, "img_size": 64, "patch_size": 16, **scaled, **options})
        model.init_weights()
        given = {key: value for key, value in model.state_dict().items() if key.endswith(("periods", "bias_mask"))}
        found = case(model, "facebookresearch/dinov3 6876159", given)
        for size in ((64, 64), (48, 80)):
            with torch.no_grad():
                tokens = model.forward_features(image(*size))
            together = [tokens[f"x_{part}"] for part in ("norm_clstoken", "storage_tokens", "norm_patchtokens")]
            joined = torch.cat([together[0][:, None], *together[1:]], dim=1)
            look(found, joined, size, 1 + together[1].shape[1])
        write(name, found)


def clip(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("clip_model", root / "clip" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LayerNorm = nn.LayerNorm  # its own casts to float32, for half precision's sake
    model = module.CLIP(16, SIDE, DEPTH, WIDTH, PATCH, context_length=4, vocab_size=8, transformer_width=64,
                        transformer_heads=1, transformer_layers=1)  # fmt: skip
    found = case(model, "openai/CLIP d05afc4")
    visual = model.visual
    tokens = hooked(visual, visual.transformer, image(*SAME)).permute(1, 0, 2)
    with torch.no_grad():
        look(found, visual.ln_post(tokens), SAME)
    write("clip_openai", found)


def hf(_root: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": DEPTH}
    tower |= {"num_attention_heads": 1}
    text = {**tower, "hidden_size": 16, "vocab_size": 8, "max_position_embeddings": 4, "num_hidden_layers": 1}
    config = CLIPConfig(text, {**tower, "image_size": SIDE, "patch_size": PATCH}, projection_dim=16)
    model = CLIPModel(config)
    found = case(model, "transformers 4.46.3")
    for size in (SAME, (48, 40)):
        vision = model.vision_model
        with torch.no_grad():
            last = vision(image(*size), interpolate_pos_encoding=True).last_hidden_state
            look(found, vision.post_layernorm(last), size, interpolation="bicubic")
    write("clip_hf", found)


def timm(_root: Path) -> None:
    import timm as library

    small = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1, "num_classes": 0}
    for name, model, side, more in [
        ("clip_timm", "vit_base_patch16_clip_quickgelu_224", SIDE, {"patch_size": PATCH, "dynamic_img_size": True}),
        ("dinov2_timm", "vit_small_patch14_dinov2", 56, {"dynamic_img_size": True}),
        ("dinov2_timm_registers", "vit_small_patch14_reg4_dinov2", 56, {"dynamic_img_size": True}),
        ("dinov2_timm_swiglu", "vit_giant_patch14_dinov2", 56, {"dynamic_img_size": True, "mlp_ratio": 5}),
        ("dinov3_timm", "vit_small_patch16_dinov3", 64, {}),
        ("dinov3_timm_bias", "vit_small_plus_patch16_dinov3_qkvb", 64, {}),
        ("beit_timm", "beit_base_patch16_224", SIDE, {"patch_size": PATCH, "num_classes": 10}),
    ]:
        built = library.create_model(model, **{**small, **more, "img_size": side})
        found = case(built, f"timm 1.0.31, {model}")
        step = built.patch_embed.patch_size[0]
        for size in [(side, side)] + [(side + step, side - step)] * ("beit" not in name):
            with torch.no_grad():
                tokens = built.forward_features(image(*size))
            look(found, tokens, size, built.num_prefix_tokens)
        write(name, found)


if __name__ == "__main__":
    made, where = sys.argv[1], Path(sys.argv[2])
    table = {"beit2": partial(beit, second=True)}
    table.get(made, globals().get(made))(where)

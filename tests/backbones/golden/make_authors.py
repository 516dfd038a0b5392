"""Writes NAME.json beside this file, as `make_families` does: encoders by their authors' own names.

    python -m tests.backbones.golden.make_authors NAME CHECKOUT

    sam        facebookresearch/segment-anything dca509f
    pe         facebookresearch/perception_models 3e352cc: core with both towers, spatial, lang; needs einops
    radio      NVlabs/RADIO c0f3701; needs einops
    franca     valeoai/Franca 24f8c60
    ibot       bytedance/ibot da316d8
    tips       google-deepmind/tips 4db271d
    data2vec   facebookresearch/data2vec_vision 6146726, its folder beit
    aimv2      apple/ml-aim bd9e068: with a table of positions, and native
    aim        the same, its folder aim-v1
    open_clip  open_clip 3.3.0 itself, whose code MetaCLIP's files are of

Runs the originals as they are, in float64 on a CPU, but for what they import and no encoder uses (xformers, the hub).
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backbones.golden.make_families import DEPTH, NORM, PATCH, SAME, SIDE, SIZES, WIDTH, case, hooked, look, write
from tests.backbones.golden.sine import image

WIDE = (48, 40)  # rows and columns in pixels


def sam(root: Path) -> None:
    sys.path.insert(0, str(root / "segment_anything"))
    vit = importlib.import_module("modeling.image_encoder")
    encoder = vit.ImageEncoderViT(
        img_size=40, patch_size=PATCH, embed_dim=WIDTH, depth=3, num_heads=1, out_chans=16, norm_layer=NORM,
        use_rel_pos=True, window_size=3, global_attn_indexes=(1,)
    )  # fmt: skip
    model = nn.Module()
    model.image_encoder, model.mask_decoder, model.prompt_encoder = encoder, nn.Linear(2, 2), nn.Linear(2, 2)
    found = case(model, "facebookresearch/segment-anything dca509f")
    tokens = hooked(encoder, encoder.blocks[-1], image(40, 40))
    look(found, tokens.flatten(1, 2), (40, 40), prefix=0)
    write("sam", found)


def pe(root: Path) -> None:
    sys.path.insert(0, str(root))
    module = importlib.import_module("core.vision_encoder.pe")
    config = importlib.import_module("core.vision_encoder.config")
    sizes: dict[str, Any] = {"patch_size": PATCH, "width": WIDTH, "layers": DEPTH, "heads": 1, "mlp_ratio": 4.0}
    sizes |= {"image_size": SIDE, "attn_pooler_heads": 1}
    text = config.PETextConfig(context_length=4, width=16, heads=1, layers=1, output_dim=16, vocab_size=8)
    dense = {"pool_type": "none", "use_ln_post": False, "output_dim": None}
    for name, options in [
        ("pe_core", {"use_cls_token": True, "output_dim": 16}),
        ("pe_spatial", {"use_cls_token": True, **dense}),
        ("pe_spatial_giant", {"use_cls_token": False, "ls_init_value": 0.1, "mlp_ratio": 5.0, **dense}),
        ("pe_lang", {"use_cls_token": True, "ls_init_value": 0.1, **dense}),
    ]:
        settings = config.PEConfig(**{**sizes, **options})
        tower = module.VisionTransformer(**vars(settings))
        model = module.CLIP(settings, text) if name == "pe_core" else tower
        found = case(model, "facebookresearch/perception_models 3e352cc")
        tower = model.visual if name == "pe_core" else model
        with torch.no_grad():
            look(found, tower.forward_features(image(*SAME), norm=True), SAME, int(options["use_cls_token"]))
        write(name, found)


def radio(root: Path) -> None:
    sys.path.insert(0, str(root))
    from timm.models import VisionTransformer

    cpe = importlib.import_module("radio.enable_cpe_support")
    conditioner = importlib.import_module("radio.input_conditioner")
    vit = VisionTransformer(**SIZES, num_classes=0, global_pool="token", norm_layer=NORM)
    vit.norm = vit.head = nn.Identity()
    cpe.enable_cpe(vit, max_img_size=48, num_cls_tokens=3, register_multiple=8, num_registers=None)
    model = nn.Module()
    model.base_model, model.input_conditioner = vit, conditioner.get_default_conditioner()
    given = {key: value for key, value in model.state_dict().items() if "conditioner" in key}
    found = case(model, "NVlabs/RADIO c0f3701", given)
    for size in (SAME, WIDE, (48, 48)):
        with torch.no_grad():
            look(found, vit.forward_features(image(*size)), size, vit.patch_generator.num_skip)
    write("radio", found)


def franca(root: Path) -> None:
    sys.path.insert(0, str(root))
    vit = importlib.import_module("franca.models.vision_transformer")
    model = vit.DinoVisionTransformer(
        **{**SIZES, "img_size": 56, "patch_size": 14}, init_values=1.0, block_chunks=2, ffn_layer="swiglufused"
    )
    found = case(model, "valeoai/Franca 24f8c60")
    for size in ((56, 56), (70, 84)):
        look(found, hooked(model, model.norm, image(*size)), size)
    write("franca", found)


def ibot(root: Path) -> None:
    sys.path.insert(0, str(root))
    vit = importlib.import_module("models.vision_transformer")
    head = importlib.import_module("models.head")
    wrapper = importlib.import_module("utils").MultiCropWrapper
    encoder = vit.VisionTransformer(**{**SIZES, "img_size": [SIDE]}, norm_layer=NORM, return_all_tokens=True)
    heads = head.iBOTHead(WIDTH, 16, patch_out_dim=16, norm=None, act="gelu", norm_last_layer=True, shared_head=True)
    model = wrapper(encoder, heads)
    found = case(model, "bytedance/ibot da316d8, its teacher")
    for size in (SAME, WIDE):
        look(found, hooked(encoder, encoder.norm, image(*size)), size)
    write("ibot", found)


def tips(root: Path) -> None:
    xformers = types.ModuleType("xformers.ops")
    sys.modules.setdefault("xformers.ops", xformers)
    sys.path.insert(0, str(root / "pytorch"))
    vit = importlib.import_module("image_encoder")
    model = vit.VisionTransformer(
        **{**SIZES, "img_size": 56, "patch_size": 14}, init_values=1.0, block_chunks=0, ffn_layer="mlp",
        num_register_tokens=1, interpolate_antialias=True, interpolate_offset=0.0
    )  # fmt: skip
    found = case(model, "google-deepmind/tips 4db271d")
    for size in ((56, 56), (70, 84)):
        look(found, hooked(model, model.norm, image(*size)), size, 2)
    write("tips", found)


def data2vec(root: Path) -> None:
    sys.modules.setdefault("timm.models.registry", types.SimpleNamespace(register_model=lambda made: made))
    sys.path.insert(0, str(root / "beit"))
    method = importlib.import_module("modeling_cyclical")
    model = method.VisionTransformerForCyclicalTraining(
        **SIZES, norm_layer=NORM, init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True
    )
    found = case(model, "facebookresearch/data2vec_vision 6146726")
    with torch.no_grad():
        tokens = model.forward_features(image(*SAME), torch.zeros(1, 16, dtype=torch.bool), None)
    look(found, tokens, SAME)
    write("data2vec", found)


def aimv2(root: Path) -> None:
    sys.path[:0] = [str(root / "aim-v1"), str(root / "aim-v2")]  # two halves of one package without __init__
    vit = importlib.import_module("aim.v2.torch.models")
    sizes = {"patch_size": PATCH, "embed_dim": WIDTH, "mlp_hidden_dim": 176, "num_blocks": DEPTH, "num_heads": 1}
    for name, kind, images in (("aimv2", "absolute", (SAME,)), ("aimv2_native", "sincos", (SAME, WIDE, (128, 128)))):
        model = vit.AIMv2VisionEncoder(img_size=SIDE, **sizes, pos_embed_type=kind)
        found = case(model, "apple/ml-aim bd9e068")
        for size in images:
            with torch.no_grad():
                look(found, model(image(*size)), size, prefix=0)
        write(name, found)


def aim(root: Path) -> None:
    sys.path.insert(0, str(root / "aim-v1"))
    vit = importlib.import_module("aim.v1.torch.models")
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "num_blocks": DEPTH, "num_heads": 1}
    model = vit.AIM(*vit._aim(**sizes, probe_layers=1, num_classes=3))
    found = case(model, "apple/ml-aim bd9e068")
    for size in (SAME, WIDE, (128, 128)):
        with torch.no_grad():
            last = model.extract_features(image(*size))[-1]
            look(found, model.trunk.post_trunk_norm(last), size, prefix=0)
    write("aim", found)


def open_clip(_root: Path) -> None:
    clip = importlib.import_module("open_clip.model")
    vision = {"layers": DEPTH, "width": WIDTH, "head_width": WIDTH, "patch_size": PATCH, "image_size": SIDE}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
    model = clip.CLIP(16, clip.CLIPVisionCfg(**vision), clip.CLIPTextCfg(**text), quick_gelu=True)
    found = case(model, "open_clip 3.3.0")
    visual, caught = model.visual, list[Tensor]()
    visual.transformer.register_forward_hook(lambda _module, _input, output: caught.append(output))
    with torch.no_grad():
        visual(image(*SAME))
        look(found, visual.ln_post(caught[-1]), SAME)
    write("open_clip", found)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))

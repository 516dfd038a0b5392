"""ViTDet from traits, against the originals' own numbers: golden/vitdet_any.json, whose `rule` and `sources` say how.

EVA-02's and the Perception Encoder's detectors, RF-DETR, RADIO's windows, SAM's encoder, BEiT in ViT-Adapter, DINOv3
and timm's encoders, all tiny, square and not; and `proposed`, a slow reference on timm's blocks that equals RADIO and
RF-DETR to 1e-15, for what no original has (every prefix and both origins of rotary positions in each family).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.backbones.checkpoints.families.dinov3 import split_bias
from mimbench.backbones.config import Rope, Traits, ViT
from mimbench.backbones.relative_table import geometric_axis, resize_relative
from mimbench.backbones.vitdet import ViTDet

GOLDEN = json.loads((Path(__file__).parent / "golden/vitdet_any.json").read_text())
CASES: dict[str, Any] = GOLDEN["cases"]
TINY = ViT(32, 4, 2, patch=8, image=32)
PLAIN = Traits()
DINOV2 = Traits(layer_scale=True)
DINOV3 = Traits(positions="rope", registers=4, layer_scale=True, norm_eps=1e-5)
EVA02 = Traits(rope=Rope(16), key_bias=False, mlp="swiglu_split", hidden=85, mlp_norm=True)
CLIP = Traits(pre_norm=True, patch_bias=False, norm_eps=1e-5)
QUICK = replace(CLIP, activation="quick_gelu")
PE = replace(CLIP, rope=Rope(14, order="xy", offset=1.0))
PE_DETECTOR = replace(CLIP, class_token=False, rope=Rope(4, order="xy"))
BEIT = Traits(positions="relative", layer_scale=True)
TIMM = {
    "dinov2": DINOV2,
    "dinov2_reg4": replace(DINOV2, registers=4),
    "dinov2_swiglu": replace(DINOV2, mlp="swiglu", hidden=85),
    "dinov3_qkvb": DINOV3,
    "dinov3_swiglu": replace(DINOV3, mlp="swiglu_split"),
    "eva02": EVA02,
    "eva02_clip": replace(EVA02, attention_norm=True),
    "pe_core_cls": PE,
    "pe_core_nocls_ls": replace(CLIP, class_token=False, layer_scale=True, rope=Rope(32, order="xy")),
    "clip_quickgelu": QUICK,
    "siglip2_tanh": Traits(class_token=False, activation="gelu_tanh"),
    "aimv2": Traits(
        class_token=False, mlp="swiglu_split", qkv_bias=False, proj_bias=False, mlp_bias=False, norm="rms",
        norm_eps=1e-5, patch_norm=True,
    ),
    "deit3": DINOV2,
    "beit": BEIT,
}  # fmt: skip
NAMES = (  # the originals' names as ours
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.(c_fc|lin1)\.", ".mlp.fc1."),
    (r"\.mlp\.(c_proj|lin2)\.", ".mlp.fc2."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"^storage_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attn.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"\.attn\.([qv])_proj\.bias$", r".attn.\1_bias"),
    (r"\.gamma([12])$", r".ls\1.gamma"),
)


def original_weights(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters of the original by its names, as the file's `rule` fills them."""
    weights = {}
    for rank, (name, shape) in enumerate(sorted(map(tuple, GOLDEN["parameters"][case["params"]]), key=lambda p: p[0])):
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        one = len(shape) == 1 and (name.endswith("weight") or "gamma" in name or "lambda" in name)
        weights[name] = (0.05 * torch.sin(0.37 * index + 1.3 * rank) + float(one)).view(shape)
    return weights


def ours(weights: Mapping[str, Tensor], traits: Traits) -> dict[str, Tensor]:
    """The same by our names, without what is no part of the encoder."""
    made: dict[str, Tensor] = {}
    for key, value in weights.items():
        renamed = key
        for rule, name in NAMES:
            renamed = re.sub(rule, name, renamed)
        made[renamed] = value
    for key in [key for key in made if key.endswith(".attn.q_proj.weight")]:
        at = key.removesuffix("q_proj.weight")
        made[f"{at}qkv.weight"] = torch.cat([made.pop(f"{at}{part}_proj.weight") for part in "qkv"])
        if f"{at}k_proj.bias" in made:
            parts = (made.pop(f"{at}q_bias"), made.pop(f"{at}k_proj.bias"), made.pop(f"{at}v_bias"))
            made[f"{at}qkv.bias"] = torch.cat(parts)
    if traits.gammas:
        made = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key): value for key, value in made.items()}
    if traits.positions == "rope":
        kept = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)]).double()  # its keys have no bias
        made, _ = split_bias({**made, **{f"{key}_mask": kept for key in made if key.endswith("qkv.bias")}})
        made["rope.periods"] = 100.0 ** (torch.arange(4, dtype=torch.float64) / 4)
    if made.get("pos_embed", torch.empty(0)).ndim == 4:
        made["pos_embed"] = made["pos_embed"].flatten(1, 2)
    if "pos_embed" in made and traits.class_token and made["pos_embed"].shape[1] % 2 == 0:
        made["pos_embed"] = F.pad(made["pos_embed"], (0, 0, 1, 0))
    unwanted = r"(embeddings\.)?mask_token|neck\..*|fc_norm\..*|rope\.freqs"
    return {key: value for key, value in made.items() if not re.fullmatch(unwanted, key)}


class SingleTable(ViTDet):
    """timm and transformers resize the position table in single precision, whatever the model's."""

    def _positions(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        same = grid == (self.vit.grid, self.vit.grid)
        return super()._positions(table if same else table.float(), grid).double()


def the_map(
    vit: ViT,
    traits: Traits,
    state: Mapping[str, Tensor],
    size: tuple[int, int],
    kind: type[ViTDet] = SingleTable,
    **options: Any,
) -> Tensor:
    """ViTDet's map of the file's images in double precision."""
    model = kind(vit, traits, **{"image": 96, "rel_pos": False, **options}).double().eval()
    model.load_encoder(state, traits)
    with torch.no_grad():
        made: Tensor = model(images(*size))
    return made


def images(height: int, width: int) -> Tensor:
    n = torch.arange(2 * 3 * height * width, dtype=torch.float64)
    return (torch.sin(0.013 * n) + 0.5 * torch.cos(0.0071 * n)).view(2, 3, height, width)


def check(made: Tensor, recorded: Mapping[str, Any], rel: float = 1e-9) -> None:
    assert list(made.shape) == recorded["shape"]
    height, width = made.shape[2:]
    assert made[0, :4, 0, 0].tolist() == pytest.approx(recorded["first"], rel=rel, abs=rel)
    assert made[0, :4, height // 2, width // 2].tolist() == pytest.approx(recorded["mid"], rel=rel, abs=rel)
    assert made[-1, -4:, -1, -1].tolist() == pytest.approx(recorded["last"], rel=rel, abs=rel)
    assert made.abs().sum().item() == pytest.approx(recorded["abs_sum"], rel=rel)
    assert made.sum().item() == pytest.approx(recorded["sum"], rel=rel, abs=rel * recorded["abs_sum"])


def size_of(name: str) -> tuple[int, int]:
    """Height and width of the images of a case: its name's 96x64, 96 x 96 where it has none."""
    found = re.search(r"(\d+)x(\d+)", name)
    return (int(found[1]), int(found[2])) if found else (96, 96)


def of(group: str, *never: str) -> list[str]:
    return [name for name in CASES if name.startswith(f"{group}/") and not any(word in name for word in never)]


@pytest.mark.parametrize("name", of("eva02_det"))
def test_eva02s_detector(name: str) -> None:
    case, config = CASES[name], CASES[name]["config"]
    traits = replace(EVA02, rope=Rope(config["pt_hw_seq_len"]))
    state = ours(original_weights({"params": "P00"}), traits)
    blocks = [block for block in range(4) if block not in config["window_block_indexes"]]
    options = {"window": config["window_size"], "global_blocks": blocks}
    made = the_map(TINY, traits, state, (96, 96), ViTDet, **options)
    check(made, case["out"], rel=1e-6)  # its tables are in single precision


@pytest.mark.parametrize("name", of("pe_det"))
def test_the_perception_encoders_detector(name: str) -> None:
    case, config = CASES[name], CASES[name]["config"]
    traits = replace(PE_DETECTOR, layer_scale="init_values" in config)
    options = {"window": config["window_size"], "global_blocks": (1, 3)}
    positions = "tile" if config["tile_posemb"] else "resize"
    made = the_map(TINY, traits, ours(original_weights(case), traits), (96, 96), ViTDet, positions=positions, **options)
    check(made, case["out"], rel=1e-6)  # as above


@pytest.mark.parametrize("name", of("rf_detr"))
def test_rf_detrs_windows(name: str) -> None:
    case, config, size = CASES[name], CASES[name]["config"], size_of(name.rsplit("_", maxsplit=1)[-1])
    traits = replace(DINOV2, registers=config["num_register_tokens"])
    window = (size[0] // 8 // config["num_windows"], size[1] // 8 // config["num_windows"])
    options = {"prefix": "copies", "norm": True, "interpolation": "bicubic-antialias", "global_blocks": (1, 3)}
    made = the_map(TINY, traits, ours(original_weights(case), traits), size, window=window, **options)
    check(made, case["out"])


@pytest.mark.parametrize("name", of("radio_hook"))
def test_radios_windows(name: str) -> None:
    case = CASES[name]
    traits = replace(DINOV2, registers=2)
    found = re.search(r"window(\d)_global\[([\d, ]+)\]", name)
    window, blocks = (int(found[1]), json.loads(f"[{found[2]}]")) if found else (4, range(4))
    state = ours(original_weights({"params": "P05"}), traits)
    model = SingleTable(TINY, traits, image=96, rel_pos=False, window=window, global_blocks=blocks, prefix="global",
                        interpolation="bicubic-antialias", norm=True).double()  # fmt: skip
    model.load_encoder(state, traits)
    tokens, prefix = model.encode(images(*size_of(name.rsplit("_", maxsplit=1)[-1])))
    check(tokens.permute(0, 3, 1, 2), case["out"])
    assert prefix is not None
    assert prefix.sum().item() == pytest.approx(case["prefix_sum"], abs=1e-9)


@pytest.mark.parametrize("name", of("detectron2_sam_hf"))
def test_detectron2s_and_sams(name: str) -> None:
    case, config = CASES[name], CASES[name]["config"]
    weights = original_weights(case)
    vit = replace(TINY, image=96) if "sam_" in name.split("/")[1] else TINY
    traits = replace(PLAIN, class_token=weights["pos_embed"].ndim == 3)
    model = ViTDet(vit, traits, image=96, window=config["window_size"], global_blocks=(1, 3),
                   rel_pos=config["use_rel_pos"]).double()  # fmt: skip
    state = ours(weights, traits)
    model.load_encoder({key: value for key, value in state.items() if ".rel_pos_" not in key}, traits)
    model.load_state_dict({key: value for key, value in state.items() if ".rel_pos_" in key}, strict=False)
    made = model(images(*size_of(name.rsplit("_", maxsplit=1)[-1])))
    if "neck.0.weight" in weights:
        made = F.conv2d(made, weights["neck.0.weight"])
        made = _channel_norm(made, weights["neck.1.weight"], weights["neck.1.bias"])
        made = F.conv2d(made, weights["neck.2.weight"], padding=1)
        made = _channel_norm(made, weights["neck.3.weight"], weights["neck.3.bias"])
    check(made, case["out"])


def _channel_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(maps.permute(0, 2, 3, 1), weight.shape, weight, bias, eps=1e-6).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", of("beit_windows", "vitadapter_layerscale_window5"))  # whose filling is another: zeros
def test_beit_in_vit_adapter(name: str) -> None:
    case, config = CASES[name], CASES[name]["config"]
    windows = [side or 0 for side in config["window_size"]]
    traits = BEIT if config.get("use_rel_pos_bias") else DINOV2
    state = ours(original_weights(case), traits)
    blocks = [block for block, side in enumerate(windows) if side != windows[0]]
    options = {"window": windows[0], "global_blocks": blocks, "rel_pos": False, "abs_pos": False}
    model = ViTDet(TINY, traits, image=96, **options).double()
    model.load_encoder(state, traits)
    for block, side in zip(model.blocks, windows, strict=True):
        block.attn.window = side  # its larger windows, too, are filled where they stick out
    check(model(images(*size_of(name.rsplit("_", maxsplit=1)[-1]))), case["out"])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", [*of("dinov3_authors"), *of("timm_plain")])
def test_with_all_blocks_global_it_is_the_plain_encoder(name: str, norm: bool) -> None:
    case, group = CASES[name], name.split("/", maxsplit=1)[0]
    family, size = name.split("/")[1].rsplit("_", 1)
    traits = TIMM[{"mlp": "dinov3_qkvb", "swiglu": "dinov3_swiglu"}.get(family, family)]
    if family == "swiglu":
        traits = replace(traits, hidden=88)
    vit = replace(TINY, depth=4 if group == "dinov3_authors" else 3)
    state = ours(original_weights(case), traits)
    state = {key: _square(value) if key.endswith("bias_table") else value for key, value in state.items()}
    state = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32), **state}
    options = {"global_blocks": range(vit.depth), "prefix": "global", "interpolation": "bicubic-antialias"}
    norm = norm and "norm.weight" in {key for key, _ in GOLDEN["parameters"][case["params"]]}
    if traits.norm == "rms":
        del state["norm.bias"]
    rel = 1e-6 if traits.rotary else 1e-9  # rotary tables are in single precision there
    image = 32 if size == "32x32" else 96
    made = the_map(vit, traits, state, size_of(size), norm=norm, **{**options, "image": image})
    check(made, case["after_norm" if norm else "before_norm"], rel)


def _square(table: Tensor) -> Tensor:
    """A table for 12 x 8 patches in the middle of one for 12 x 12; the rest of that is never looked at."""
    if len(table) != 23 * 15 + 3:
        return table
    middle = F.pad(table[:-3].view(23, 15, 2), (0, 0, 4, 4), value=float("nan"))
    return torch.cat([middle.flatten(0, 1), table[-3:]])


@pytest.mark.parametrize("name", of("proposed", "params"))
def test_every_prefix_and_origin_of_rotary_positions(name: str) -> None:
    _, family, size, window, prefix, rope = name.split("/")
    traits = TIMM[family]
    state = ours(original_weights(CASES[f"proposed/{family}/params"]), traits)
    options = {"prefix": prefix.split("=")[1], "rope_windows": rope.split("=")[1], "global_blocks": (1, 3)}
    options |= {"window": int(window[-1]), "interpolation": "bicubic-antialias"}
    made = the_map(TINY, traits, state, size_of(size), **options)
    check(made, CASES[name]["out"], 1e-6 if traits.rope else 1e-9)  # timm's tables of these are in single precision


@pytest.mark.parametrize("case", GOLDEN["relative_tables"]["scipy_cubic"]["rows"])
def test_a_table_is_stretched_as_by_beit(case: str) -> None:
    side, new = map(int, case.split("->"))
    recorded = GOLDEN["relative_tables"]["scipy_cubic"]["rows"][case]
    rows = (2 * side - 1) ** 2 + 3
    table = 0.25 * torch.sin(0.37 * torch.arange(2 * rows, dtype=torch.float64)).view(rows, 2)
    assert geometric_axis(side, new)[-1].item() == pytest.approx(recorded["reach"], rel=1e-12)
    made = resize_relative(table, (new, new))
    assert torch.equal(made[-3:], table[-3:])
    assert made[:-3, 0].sum().item() == pytest.approx(recorded["sum"], rel=1e-6)  # it reads tables in single precision
    assert made[:4, 0].tolist() == pytest.approx(recorded["row0"], abs=1e-7)
    if new % 2 == side % 2 == 0:
        middle = (2 * new - 1) ** 2 // 2
        assert made[middle, 0].item() == pytest.approx(recorded["centre"][0], rel=1e-9)


@pytest.mark.parametrize("case", GOLDEN["relative_tables"]["timm_linear"])
def test_a_table_is_stretched_linearly_as_by_timm(case: str) -> None:
    recorded = GOLDEN["relative_tables"]["timm_linear"][case]
    old, new = (tuple(map(int, re.findall(r"\d+", side))) for side in case.split("->"))
    rows = (2 * old[0] - 1) ** 2 + 3
    table = 0.25 * torch.sin(0.37 * torch.arange(2 * rows, dtype=torch.float64)).view(rows, 2)
    made = resize_relative(table, (new[0], new[1]), "linear")
    assert list(made.shape) == recorded["shape"]
    assert made.sum().item() == pytest.approx(recorded["sum"], rel=1e-5)
    assert made[-3:].flatten().tolist() == pytest.approx(recorded["extra"], rel=1e-12)

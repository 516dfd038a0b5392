"""Folders of Hugging Face's transformers: what lies in them, what goes out as one, and the content hashes of both."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copy

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, save_encoder
from mimbench.backbones.checkpoints.export import export_encoder
from mimbench.backbones.config import Rope, Traits, ViT
from mimbench.backbones.content import content_hash, content_hashes
from mimbench.backbones.positions import sincos_2d
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.weights import open_weights
from tests.backbones.transformers_cases import (
    CASES,
    built,
    changed,
    feature_map,
    last_hidden_state,
    post_normed,
)


def test_a_key_goes_where_it_is_joined(folders: dict[str, tuple[PreTrainedModel, Path]]) -> None:
    entries = {entry.key: entry.to for entry in open_weights(folders["vit"][1]).report().keys}
    block = "encoder.layer.1.attention.attention"
    for part in ("query", "key", "value"):
        assert entries[f"{block}.{part}.weight"] == "blocks.1.attn.qkv.weight"
        assert entries[f"{block}.{part}.bias"] == "blocks.1.attn.qkv.bias"
    gated = {entry.key: entry.to for entry in open_weights(folders["aimv2_native"][1]).report().keys}
    for theirs, ours in (("gate_proj", "fc1_g"), ("up_proj", "fc1_x"), ("down_proj", "fc2")):
        assert gated[f"encoder.layers.1.ffn.{theirs}.weight"] == f"blocks.1.mlp.{ours}.weight"
    assert {entry.to for entry in open_weights(folders["deit"][1]).report().keys if "distil" in entry.key} == {
        "reg_token"
    }


def test_the_image_processor_tells_mean_and_deviation(
    folders: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    folder = changed(folders["dinov2"][1], tmp_path / "dinov2")
    assert "assumed" in " ".join(open_weights(folder).report().notes)
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    for file, content, mean, std in (
        ("processor_config.json", {"image_processor": numbers}, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        ("preprocessor_config.json", {**numbers, "rescale_factor": 1 / 255}, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        ("preprocessor_config.json", {**numbers, "rescale_factor": 1 / 127.5}, (0.05, 0.1, 0.15), (0.25, 0.3, 0.35)),
        ("preprocessor_config.json", {"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
    ):
        (folder / file).write_text(json.dumps(content))
        info = open_weights(folder).info
        assert info.mean == pytest.approx(mean)
        assert info.std == pytest.approx(std)
    (folder / "preprocessor_config.json").write_text(json.dumps({**numbers, "image_mean": [0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"image_mean=.* not a number for each of 3 colours"):
        open_weights(folder).require()


def test_an_encoder_in_several_files_is_the_same(
    folders: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    model, whole = folders["vit"]
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shards = sorted((tmp_path / "shards").glob("model-*"))
    assert len(shards) > 2
    bins = tmp_path / "bins"
    bins.mkdir()
    copy(whole / "config.json", bins)
    state = open_weights(whole).opened.weights
    places = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(state)}
    for name in set(places.values()):
        torch.save({key: state[key].clone() for key in state if places[key] == name}, bins / name)
    (bins / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    one = changed(whole, tmp_path / "renamed")
    (one / "model.safetensors").rename(one / "encoder.safetensors")
    hashes = [content_hash(path) for path in (whole, tmp_path / "shards", bins, one / "encoder.safetensors")]
    assert len(set(hashes)) == 1
    for name in set(places.values()):
        (bins / name).unlink()
    with pytest.raises(
        ValueError, match=r"pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin, which are"
    ):
        content_hash(bins)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"{shards[1].name}, which is not beside it; fetch all {len(shards)} files"):
        open_weights(tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors.index.json"):
        open_weights(tmp_path / "shards")
    (one / "config.json").unlink()
    with pytest.raises(ValueError, match=r"whose config\.json tells heads"):
        open_weights(one / "encoder.safetensors").require()


def test_the_authors_file_and_the_folder_have_one_content_hash(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    names = [("embeddings.cls_token", "cls_token"), ("embeddings.position_embeddings", "pos_embed")]
    names += [("embeddings.mask_token", "mask_token"), ("embeddings.patch_embeddings.projection", "patch_embed.proj")]
    names += [("encoder.layer.", "layers."), ("layers.", "blocks."), ("layer_scale1.lambda1", "ls1.gamma")]
    names += [("layer_scale2.lambda1", "ls2.gamma"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2")]
    names += [("layernorm", "norm"), ("attention.o_proj", "attn.proj"), ("attention.", "attn.")]
    for kind, patch, family in (("dinov2", 14, "dinov2"), ("vit_mae", 16, "mae")):
        torch.manual_seed(0)
        sizes = {**wide, "patch_size": patch, "image_size": 4 * patch, "layer_norm_eps": 1e-6}
        model = built(kind, sizes)
        if kind == "vit_mae":  # a new model has zeros, the released files MAE's fixed table
            model.embeddings.position_embeddings.data.copy_(sincos_2d(64, (4, 4)))
        model.save_pretrained(tmp_path / kind)
        authors = {}
        for key, value in model.state_dict().items():
            name = key
            for old, new in names:
                name = name.replace(old, new)
            authors[name.replace("attn.attn.", "attn.")] = value
        for key in [key for key in authors if ".q_proj." in key]:
            parts = [authors.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            authors[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        torch.save({"model": authors}, tmp_path / f"{kind}.pth")
        found = open_weights(tmp_path / f"{kind}.pth"), open_weights(tmp_path / kind)
        assert [weights.family for weights in found] == [family, family]
        assert content_hash(tmp_path / f"{kind}.pth") == content_hash(tmp_path / kind)
        other = changed(tmp_path / kind, tmp_path / f"{kind}_eps", layer_norm_eps=1e-12)
        assert content_hashes(other).tensors == content_hashes(tmp_path / kind).tensors
        assert content_hash(other) != content_hash(tmp_path / kind)


def test_a_config_of_another_file_is_left_alone(
    folders: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    """An encoder by its authors' names keeps its family where a config of transformers lies in the same folder."""
    folder = changed(folders["vit"][1], tmp_path / "both", image_size=64)
    state, info = open_weights(folders["vit"][1]).encoder, open_weights(folders["vit"][1]).info
    save_encoder(folder / "ours.safetensors", state, info)
    assert open_weights(folder / "ours.safetensors").info == info
    assert content_hash(folder / "ours.safetensors") == content_hash(folders["vit"][1])


GOES_OUT = (
    *("vit", "deit", "ijepa", "beit_tables", "beit_normed", "dinov2", "dinov2_gated", "dinov2_registers"),
    *("dinov3", "dinov3_gated", "clip", "siglip", "vitdet", "vitdet_windows", "vitdet_without_tables"),
    *("vitdet_everywhere", "sam_hq", "aimv2", "aimv2_biases", "aimv2_native"),
)


@pytest.mark.parametrize("name", GOES_OUT)
def test_what_goes_out_is_loaded_by_the_library(
    name: str, folders: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    case, folder = CASES[name], folders[name][1]
    out = tmp_path / "out"
    made = export_encoder(folder, "huggingface", out)
    assert made.content == content_hash(folder)
    assert content_hash(out) == content_hash(folder)
    before, after = open_weights(folder), open_weights(out)
    assert after.vit == before.vit
    assert after.info == before.info
    loaded = AutoModel.from_pretrained(out).eval()
    assert type(loaded).__name__ in made.usage
    tokens = {"clip": post_normed, "vitdet": feature_map, "sam": feature_map}.get(case.family, last_hidden_state)
    images = torch.randn(2, 3, 32, 32)
    ours, _ = build_encoder(folder, ViT())
    with torch.no_grad():
        expected = ours.norm(ours.eval().encode(images))
        error = (tokens(loaded, images) - expected).abs().max() / expected.abs().max()
    assert error < 2e-6, f"{error:.1e}"


REFUSED = [
    ("crossmae", Traits(), False, "nearest is ViTModel, which cannot have final_norm=False"),
    ("eva02", Traits(rope=Rope(4)), True, "cannot have rope=Rope"),
    ("eva02", Traits(mlp="swiglu_split", mlp_norm=True), True, "cannot have mlp=swiglu_split, mlp_norm=True"),
    ("dinov2", Traits(layer_scale=True, hidden=100), True, "nearest is Dinov2Model, which cannot have hidden=100"),
    ("dinov3", Traits(positions="rope", layer_scale=True), True, "computes them from rope_theta"),
]


@pytest.mark.parametrize(("family", "traits", "final_norm", "said"), REFUSED)
def test_what_no_class_can_be_does_not_go_out(
    family: str, traits: Traits, final_norm: bool, said: str, tmp_path: Path
) -> None:
    vit = ViT(48, 2, 3, patch=8, image=32)
    state = dict(VisionTransformer(vit, final_norm, traits=traits).state_dict())
    if "rope.periods" in state:
        state["rope.periods"] = state["rope.periods"].bfloat16().float()  # as the authors' files have them
    save_encoder(tmp_path / "encoder.safetensors", state, EncoderInfo(family, vit, final_norm, traits=traits))
    with pytest.raises(ValueError, match="cannot be exported for huggingface") as refused:
        export_encoder(tmp_path / "encoder.safetensors", "huggingface", tmp_path / "out")
    assert said in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]

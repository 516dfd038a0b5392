"""Encoders of Hugging Face's transformers, tiny and random: features from their folders equal the library's own.

Heads, activation, eps and widths are not the defaults, and every weight is perturbed, so that each is seen in the
features. What ours cannot be is refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from mimbench.backbones.checkpoint import EncoderInfo, build_encoder, save_encoder
from mimbench.backbones.checkpoints.export import export_encoder
from mimbench.backbones.checkpoints.huggingface.family import family_of
from mimbench.backbones.checkpoints.huggingface.folder import NOT_THEIRS, Config
from mimbench.backbones.checkpoints.huggingface.models import MODEL_TYPES, TOWERS
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.config import Rope, Traits, ViT
from mimbench.backbones.content import content_hash, content_hashes
from mimbench.backbones.positions import sincos_2d
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet, vitdet_reason
from mimbench.backbones.weights import open_weights

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
ODD = {**TINY, "intermediate_size": 80, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}
RATIO = {**TINY, "mlp_ratio": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}
BIASES = {"qkv_bias": True, "mlp_bias": True}
SAM = {"mlp_dim": 80, "window_size": 3, "global_attn_indexes": [1], "output_channels": 8}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


def last_hidden_state(model: Any, images: Tensor) -> Tensor:
    """All tokens (B, T, D) as most classes return them."""
    return model(images).last_hidden_state


def resized(model: Any, images: Tensor) -> Tensor:
    """All tokens, of classes that resize their positions when they are asked to."""
    return model(images, interpolate_pos_encoding=True).last_hidden_state


def post_normed(model: Any, images: Tensor) -> Tensor:
    """CLIP's tokens, of which the library norms the class token alone."""
    return model.post_layernorm(model(images).last_hidden_state)


def flat_patches(model: Any, images: Tensor) -> Tensor:
    """SigLIP 2's tokens: it takes flat patches (rows, columns, colours) with a mask and the grid."""
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
    grid = torch.tensor([patches.shape[1:3]]).expand(len(images), 2)
    flat = patches.flatten(3).flatten(1, 2)
    return model(flat, torch.ones(flat.shape[:2]), spatial_shapes=grid).last_hidden_state


def feature_map(model: Any, images: Tensor) -> Tensor:
    """ViTDet's map (B, D, h, w) as tokens."""
    return model(images).last_hidden_state.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Case:
    """A model type, its config, and how the library gives its tokens."""

    kind: str  # model_type
    family: str
    config: dict[str, Any]
    tokens: Callable[[Any, Tensor], Tensor] = last_hidden_state
    at: dict[int, Callable[[Any, Tensor], Tensor]] = field(default_factory=dict)  # other sizes of images, in pixels


def unmasked(model: Any, images: Tensor) -> Tensor:
    """ViTMAE's tokens in their order: nothing is masked, and the noise that orders the patches rises."""
    patches = (images.shape[2] // 8) * (images.shape[3] // 8)
    noise = torch.arange(patches).float().expand(len(images), patches)
    return model(images, noise=noise, interpolate_pos_encoding=True).last_hidden_state


def before_the_neck(model: Any, images: Tensor) -> Tensor:
    """SAM's tokens after its last block; `last_hidden_state` is the neck's map."""
    caught: list[Tensor] = []
    encoder = model.vision_encoder
    handle = encoder.layers[-1].register_forward_hook(lambda _module, _input, made: caught.append(made))
    encoder(images)
    handle.remove()
    return caught[0].flatten(1, 2)


BOTH = {48: last_hidden_state}
CASES = {
    "vit": Case("vit", "vit", ODD, at={48: resized}),
    "vit_without_bias": Case("vit", "vit", {**ODD, "qkv_bias": False, "hidden_act": "quick_gelu"}),
    "vit_mae": Case("vit_mae", "mae", {**ODD, "mask_ratio": 0.0}, unmasked),
    "vit_msn": Case("vit_msn", "msn", ODD, at={48: resized}),
    "deit": Case("deit", "deit", ODD, at={48: resized}),
    "ijepa": Case("ijepa", "ijepa", ODD, at={48: resized}),
    "beit_tables": Case("beit", "beit", {**ODD, "use_relative_position_bias": True}),
    "beit_normed": Case("beit", "beit", {**ODD, "use_relative_position_bias": True, "use_mean_pooling": False}),
    "beit_shared": Case("beit", "beit", {**ODD, "use_shared_relative_position_bias": True}),
    "beit_absolute": Case("beit", "beit", {**ODD, "use_absolute_position_embeddings": True}, at=BOTH),
    "beit_unplaced": Case("beit", "beit", {**ODD, "layer_scale_init_value": 0.0}),
    "data2vec": Case("data2vec-vision", "data2vec", {**ODD, "use_relative_position_bias": True}),
    "dinov2": Case("dinov2", "dinov2", RATIO, at=BOTH),
    "dinov2_gated": Case("dinov2", "dinov2", {**RATIO, "use_swiglu_ffn": True, "qkv_bias": False}),
    "dinov2_registers": Case("dinov2_with_registers", "dinov2", {**RATIO, "num_register_tokens": 3}),
    "dinov3": Case("dinov3_vit", "dinov3", {**ODD, "num_register_tokens": 2, "rope_theta": 30.0}, at=BOTH),
    "dinov3_gated": Case("dinov3_vit", "dinov3", {**ODD, **GATED, "mlp_bias": False, "proj_bias": False}, at=BOTH),
    "clip": Case("clip_vision_model", "clip", ODD, post_normed),
    "metaclip_2": Case("metaclip_2_vision_model", "clip", {**ODD, "hidden_act": "quick_gelu"}, post_normed),
    "chinese_clip": Case("chinese_clip_vision_model", "clip", ODD, post_normed),
    "clipseg": Case("clipseg_vision_model", "clip", ODD, post_normed),
    "altclip": Case("altclip_vision_model", "clip", ODD, post_normed),
    "siglip": Case("siglip_vision_model", "siglip", {**ODD, "hidden_act": "gelu"}, at={48: resized}),
    "siglip2": Case("siglip2_vision_model", "siglip", {**ODD, "num_patches": 16}, flat_patches, at={48: flat_patches}),
    "aimv2": Case("aimv2_vision_model", "aimv2", {**ODD, "hidden_act": "silu", "rms_norm_eps": 1e-3}, at={}),
    "aimv2_biases": Case("aimv2_vision_model", "aimv2", {**ODD, "hidden_act": "silu", **BIASES}),
    "tipsv2": Case("tipsv2_vision_model", "tips", {**RATIO, "num_register_tokens": 1}),
    "sam": Case("sam_vision_model", "sam", {**ODD, **SAM}, before_the_neck),
    "sam_hq": Case("sam_hq_vision_model", "sam", {**ODD, **SAM, "mlp_ratio": 3.0, "mlp_dim": None}, before_the_neck),
    "vitdet": Case("vitdet", "vitdet", {**RATIO, "pretrain_image_size": 32}, feature_map, at={48: feature_map}),
}


TOWER_CLASSES = {  # of the model types that `AutoModel` does not build
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "altclip_vision_model": "AltCLIPVisionModel",
    "clipseg_vision_model": "CLIPSegVisionModel",
    "flava_image_model": "FlavaImageModel",
    "owlvit_vision_model": "OwlViTVisionModel",
}


def built(kind: str, config: dict[str, Any]) -> PreTrainedModel:
    """A tiny model of `model_type` kind."""
    settings = CONFIG_MAPPING[kind](**config)
    if kind in TOWER_CLASSES:
        model: PreTrainedModel = getattr(transformers, TOWER_CLASSES[kind])(settings)
        return model
    return AutoModel.from_config(settings)


def made(kind: str, config: dict[str, Any]) -> PreTrainedModel:
    """A tiny model, all of whose weights matter."""
    torch.manual_seed(0)
    model = built(kind, config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    """Each case's model and the folder that `save_pretrained` makes of it."""
    root = tmp_path_factory.mktemp("transformers")
    models = {name: made(case.kind, case.config) for name, case in CASES.items()}
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: (model, root / name) for name, model in models.items()}


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_librarys(name: str, folders: dict[str, tuple[PreTrainedModel, Path]]) -> None:
    case, (model, folder) = CASES[name], folders[name]
    for side, theirs in {32: case.tokens, **case.at}.items():
        ours, info = build_encoder(folder, ViT(), interpolation=None if name == "siglip2" else "bicubic")
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            tokens = ours.norm(ours.eval().encode(images))
            expected = theirs(model, images)
        assert info is not None
        assert info.family == case.family
        error = (tokens - expected).abs().max() / expected.abs().max()
        assert error < 2e-6, f"{error:.1e} at {side} pixels"


@pytest.mark.parametrize("name", CASES)
def test_vitdet_of_global_blocks_gives_the_librarys_patches(
    name: str, folders: dict[str, tuple[PreTrainedModel, Path]]
) -> None:
    case, (model, folder) = CASES[name], folders[name]
    found = open_weights(folder)
    assert vitdet_reason(found.traits) is None
    options: dict[str, Any] = {"rel_pos": False, "prefix": "global", "norm": found.info.final_norm}
    everywhere = None if found.traits.windows else range(found.vit.depth)
    backbone = ViTDet(found.vit, found.traits, image=32, global_blocks=everywhere, **options)
    backbone.load_encoder(found.encoder, found.traits)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        patches = case.tokens(model, images)[:, found.traits.prefix :]
        error = (backbone.eval()(images).flatten(2).mT - patches).abs().max() / patches.abs().max()
    assert error < 2e-6, f"{error:.1e}"


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """The folder with other values in its config."""
    to.mkdir()
    (to / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **values}))
    return to


CONTRADICTIONS = [
    ("vit", {"hidden_size": 96}, "patches are embedded in 48 channels"),
    ("vit", {"num_hidden_layers": 3}, "there are 2 blocks"),
    ("vit", {"intermediate_size": 64}, "the MLP's first matrix has 80 rows, not 64"),
    ("vit", {"patch_size": 16}, "patches have sides of 8 pixels"),
    ("vit", {"image_size": 64}, "the position table has 17 rows, not 65"),
    ("vit", {"num_channels": 1}, "images have 3 channels"),
    ("vit", {"qkv_bias": False}, "the file has blocks.0.attn.qkv.bias"),
    ("vit_without_bias", {"qkv_bias": True}, "the file has no blocks.0.attn.qkv.bias"),
    ("vit", {"num_attention_heads": 5}, "does not divide hidden_size=48"),
    ("vit", {"head_dim": 8}, "only heads of hidden_size / num_attention_heads"),
    ("vit", {"hidden_act": "relu"}, "supported are gelu"),
    ("vit", {"image_size": [32, 64]}, "images and patches must be square"),
    ("vit", {"hidden_size": "48"}, "which is no number above 0"),
    ("vit", {"model_type": "hiera"}, "its stages have other widths and grids"),
    ("vit", {"model_type": "vit-of-tomorrow"}, "known model types are clip, "),
    ("vit", {"model_type": "siglip_vision_model"}, "the file has no patch embedding of it"),
    ("beit_tables", {"num_attention_heads": 6}, "relative positions are of 3 heads"),
    ("beit_tables", {"image_size": 64}, "has 52 rows, not 228"),
    ("beit_tables", {"use_relative_position_bias": False}, "the file has blocks.0.attn.relative_position_bias_table"),
    ("beit_tables", {"layer_scale_init_value": 0.0}, "the file has blocks.0.gamma_1"),
    ("beit_tables", {"use_absolute_position_embeddings": True}, "an encoder has one kind of positions"),
    ("dinov2", {"mlp_ratio": 4}, "the MLP's first matrix has 144 rows, not 192"),
    ("dinov2_registers", {"num_register_tokens": 4}, "there are 3 registers"),
    ("dinov3", {"key_bias": True}, "keys have no bias"),
    ("dinov3", {"num_attention_heads": 8}, "heads of a width that 4 divides"),
    ("siglip2", {"num_patches": 17}, "which is no square grid"),
    ("vitdet", {"window_size": 2, "window_block_indices": [0]}, "some blocks attend in windows"),
    ("vitdet", {"use_relative_position_embeddings": True}, "a plain encoder has no place"),
]


@pytest.mark.parametrize(("name", "values", "said"), CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_refused(
    name: str,
    values: dict[str, Any],
    said: str,
    folders: dict[str, tuple[PreTrainedModel, Path]],
    tmp_path: Path,
) -> None:
    folder = changed(folders[name][1], tmp_path / name, **values)
    with pytest.raises(ValueError, match=r"config\.json says") as refused:
        open_weights(folder, allow_partial=True).require()
    key = next(iter(values))
    assert f"{key}=" in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_goes_where_it_is_joined(folders: dict[str, tuple[PreTrainedModel, Path]]) -> None:
    entries = {entry.key: entry.to for entry in open_weights(folders["vit"][1]).report().keys}
    block = "encoder.layer.1.attention.attention"
    for part in ("query", "key", "value"):
        assert entries[f"{block}.{part}.weight"] == "blocks.1.attn.qkv.weight"
        assert entries[f"{block}.{part}.bias"] == "blocks.1.attn.qkv.bias"
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
    *("dinov3", "dinov3_gated", "clip", "siglip", "vitdet"),
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
    tokens = {"clip": post_normed, "vitdet": feature_map}.get(case.family, last_hidden_state)
    images = torch.randn(2, 3, 32, 32)
    ours, _ = build_encoder(folder, ViT())
    with torch.no_grad():
        expected = ours.norm(ours.eval().encode(images))
        error = (tokens(loaded, images) - expected).abs().max() / expected.abs().max()
    assert error < 2e-6, f"{error:.1e}"


REFUSED = [
    ("crossmae", Traits(), False, "nearest is ViTModel, which cannot have final_norm=False"),
    ("eva02", Traits(rope=Rope(4)), True, "cannot have rope=Rope"),
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


OTHERS = {  # what else transformers has that looks like a ViT, by model type, with what makes it tiny
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "dpt": {"backbone_out_indices": [0, 1, 1, 1]},
    "flava_image_model": {},
    "mlcd_vision_model": {},
    "owlvit_vision_model": {},
    "pixio": {"mlp_ratio": 2},
    "internvl_vision": {},
    "sam3_vit_model": {"window_size": 2, "global_attn_indexes": [1], "rope_theta": 10.0},
    "videoprism_vision_model": {"num_frames": 2},
    "videomae": {"num_frames": 4},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 4},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_looks_like_a_vit_and_is_none_of_ours_is_refused(kind: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[kind]()
    asked = {**ODD, **OTHERS[kind]}
    built(kind, {key: value for key, value in asked.items() if hasattr(config, key)}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"config.json says model_type={kind}, which is not supported") as refused:
        open_weights(tmp_path, allow_partial=True).require()
    assert "\n" not in str(refused.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_weights(tmp_path).require()


def test_every_model_type_of_the_library_is_tried_or_refused_by_its_name(tmp_path: Path) -> None:
    assert {case.kind for case in CASES.values()} == set(MODEL_TYPES)
    file = tmp_path / "model.safetensors"
    others = set(MODEL_MAPPING_NAMES) - {*MODEL_TYPES, *TOWERS, *NOT_THEIRS}
    assert len(others) > 300
    for name in others:
        weights = {"embeddings.patch_embeddings.projection.weight": torch.zeros(48, 3, 8, 8)}
        opened = Opened(
            file, "safetensors", 0, weights, "", config=Config(tmp_path / "config.json", {"model_type": name})
        )
        with pytest.raises(ValueError, match=f"model_type={name}, which is not supported"):
            family_of(opened)


def test_the_wrapper_of_timms_models_is_read_as_timms(tmp_path: Path) -> None:
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "patch_size": 8, "act_layer": "gelu_tanh"}
    config = CONFIG_MAPPING["timm_wrapper"](architecture="vit_base_patch16_siglip_gap_224", model_args=options)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({**values, "pretrained_cfg": statistics}))
    ours, info = build_encoder(tmp_path, ViT())
    assert info is not None
    assert (info.family, info.vit.heads, info.traits.activation) == ("siglip", 3, "gelu_tanh")
    assert (info.mean, info.std, info.assumed) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.timm_model.forward_features(images)
        assert (ours.norm(ours.eval().encode(images)) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_defaults_are_the_librarys() -> None:
    for name, kind in MODEL_TYPES.items():
        config = CONFIG_MAPPING[name]()
        assert {key: getattr(config, key) for key in kind.defaults} == {
            key: list(value) if isinstance(value, tuple) and isinstance(getattr(config, key), list) else value
            for key, value in kind.defaults.items()
        }, name
    for name, tower in TOWERS.items():
        assert CONFIG_MAPPING[name]().vision_config.model_type == tower

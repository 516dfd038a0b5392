"""Teachers against the authors' (transformers' models behind the authors' code), and where their weights come from.

How the golden numbers were made is in golden/maskalign.py.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import QuickGELU
from timm.models import VisionTransformer as TimmViT
from torch import Tensor, nn

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.positions import interpolate_rows
from mimbench.backbones.vit import VisionTransformer
from mimbench.pretrain.methods.teachers import Teacher, load_teacher

CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = "test_vit.r160_in1k"  # 160 pixels in patches of 16; 6 blocks 64 wide
LayerNorm = partial(nn.LayerNorm, eps=1e-5)


def sines(*shape: int, rate: float = 0.011) -> Tensor:
    return torch.sin(rate * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


@cache
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "maskalign.json").read_text())["teachers"]
    return found


def filled(**options: Any) -> TimmViT:
    """timm's plain ViT, 3 blocks 32 wide, with the weights of the golden numbers."""
    model = TimmViT(embed_dim=32, depth=3, num_heads=2, num_classes=0, **options).double().eval()
    state = model.state_dict()
    for name, value in state.items():
        wave = torch.sin(0.37 * torch.arange(value.numel(), dtype=torch.float64) + zlib.crc32(name.encode()) % 1000)
        state[name] = 0.05 * wave.view(value.shape) + float(value.ndim == 1 and name.endswith(".weight"))
    for name in ("pos_embed", "cls_token"):
        state[name] = 20 * state[name]
    model.load_state_dict(state)
    return model


def clip(**sizes: int) -> TimmViT:
    return filled(pre_norm=True, norm_layer=LayerNorm, act_layer=QuickGELU, **sizes)


def clip_at_196() -> TimmViT:
    """Positions of 16 x 16 patches brought to 14 x 14, as `load_teacher` does it."""
    table = clip(patch_size=14, img_size=224).state_dict()["pos_embed"]
    smaller = clip(patch_size=14, img_size=196)
    table = torch.cat([table[:, :1], interpolate_rows(table[:, 1:], 16, (14, 14))], dim=1)
    smaller.load_state_dict({**smaller.state_dict(), "pos_embed": table})
    return smaller


@pytest.mark.parametrize(
    ("name", "teacher", "images"),
    [
        ("clip", lambda: Teacher(clip(patch_size=8, img_size=32), 16, 32, *CLIP_COLOURS), sines(2, 3, 32, 32)),
        ("clip_large", lambda: Teacher(clip_at_196(), 196, 196, *CLIP_COLOURS), sines(2, 3, 224, 224, rate=0.0031)),
        ("dino", lambda: Teacher(filled(patch_size=8, img_size=32), 16, 32, *COLOURS), sines(2, 3, 32, 32)),
    ],
)
def test_teachers_are_the_authors(name: str, teacher: Callable[[], Teacher], images: Tensor) -> None:
    with torch.no_grad():
        layers, importance = teacher().double()(images, (0, 1, 2))
    for (before, patches), (*values, cls_value, total) in zip(layers, golden()[name]["layers"], strict=True):
        assert patches[1, 4, :4].tolist() == pytest.approx(values, rel=1e-5)
        assert before[0, 0, 3].item() == pytest.approx(cls_value, rel=1e-5)
        assert (before.abs().sum() + patches.abs().sum()).item() == pytest.approx(total, rel=1e-6)
    assert importance[0].tolist() == pytest.approx(golden()[name]["importance"], rel=1e-5)


def test_layers_come_in_the_order_asked_and_none_is_computed_for_nothing() -> None:
    network = filled(patch_size=8, img_size=32)
    teacher, called = Teacher(network, 16, 32, *COLOURS).double(), []
    for block in network.blocks:
        block.register_forward_hook(lambda *_: called.append(1))
    images = sines(1, 3, 32, 32)
    (first,), importance = teacher(images, (0,))
    assert len(called) == 2  # the last block's attention is read off its input
    (again, last), same = teacher(images, (0, 2))
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(again.patches, last.patches)
    assert torch.equal(importance, same)


def plain_attention(block: Any, tokens_BTC: Tensor) -> Tensor:
    """The class token's attention in `block`, every map of it made: (B, N)."""
    batch, length, width = tokens_BTC.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(tokens_BTC)).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    attention: Tensor = (qkv[0] @ qkv[1].transpose(-2, -1) / math.sqrt(width // heads)).softmax(-1)
    return attention[:, :, 0, 1:].mean(1)


def write_encoder(path: Path, vit: ViT, **about: Any) -> VisionTransformer:
    torch.manual_seed(3)
    encoder = VisionTransformer(vit)
    save_encoder(path, encoder.state_dict(), EncoderInfo("crossmae", vit, False, **about))
    return encoder


def test_an_encoder_of_ours_teaches(tmp_path: Path) -> None:
    vit = ViT(32, 3, 2, patch=8, image=32)
    encoder = write_encoder(tmp_path / "encoder.safetensors", vit)
    state = torch.random.get_rng_state()
    teacher = load_teacher(None, tmp_path / "encoder.safetensors", grid=4, image=None)
    assert torch.equal(torch.random.get_rng_state(), state), "the student's weights would depend on the teacher's"
    images = torch.randn(2, 3, 32, 32)
    (layer,), importance = teacher(images, (2,))
    maps = encoder.forward_tokens(images)
    assert torch.equal(torch.cat(layer, dim=1), maps[3])
    assert torch.allclose(importance, plain_attention(encoder.blocks[2], maps[2]), rtol=1e-5)


def test_colours_are_the_teachers_and_images_are_resized(tmp_path: Path) -> None:
    vit = ViT(32, 2, 2, patch=4, image=16)
    encoder = write_encoder(tmp_path / "e.safetensors", vit, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2))
    teacher = load_teacher(None, tmp_path / "e.safetensors", grid=4, image=None)
    colours = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in COLOURS)
    (layer,), _ = teacher((colours - mean) / std, (1,))
    small = torch.nn.functional.interpolate(colours, (16, 16), mode="bicubic")
    theirs = (small - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.25, 0.5, 0.2]).view(3, 1, 1)
    assert torch.allclose(torch.cat(layer, dim=1), encoder.forward_tokens(theirs)[2], atol=1e-4)


def test_grids_that_differ_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.safetensors", ViT(32, 2, 2, patch=8, image=32))
    with pytest.raises(ValueError, match=r"4 x 4 patches of 8 pixels in images of 32.*14 x 14.*teacher_image=112"):
        load_teacher(None, tmp_path / "encoder.safetensors", grid=14, image=None)
    with pytest.raises(ValueError, match="patches of 8 pixels in images of 30"):
        load_teacher(None, tmp_path / "encoder.safetensors", grid=4, image=30)
    assert load_teacher(None, tmp_path / "encoder.safetensors", grid=6, image=48).image == 48
    with pytest.raises(ValueError, match=r"vit_large_patch14\S* has 16 x 16 patches .*teacher_image=196"):
        load_teacher("vit_large_patch14_clip_quickgelu_224.openai", None, grid=14, image=None)


def test_what_cannot_teach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher=none .*checkpoint=FILE"):
        load_teacher(None, None, grid=4, image=None)
    with pytest.raises(
        ValueError, match=r"'openai/clip-vit-base-patch16' is not a timm model .* vit_base_patch16_clip_quickgelu"
    ):
        load_teacher("openai/clip-vit-base-patch16", None, grid=14, image=None)
    with pytest.raises(ValueError, match=r"resnet18\.a1_in1k must be a plain ViT"):
        load_teacher("resnet18.a1_in1k", None, grid=7, image=None)
    write_encoder(tmp_path / "e.safetensors", ViT(32, 1, 2, patch=8, image=32))
    with pytest.raises(ValueError, match="must be a plain ViT"):
        load_teacher(None, tmp_path / "e.safetensors", grid=4, image=None)


@pytest.fixture
def tiny() -> Any:
    """A model of timm's with weights that are drawn."""
    torch.manual_seed(5)
    return timm.create_model(TINY.partition(".")[0], num_classes=10).eval()


def test_weights_missing_from_the_cache_are_said_with_the_command_that_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = rf"{TINY} are not in timm's cache.*timm.create_model\('{TINY}', pretrained=True\).*checkpoint=FILE"
    with pytest.raises(FileNotFoundError, match=wanted):
        load_teacher(TINY, None, grid=10, image=None)


def test_a_timm_model_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    folder = tmp_path / f"models--timm--{TINY}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(tiny.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    teacher = load_teacher(TINY, None, grid=10, image=None)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        (layer,), importance = teacher(images, (teacher.depth - 1,))
        theirs = images * teacher.scale + teacher.shift
        expected = tiny.forward_intermediates(theirs, indices=2, intermediates_only=True, output_fmt="NLC")
    assert (teacher.depth, teacher.width, importance.shape) == (len(tiny.blocks), 64, (2, 100))
    assert torch.allclose(layer.patches, expected[-1], atol=1e-5)


def test_a_timm_model_comes_from_a_file_too(tmp_path: Path, tiny: Any) -> None:
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in tiny.state_dict().items()}}, tmp_path / "tiny.pth")
    teacher = load_teacher(TINY, tmp_path / "tiny.pth", grid=7, image=112)
    table = teacher.state_dict()["network.pos_embed"]
    rows = tiny.pos_embed.detach().half().float()
    assert torch.allclose(table[:, 1:], interpolate_rows(rows[:, 1:], 10, (7, 7)))
    assert all(value.dtype == torch.float32 for value in teacher.state_dict().values())
    assert teacher(torch.randn(1, 3, 112, 112), (0,))[1].shape == (1, 49)


def test_files_that_are_not_the_teachers_are_said(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        load_teacher(TINY, tmp_path / "nothing.pth", grid=10, image=None)
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth holds no weights of a timm model"):
        load_teacher(TINY, tmp_path / "page.pth", grid=10, image=None)
    torch.save({"weights": Dangerous()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth holds no weights .*opened safely"):
        load_teacher(TINY, tmp_path / "code.pth", grid=10, image=None)
    state = {name: value for name, value in tiny.state_dict().items() if name != "cls_token"}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"part.safetensors is not {TINY}: .*cls_token"):
        load_teacher(TINY, tmp_path / "part.safetensors", grid=10, image=None)


class Dangerous:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)

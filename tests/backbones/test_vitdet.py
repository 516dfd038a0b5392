"""ViTDet's encoder, attention and pyramid, against detectron2's numbers and against the plain form.

Golden numbers: detectron2 (02b5c4e2) in float64, image 128 (and 96 x 160, where windows stick out and every table is
resized), patch 16, width 32, 4 blocks of 4 heads, window 3 but for the last, pretraining image 64, 16 pyramid
channels. Weights: sort the names; element j of tensor i is 0.05 sin(0.37 j + 1.3 i), plus 1 for vectors named
"*.weight"; image: sin(0.011 * index).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.backbones.config import ViT
from mimbench.backbones.pyramid import ChannelNorm, SimpleFeaturePyramid
from mimbench.backbones.vit import VisionTransformer
from mimbench.backbones.vitdet import ViTDet
from mimbench.backbones.window_attention import (
    WindowAttention,
    attend,
    attend_by_rows,
    attend_folded,
    attend_masked,
)

TINY = ViT(32, 4, 4, patch=16, image=64)
LAST = {  # relative positions, height, width: sum, first three channels of the first patch
    (True, 128, 128): (-17.8960904017469, [-0.2513895453793868, -0.10596370249362089, -0.28881253873173546]),
    (True, 96, 160): (-18.2250891070939, [-0.28417437791988853, -0.1426493067714923, -0.23624544961587549]),
    (False, 128, 128): (-34.07098609757575, [0.1874032076319486, 0.19981870870064675, -0.14124096779973452]),
    (False, 96, 160): (-32.10895835772937, [0.1845579400041694, 0.25807914372009144, -0.12305440753731771]),
}
LEVELS = {  # the same: sum and sum of magnitudes of p2 .. p6
    (True, 128, 128): [
        (-29.713741007106062, 15120.21826157199),
        (8.41803542780643, 3963.2686533290653),
        (0.08108238322010414, 912.2326732353168),
        (-0.36482676627933563, 236.06130563623134),
        (-0.1601375967598968, 61.47975958198613),
    ],
    (True, 96, 160): [
        (-35.18142579883144, 13813.351787680502),
        (7.789304280842275, 3701.843810059398),
        (-0.3393325640241214, 865.3127008842716),
        (-0.33427138013398805, 220.81557407926636),
        (-0.1289439108645798, 87.75374017877132),
    ],
    (False, 128, 128): [
        (-33.53667777492769, 16110.915595103404),
        (-20.025438100113035, 3603.1558455354225),
        (-3.7533955070825744, 945.9240294237891),
        (1.0428653821731118, 220.98977027036014),
        (0.2545431880423502, 55.10728378739664),
    ],
    (False, 96, 160): [
        (-30.728533697489596, 15058.555791848637),
        (-18.63985107809168, 3377.3619524225837),
        (-3.519088929536566, 894.7945570057288),
        (0.9305898250444583, 207.73863001847928),
        (0.3254052356074846, 83.18572484976954),
    ],
}


def pyramid(rel_pos: bool) -> SimpleFeaturePyramid:
    """The pyramid of the golden numbers."""
    net = ViTDet(TINY, image=128, window=3, global_blocks=(3,), rel_pos=rel_pos)
    model = SimpleFeaturePyramid(net, 16).double()
    state = model.state_dict()
    for rank, key in enumerate(sorted(state)):
        index = torch.arange(state[key].numel(), dtype=torch.float64)
        bump = float(state[key].ndim == 1 and key.endswith(".weight"))
        state[key].copy_((0.05 * torch.sin(0.37 * index + 1.3 * rank) + bump).view_as(state[key]))
    return model


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("case", LAST)
def test_features_are_those_of_detectron2(case: tuple[bool, int, int], grad: bool) -> None:
    rel_pos, height, width = case
    model = pyramid(rel_pos)
    image = torch.sin(0.011 * torch.arange(3 * height * width, dtype=torch.float64)).view(1, 3, height, width)
    with torch.set_grad_enabled(grad):
        last, maps = model.net(image), model(image)
    assert last.sum().item() == pytest.approx(LAST[case][0], rel=1e-9)
    assert last[0, :3, 0, 0].tolist() == pytest.approx(LAST[case][1], rel=1e-9)
    for level, stride, (total, magnitude) in zip(maps, model.strides, LEVELS[case], strict=True):
        assert level.shape == (1, 16, -(-height // stride), -(-width // stride))
        assert level.sum().item() == pytest.approx(total, rel=1e-8, abs=1e-9)
        assert level.abs().sum().item() == pytest.approx(magnitude, rel=1e-10)


def test_names_are_those_of_detectron2() -> None:
    names = set(pyramid(True).state_dict())
    block = {f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.qkv", "attn.proj")
             for kind in ("weight", "bias")} | {"attn.rel_pos_h", "attn.rel_pos_w"}  # fmt: skip
    wanted = {f"net.blocks.{index}.{name}" for index in range(4) for name in block}
    wanted |= {"net.pos_embed", "net.patch_embed.proj.weight", "net.patch_embed.proj.bias"}
    both, conv = ("weight", "bias"), ("weight", "norm.weight", "norm.bias")
    layers = {2: [(0, both), (1, both), (3, both), (4, conv), (5, conv)], 3: [(0, both), (1, conv), (2, conv)],
              4: [(0, conv), (1, conv)], 5: [(1, conv), (2, conv)]}  # fmt: skip
    wanted |= {f"simfp_{level}.{at}.{name}" for level, of in layers.items() for at, names in of for name in names}
    assert names == wanted


def plain_attention(module: WindowAttention, tokens: Tensor) -> Tensor:
    """The slow, obvious form: one window after another, padding tokens of zero input, the whole matrix of logits."""
    images, height, width, _ = tokens.shape
    side_h, side_w = (module.window, module.window) if module.window else (height, width)
    padded = F.pad(tokens, (0, 0, 0, -width % side_w, 0, -height % side_h))
    out = torch.zeros_like(padded)
    for image in range(images):
        for top in range(0, padded.shape[1], side_h):
            for left in range(0, padded.shape[2], side_w):
                part = (image, slice(top, top + side_h), slice(left, left + side_w))
                out[part] = module.proj(_one_window(module, padded[part]))
    return out[:, :height, :width]


def _one_window(module: WindowAttention, tokens: Tensor) -> Tensor:
    height, width, channels = tokens.shape
    per_head = channels // module.heads
    q, k, v = module.qkv(tokens).view(height * width, 3, module.heads, per_head).permute(1, 2, 0, 3)
    logits = (q @ k.transpose(1, 2) * per_head**-0.5).view(module.heads, height, width, height, width)
    if module.rel_pos_h is not None and module.rel_pos_w is not None:
        query = q.view(module.heads, height, width, per_head)
        for y in range(height):
            for i in range(height):
                logits[:, y, :, i] += (query[:, y] @ module.rel_pos_h[y - i + height - 1])[..., None]
        for x in range(width):
            for j in range(width):
                logits[:, :, x, :, j] += (query[:, :, x] @ module.rel_pos_w[x - j + width - 1])[..., None]
    mixed = logits.flatten(3).flatten(1, 2).softmax(-1) @ v
    return mixed.transpose(0, 1).reshape(height, width, channels)


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize(("window", "grid"), [(3, (6, 6)), (4, (6, 9)), (0, (7, 7))])
def test_attention_is_the_plain_one(window: int, grid: tuple[int, int], rel_pos: bool) -> None:
    torch.manual_seed(0)
    module = WindowAttention(24, 3, window=window, grid=7, rel_pos=rel_pos).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    tokens = torch.randn(2, *grid, 24, dtype=torch.float64)
    plain, weight = plain_attention(module, tokens), torch.randn(2, *grid, 24, dtype=torch.float64)
    assert torch.allclose(module(tokens)[0], plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(module(tokens)[0], plain, rtol=0, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), list(module.parameters())) for out in (module(tokens)[0], plain)
    )
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("side", [5, 33])  # 33 * 33 tokens: large enough for a few rows at a time to be chosen
def test_every_form_gives_the_same_in_single_precision(side: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, side * side, 16).unbind(0)
    towards_h, towards_w = (0.2 * torch.randn(2, side, side, 16)).unbind(0)
    query = q.unflatten(2, (side, side))
    bias_h = torch.einsum("bnyxd,yid->bnyxi", query, towards_h).flatten(2, 3)
    bias_w = torch.einsum("bnyxd,xjd->bnyxj", query, towards_w).flatten(2, 3)
    bias = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2)
    scaled = q * 16**-0.5
    plain = (scaled @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    forms = [attend_folded(scaled, k, v, bias_h, bias_w, fused=fused) for fused in (True, False)]
    forms += [attend_folded(scaled, k, v, bias_h, bias_w, fused=True, unit=8)]  # 26 or 82, filled up
    forms += [attend_masked(scaled, k, v, bias_h, bias_w)]
    forms += [attend_by_rows(scaled, k, v, bias_h, bias_w), attend(q, k, v, towards_h, towards_w)]
    with torch.no_grad():
        forms.append(attend(q, k, v, towards_h, towards_w))
        with torch.autocast("cpu", torch.bfloat16):
            half = attend(*(part.bfloat16() for part in (q, k, v)), towards_h, towards_w)
    assert all(torch.allclose(form, plain, rtol=0, atol=1e-5) for form in forms)
    assert torch.allclose(half.float(), plain, rtol=0, atol=5e-2)


@pytest.mark.parametrize("before", [0, 2])
def test_forms_for_a_gpu_have_the_same_gradients(before: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, before + 20, 16, dtype=torch.float64).unbind(0)
    biases = [torch.randn(2, 3, 20, side, dtype=torch.float64) for side in (4, 5)]
    biases = [F.pad(bias, (0, 0, before, 0)) for bias in biases]
    weight = torch.randn_like(v)
    inputs = [one.requires_grad_() for one in (q, k, v, *biases)]
    plain, *forms = (
        torch.autograd.grad((out * weight).sum(), inputs)
        for out in (
            attend_folded(*inputs, fused=False),
            attend_folded(*inputs, fused=True, unit=8),
            attend_masked(*inputs),
        )
    )
    for form in forms:
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(form, plain, strict=True))


def test_channel_norm_is_over_channels() -> None:
    maps = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    norm = ChannelNorm(6).double()
    torch.nn.init.normal_(norm.weight)
    mean, variance = maps.mean(1, keepdim=True), maps.var(1, keepdim=True, unbiased=False)
    plain = (maps - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(maps), plain, rtol=0, atol=1e-12)


def test_takes_a_plain_encoder() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(TINY, final_norm=True)
    net = ViTDet(TINY, image=64, window=2, global_blocks=(0, 1, 2, 3))
    net.load_encoder(encoder.state_dict())
    assert torch.equal(net.pos_embed, encoder.pos_embed)
    assert torch.equal(net.blocks[2].mlp.fc1.weight, encoder.blocks[2].mlp.fc1.weight)
    assert not net.blocks[0].attn.rel_pos_h.any()
    image = torch.randn(1, 3, 64, 64)
    features = encoder.embed(image)[:, 1:]  # without the class token all that differs is what it contributes
    for block in encoder.blocks:
        features = block(features)
    assert torch.allclose(net(image).flatten(2).transpose(1, 2), features, atol=1e-5)


def test_resamples_a_kernel_and_positions() -> None:
    small = ViT(32, 2, 4, patch=14, image=56)
    net = ViTDet(ViT(32, 2, 4, patch=16, image=48), image=96, window=2, global_blocks=(1,))
    state = {key: torch.ones_like(value) for key, value in VisionTransformer(small).state_dict().items()}
    net.load_encoder(state)
    assert net.patch_embed.proj.weight.shape == (32, 3, 16, 16)
    assert torch.allclose(net.patch_embed.proj.weight, torch.ones(1), atol=1e-5)
    assert net.pos_embed.shape == (1, 1 + 9, 32)
    assert torch.allclose(net.pos_embed, torch.ones(1), atol=1e-5)


def test_refuses_an_encoder_of_another_shape() -> None:
    net = ViTDet(TINY, image=64, window=2, global_blocks=(3,))
    wide, deep = (VisionTransformer(ViT(width, depth, 4, 16, 64)) for width, depth in ((48, 4), (32, 5)))
    with pytest.raises(ValueError, match=r"does not fit this ViTDet.*is \(1, 17, 48\), not \(1, 17, 32\)"):
        net.load_encoder(wide.state_dict())
    with pytest.raises(ValueError, match=r"its blocks\.4\..* not none"):
        net.load_encoder(deep.state_dict())


def test_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"global_blocks=\(2, 4\): the encoder's blocks are 0\.\.3"):
        ViTDet(TINY, image=64, global_blocks=(2, 4))
    with pytest.raises(ValueError, match=r"image=100 .*patch=16"):
        ViTDet(TINY, image=100, global_blocks=())
    with pytest.raises(ValueError, match="halve from one to the next"):
        SimpleFeaturePyramid(ViTDet(TINY, image=64, global_blocks=()), 16, (4.0, 1.0))
    odd = ViTDet(ViT(32, 1, 4, patch=14, image=56), image=56, global_blocks=())
    with pytest.raises(ValueError, match="not powers of 2"):
        SimpleFeaturePyramid(odd, 16)


def test_a_small_patch_has_a_pyramid_of_its_own() -> None:
    net = ViTDet(ViT(32, 1, 4, patch=4, image=32), image=64, window=8, global_blocks=())
    model = SimpleFeaturePyramid(net, 8, (1.0, 0.5, 0.25))
    assert model.strides == (4, 8, 16, 32)
    assert [tuple(level.shape[1:]) for level in model(torch.zeros(1, 3, 64, 64))] == [
        (8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2)
    ]  # fmt: skip

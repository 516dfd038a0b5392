"""Heads, pyramid, losses and encoder against mmsegmentation 1.2.2's and BEiT's code, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.backbones.checkpoints.segmenter import renamed
from mimbench.backbones.config import SIZES, ViT
from mimbench.seg.config import Backbone, Heads
from mimbench.seg.model.build import build_backbone
from mimbench.seg.model.enlarge import enlarged
from mimbench.seg.model.heads import FCNHead, Feature2Pyramid, UPerHead, mixed_then_enlarged
from mimbench.seg.model.load import resized
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.relative import relative_index, resize_relative
from mimbench.seg.model.segmenter import UPerNet
from mimbench.seg.model.vit import SegmentationViT
from tests.backbones.golden.sine import image as encoder_image
from tests.backbones.golden.sine import summary
from tests.backbones.test_families_golden import close, write
from tests.backbones.test_families_golden import golden as encoder_golden
from tests.seg.rules import feature_maps, fill, golden, image, labels, same

GOLDEN = golden("model")
TINY = ViT(32, 4, 4, patch=16, image=64)


class Parts(nn.Module):
    """Pyramid and both heads, as the golden numbers have them."""

    def __init__(self, config: dict[str, Any], fused: bool) -> None:
        super().__init__()
        width, classes = config["embed"], config["num_classes"]
        self.neck = Feature2Pyramid(width, 16)
        self.decode_head = UPerHead(width, config["uper_channels"], classes, config["pool_scales"], fused=fused)
        self.auxiliary_head = FCNHead(width, config["aux_channels"], classes)
        for name, module in self.double().named_children():
            fill(module, GOLDEN["heads"]["64x64"]["parameters"][name])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_heads_losses_and_gradients(mode: str, fused: bool) -> None:
    case = GOLDEN["heads"]["64x64"]
    wanted, config = case[mode], case["config"]
    parts = Parts(config, fused).train(mode == "train")
    parts.decode_head.dropout.eval()
    parts.auxiliary_head.dropout.eval()
    inputs = [level.requires_grad_() for level in feature_maps(config["B"], config["embed"], *config["grid"])]
    maps = parts.neck(inputs)
    for level, one in zip(maps, wanted["pyramid"], strict=True):
        same(level, one)
    logits, auxiliary = parts.decode_head(maps), parts.auxiliary_head(maps[2])
    same(logits, wanted["uper_logits"])
    same(auxiliary, wanted["fcn_logits"])
    target = labels(config["B"], *config["input"])
    same(enlarged(logits, target.shape[1:]), wanted["uper_logits_resized"])
    decode, aux = pixel_loss(logits, target), 0.4 * pixel_loss(auxiliary, target)
    assert decode.item() == pytest.approx(wanted["decode_loss_ce"], rel=1e-9)
    assert aux.item() == pytest.approx(wanted["aux_loss_ce_weighted"], rel=1e-9)
    assert (decode + aux).item() == pytest.approx(wanted["total_loss"], rel=1e-9)
    over_valid = pixel_loss(logits, target, "valid").item()
    assert over_valid == pytest.approx(wanted["loss_if_mean_over_valid_only"], rel=1e-6)
    (decode + aux).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in parts.named_parameters()}
    norms |= {f"input{level}": one.grad.norm().item() for level, one in enumerate(inputs)}
    assert norms.keys() == wanted["grad_l2"].keys()
    for name, norm in norms.items():  # a bias before a batch norm has no gradient but rounding
        assert norm == pytest.approx(wanted["grad_l2"][name], rel=1e-9, abs=1e-14), name
    if mode == "train":
        buffers = dict(parts.named_buffers())
        for name, statistics in wanted["running"].items():
            same(buffers[name], statistics)


def test_default_initialisation_and_sizes() -> None:
    wanted = GOLDEN["default_init_768_seed0"]
    torch.manual_seed(0)
    made = {
        "neck": Feature2Pyramid(768, 16),
        "decode_head": UPerHead(768, 768, 150),
        "auxiliary_head": FCNHead(768, 256, 150),
    }
    for part, module in made.items():
        assert sum(p.numel() for p in module.parameters()) == wanted["n_params"][part]
        assert [name for name, _ in module.named_parameters()] == list(wanted[part])
        for name, parameter in module.named_parameters():
            statistics = wanted[part][name]
            assert list(parameter.shape) == statistics["shape"]
            spread = 6 * statistics["std"] / parameter.numel() ** 0.5  # of the difference of two means
            assert abs(parameter.std(unbiased=False).item() - statistics["std"]) <= spread + 1e-6, name
            assert abs(parameter.mean().item() - statistics["mean"]) <= spread + 1e-6, name


def _trunk() -> SegmentationViT:
    return SegmentationViT(TINY, image=64, outputs=(0, 1, 2, 3)).double().eval()


def test_the_encoder_is_the_originals() -> None:
    wanted = GOLDEN["backbone"]["mae_tiny_mmseg"]
    trunk = _trunk()
    assert [name for name, _ in trunk.named_parameters()] == [name for _, name, _ in wanted["parameters"]]
    fill(trunk, wanted["parameters"])
    for made, one in zip(trunk(image(2, 64, 64)), wanted["features"], strict=True):
        same(made, one)


def test_the_encoder_with_its_pyramid_is_beits_code() -> None:
    wanted = GOLDEN["backbone"]["mae_tiny_original_beit_code"]
    parts = nn.ModuleDict({"backbone": _trunk(), "neck": Feature2Pyramid(32, 16).double().eval()})
    own = {_ours(name): (number, shape) for number, name, shape in wanted["parameters"]}
    fill(parts, [(number, name, shape) for name, (number, shape) in own.items()])
    for made, one in zip(parts["neck"](parts["backbone"](image(2, 64, 64))), wanted["pyramid"], strict=True):
        same(made, one)


def _ours(name: str) -> str:
    for theirs, ours in (("fpn1.", "neck.upsample_4x."), ("fpn2.", "neck.upsample_2x.")):
        if name.startswith(theirs):
            return name.replace(theirs, ours)
    return f"backbone.{renamed(name)}"


def test_relative_positions() -> None:
    wanted = GOLDEN["backbone"]
    assert relative_index(4).tolist() == wanted["relative_position_index_4x4"]
    rows = torch.arange(732.0)[:, None]
    table = 0.02 * torch.sin(0.37 * (2 * rows + torch.arange(2)))
    resized = resize_relative(table, 32)
    assert list(resized.shape) == wanted["rel_pos_14_to_32"]["out_shape"]
    same(resized, wanted["rel_pos_14_to_32"]["out"])
    assert torch.equal(resized[-3:], table[-3:])
    assert resize_relative(table, 14) is table
    with pytest.raises(ValueError, match="730 relative positions"):
        resize_relative(table[:730], 32)


def test_absolute_positions() -> None:
    rows = torch.arange(197.0)[:, None]
    table = 0.02 * torch.sin(0.37 * (8 * rows + torch.arange(8)))[None]
    backbone = SegmentationViT(ViT(8, 2, 2), image=512, outputs=(1,), rel_pos=False)
    made = resized(backbone, {"pos_embed": table}, "bicubic")["pos_embed"]
    same(made, GOLDEN["backbone"]["abs_pos_14_to_32"]["out"])
    assert torch.equal(made[:, 0], table[:, 0])


def test_a_whole_vit_b_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        backbone = SegmentationViT(SIZES["B"], image=512, outputs=(3, 5, 7, 11))
        model = UPerNet(backbone, 150, Heads(), fused=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert sum(p.numel() for p in backbone.parameters()) == 87_023_424
    assert sum(p.numel() for p in model.parameters()) == 163_877_228


def test_other_sizes_of_image() -> None:
    with pytest.raises(ValueError, match=r"64 x 96 pixels.*64 x 64;.*slide"):
        _trunk()(image(1, 64, 96))
    free = SegmentationViT(TINY, image=64, outputs=(3,), rel_pos=False).double()
    assert free(image(1, 64, 96))[0].shape == (1, 32, 4, 6)
    with pytest.raises(ValueError, match="use 48 or 64"):
        SegmentationViT(TINY, image=60, outputs=(3,))


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 9)])
def test_maps_smaller_than_the_coarsest_stride(patch: int, size: tuple[int, int]) -> None:
    """Maps of a few patches become one position; from four patches on they are the original's (max_pool2d)."""
    neck = Feature2Pyramid(4, patch).eval()
    maps = neck([torch.rand(2, 4, *size)] * 4)
    assert min(min(level.shape[2:]) for level in maps) >= 1
    large = torch.rand(2, 4, 9, 4)
    torch.testing.assert_close(neck([large] * 4)[3], F.max_pool2d(large, 4 if patch == 8 else 2), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(9, 13), (16, 24), (7, 21)])
def test_channels_mixed_before_enlarging_are_the_same(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    plain: Tensor = F.conv2d(enlarged(maps, size), kernel, padding=1)
    fast = mixed_then_enlarged(maps, kernel, size)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), (maps, kernel)),
        torch.autograd.grad((plain * weight).sum(), (maps, kernel)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("over", ["all", "valid"])
@pytest.mark.parametrize("size", [(40, 56), (9, 130), (300, 301)])
def test_the_loss_by_rows_is_the_plain_one(size: tuple[int, int], over: Literal["all", "valid"]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 150, 10, 14, dtype=torch.float64, requires_grad=True)
    target = labels(2, *size)
    whole = F.cross_entropy(enlarged(logits, size), target, ignore_index=255, reduction="sum")
    plain = whole / (target.numel() if over == "all" else (target != 255).sum())
    made = pixel_loss(logits, target.to(torch.uint8), over)
    assert made.item() == pytest.approx(plain.item(), rel=1e-9)
    wanted, [gradient] = torch.autograd.grad(plain, logits)[0], torch.autograd.grad(3 * made, logits)
    torch.testing.assert_close(gradient, 3 * wanted, rtol=1e-6, atol=1e-12)


def test_a_loss_of_ignored_pixels_alone_is_zero() -> None:
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 16, 16), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_frozen_encoder_keeps_its_kind_of_norm_and_its_computed_positions(tmp_path: Path) -> None:
    """Apple's native AIMv2, whose norms are RMS norms: its own code's features at three sizes."""
    file = str(write(tmp_path, "aimv2_native"))
    options: dict[str, Any] = {"outputs": lambda depth: (depth - 1,), "image": 32, "allow_partial": False}
    frozen, *_ = build_backbone(file, ViT(), Backbone(), **options, frozen=True)
    for features in encoder_golden("aimv2_native")["features"]:
        with torch.no_grad():
            [tokens] = frozen.double().eval()(encoder_image(*features["size"]))
        close(summary(tokens.flatten(2).mT, 0), features)
    tuned, *_ = build_backbone(file, ViT(), Backbone(), **options)
    assert not tuned.pos_embed.requires_grad

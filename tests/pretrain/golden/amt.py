"""Numbers of AMT made by its authors' code: `python amt.py AMT > amt.json`, AMT a clone of github.com/guijiejie/AMT.

(dfe380e.) Everything is in float64 but for the maps; weights, images, maps and the order of the draw are formulas,
which tests/pretrain/test_attention_masking.py takes from here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

BOXES = {  # top, left, height, width in an image of height and width, and whether it was mirrored
    "inside": ((20, 30, 200, 250), (375, 500), False),
    "mirrored": ((20, 30, 200, 250), (375, 500), True),
    "lower edge": ((175, 0, 200, 300), (375, 500), False),
    "right edge": ((10, 250, 150, 250), (375, 500), True),
    "whole": ((0, 0, 375, 500), (375, 500), False),
}


def sines(*shape: int) -> Tensor:
    return torch.sin(0.011 * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).view(shape)


def order(patches: int) -> Tensor:
    """The order in which patches are drawn in two images: by the golden ratio's multiples."""
    image, patch_ = torch.meshgrid(torch.arange(2), torch.arange(patches), indexing="ij")
    return ((0.6180339887498949 * (patch_.double() + 1) + 0.37 * image) % 1).argsort(dim=1)


def one_map() -> Tensor:
    return (0.5 + 0.5 * torch.sin(0.7 * torch.arange(196))).view(14, 14)


def fill(model: nn.Module) -> None:
    state = model.state_dict()
    for rank, name in enumerate(sorted(state)):
        if not name.endswith("pos_embed"):
            value = 0.05 * torch.sin(0.37 * torch.arange(state[name].numel(), dtype=torch.float64) + 1.3 * rank)
            state[name] = value.view_as(state[name]) + float(state[name].ndim == 1 and name.endswith(".weight"))
    model.load_state_dict(state)


def load_model(root: Path) -> type[nn.Module]:
    """The class, without the large model that its file builds when imported."""
    text = (root / "models_mae.py").read_text().partition("mae_vit_base_patch16 =")[0]
    module = types.ModuleType("models_mae")
    exec(compile(text, "models_mae.py", "exec"), module.__dict__)
    found: type[nn.Module] = module.MaskedAutoencoderViT
    return found


def losses(kind: type[nn.Module]) -> dict[str, Any]:
    """36 patches, of which 16 are masked, 14 thrown away and 6 seen."""
    found = {}
    for name, norm_pix in (("raw_pixels", False), ("norm_pix", True)):
        model: Any = kind(
            img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=4, decoder_embed_dim=32, decoder_depth=2,
            decoder_num_heads=4, norm_layer=partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=norm_pix,
        ).double()  # fmt: skip
        fill(model)
        with patch("torch.multinomial", lambda weights, number: order(number)):
            loss, _, flag = model(sines(2, 3, 48, 48), torch.ones(2, 1, 48, 48), 0.45, 0.4, epoch=41)
        loss.backward()
        found[name] = {
            "loss": loss.item(),
            "flags": flag.int().tolist(),
            "gradients": {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None},
        }
    return found


class Attention(nn.Module):
    """What the README asks for: timm's block, returning its attention."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, return_attention: bool = True) -> Tensor:
        attn = self.block.attn
        q, k, _ = attn.qkv(self.block.norm1(x)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q * attn.scale @ k.transpose(-2, -1)).softmax(dim=-1)


def weight_maps(kind: type[nn.Module], misc: Any) -> list[float]:
    """The authors' `update_mask` for two images: 12 heads and 14 x 14 patches are in that code."""
    model: Any = kind(
        img_size=112, patch_size=8, embed_dim=48, depth=2, num_heads=12, decoder_embed_dim=32, decoder_depth=1,
        decoder_num_heads=4, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).double()  # fmt: skip
    fill(model)
    model.blocks[-1] = Attention(model.blocks[-1])
    batch = [(sines(2, 3, 112, 112), None)]

    def gather(into: list[Tensor], one: Tensor) -> None:
        into[0].copy_(one)

    silence = contextlib.redirect_stdout(sys.stderr)
    patches = (
        patch.object(dist, "barrier"),
        patch.object(dist, "all_gather", gather),
        patch.object(dist, "get_world_size", lambda: 1),
        patch.object(misc.MetricLogger, "log_every", lambda self, loader, *_: loader),
    )
    with contextlib.ExitStack() as stack, torch.no_grad():
        for context in (silence, *patches):
            stack.enter_context(context)
        maps = misc.update_mask(model, batch, torch.device("cpu"), 2, SimpleNamespace(batch_size_up=2))
    values: list[float] = maps.flatten().tolist()
    return values


def crops(data: Any, kind: type[nn.Module]) -> dict[str, list[float]]:
    """The weights of 196 patches after the authors' crop and mirroring of a map."""
    found = {}
    for name, (box, (height, width), flip) in BOXES.items():
        crop, mirror = data.maskRandomResizedCrop(224), data.maskRandomHorizontalFlip()
        mirror.p = float(flip)
        with patch.object(data.maskRandomResizedCrop, "get_params", lambda *_, box=box: box):
            image, mask = crop(Image.new("RGB", (width, height)), one_map())
        mask = mirror(image, mask)[1]
        shell = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(16, 16)))
        found[name] = kind.patchify_map(shell, mask[None]).sum(-1)[0].tolist()
    return found


def main(root: Path) -> None:
    sys.path.insert(0, str(root / "mae-AMT"))
    torch_six = types.ModuleType("torch._six")
    torch_six.inf = float("inf")  # type: ignore[attr-defined]
    sys.modules["torch._six"] = torch_six  # gone from torch since
    with patch("numpy.float", float, create=True):
        kind = load_model(root / "mae-AMT")
        misc, data = importlib.import_module("util.misc"), importlib.import_module("amtdatasets")
        golden = {**losses(kind), "weight_maps": weight_maps(kind, misc), "crops": crops(data, kind)}
    print(json.dumps(golden, indent=None, separators=(",", ":")).replace("},", "},\n").replace("],", "],\n"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

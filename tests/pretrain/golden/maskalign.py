"""Numbers for test_maskalign.py and test_teachers.py, by the authors' code.

    python tests/pretrain/golden/maskalign.py PATH_TO_MASKALIGN > tests/pretrain/golden/maskalign.json

PATH_TO_MASKALIGN is a clone of github.com/OpenDriveLab/maskalign (made with 250d018). Wants torch, timm, transformers
(made with 2.15, 1.0.31 and 5.23; the project itself does without transformers). Everything is in float64; weights and
images are sines, noise comes from the golden ratio, so that every draw is known.

Its code was written for timm 0.3.2 and NumPy < 1.24, and downloads its teachers. What is changed around it here: blocks
take `qk_scale` and ignore it (it is None), `numpy.float` is there again, teachers are random ones of transformers, or
functions that return sines, and `torch.rand` and `torch.multinomial` give the draw that the noise stands for.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

BLOCK = timm_vit.Block
np.float = float  # type: ignore[attr-defined]


def block(*args: Any, qk_scale: None = None, **options: Any) -> nn.Module:
    """timm's block as it was called once."""
    return BLOCK(*args, **options)


timm_vit.Block = block  # type: ignore[assignment,misc]

CASES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "random": {"mask_type": "random"},
    "out_l2_simple": {"loss_weights": "out", "loss_type": "l2", "fusion_type": "simple", "target_norm": "none"},
    "mean_l1_sum": {"loss_weights": "mean", "loss_type": "l1", "fusion_type": "sum", "target_norm": "l2"},
    "decay_bn_mlp": {"loss_weights": "linear_decay", "target_norm": "bn", "head_type": "mlp"},
    "mid_mlp2": {"loss_weights": "mid3", "head_type": "mlp2"},
    "mid_simple_norm": {"loss_weights": "mid3", "head_type": "norm_linear", "fusion_type": "simple"},
    "shallow_sum": {"depth": 4, "fusion_type": "sum", "loss_weights": "mean"},
}
RECIPE = {
    "loss_weights": "top5",
    "mask_type": "attention",
    "fusion_type": "linear",
    "target_norm": "whiten",
    "loss_type": "smoothl1",
    "head_type": "linear",
}
STEPS, PER_EPOCH = 50, 10  # of the trajectory


def sines(*shape: int, phase: float = 0.0, rate: float = 0.011) -> Tensor:
    return torch.sin(rate * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def golden_noise(batch: int, patches: int, step: int = 0) -> Tensor:
    image, patch = torch.meshgrid(torch.arange(batch), torch.arange(patches), indexing="ij")
    return (0.6180339887498949 * (patch.double() + 1) + 0.37 * image + 0.1 * step) % 1


def fill(name: str, value: Tensor) -> Tensor:
    """A weight by its name alone; scales of norms are around 1."""
    filled = 0.05 * torch.sin(
        0.37 * torch.arange(value.numel(), dtype=torch.float64) + zlib.crc32(name.encode()) % 1000
    )
    return filled.view(value.shape) + float(value.ndim == 1 and name.endswith(".weight"))


def teacher_layers(batch: int, tokens: int, width: int, depth: int) -> list[Tensor]:
    """What a teacher of sines makes: of the embedding and of each block."""
    return [(1 + layer / 4) * sines(batch, tokens, width, phase=0.7 * layer, rate=0.013) for layer in range(depth + 1)]


def teacher_attention(batch: int, heads: int, tokens: int) -> Tensor:
    return (3 * sines(batch, heads, tokens, tokens, rate=0.29)).softmax(-1)


class Sines(nn.Module):
    """In place of a teacher: 12 layers 768 wide, as the authors' code takes for granted."""

    def forward(self, pixel_values: Tensor, **_: Any) -> tuple[Any, ...]:
        tokens = 1 + (pixel_values.shape[-1] // 8) ** 2
        layers = teacher_layers(len(pixel_values), tokens, 768, 12)
        return None, None, layers, [teacher_attention(len(pixel_values), 12, tokens)]


def student(models: Any, image: int = 32, **options: Any) -> Any:
    """A small one of the authors'."""
    depth = options.pop("depth", 12)
    return models.MaskedAutoencoderViT(
        img_size=image,
        patch_size=8,
        embed_dim=48,
        depth=depth,
        num_heads=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **{**RECIPE, **options},
    )


def filled_student(models: Any, **options: Any) -> Any:
    model = student(models, **options).double()
    state = model.state_dict()
    model.load_state_dict({name: v if name == "pos_embed" else fill(name, v) for name, v in state.items()})
    return model


def draw_from(noise: Tensor) -> None:
    """Have torch draw what `noise` stands for, until the next call."""
    torch.rand = lambda *_, **__: noise  # type: ignore[assignment]
    torch.multinomial = lambda weights, *_, **__: (-noise.log() / weights).argsort(1)  # type: ignore[assignment]


def gradient_norms(model: nn.Module) -> dict[str, float]:
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    return {**norms, "gradient": math.sqrt(sum(norm**2 for norm in norms.values()))}


def case(models: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Loss and norms of gradients: of all of them together and, for the recipe, of each."""
    model = filled_student(models, **options)
    draw_from(golden_noise(2, 16))
    loss = model(sines(2, 3, 32, 32), mask_ratio=0.7)
    loss.backward()
    norms = gradient_norms(model)
    kept = (
        norms if not options else {name: norms[name] for name in ("gradient", "cls_token", "patch_embed.proj.weight")}
    )
    return {"loss": loss.item(), "gradients": kept}


def groups(model: Any) -> dict[str, list[str]]:
    """Names of parameters with and without weight decay, as main_pretrain.py has them."""
    names = {id(p): name for name, p in model.named_parameters()}
    made = param_groups_weight_decay(model, 0.05, no_weight_decay_list=["distill_weights"])
    return {str(group["weight_decay"]): sorted(names[id(p)] for p in group["params"]) for group in made}


def trajectory(models: Any, adjust: Any) -> dict[str, list[float]]:
    """Losses and learning rates of 50 steps on the same images, with main_pretrain.py's optimiser and schedule."""
    model, images = filled_student(models), sines(4, 3, 32, 32)
    made = param_groups_weight_decay(model, 0.05, no_weight_decay_list=["distill_weights"])
    optimizer = torch.optim.AdamW(made, lr=1e-3, betas=(0.9, 0.95))
    args = SimpleNamespace(lr=1e-3, min_lr=1e-5, warmup_epochs=1, epochs=STEPS // PER_EPOCH)
    losses, rates = [], []
    for step in range(STEPS):
        adjust(optimizer, step / PER_EPOCH, args)
        draw_from(golden_noise(4, 16, step))
        loss = model(images, mask_ratio=0.7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
    return {"losses": losses, "rates": rates}


def seeded(models: Any) -> dict[str, list[float]]:
    """The first three values and the sum of absolute values of some weights as torch.manual_seed(0) draws them."""
    torch.manual_seed(0)
    state = student(models).state_dict()
    kept = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "blocks.11.mlp.fc2.weight")
    names = (*kept, "distill_heads.7.weight", "distill_heads.11.weight")
    return {name: [*state[name].flatten()[:3].tolist(), state[name].abs().sum().item()] for name in names}


# ---------------------------------------------------------------------------------------------------------- teachers

CLIP_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("pre_layrnorm", "norm_pre"),
    ("post_layernorm", "norm"),
    ("encoder.layers", "blocks"),
    ("self_attn.out_proj", "attn.proj"),
    ("layer_norm", "norm"),
)
DINO_NAMES = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm", "norm"),
    ("layers", "blocks"),
    ("attention.o_proj", "attn.proj"),
    ("attention.", "self_attn."),
)


def fill_hugging_face(model: nn.Module, names: tuple[tuple[str, str], ...]) -> None:
    """Fill a model of transformers with what timm's model of the same architecture is filled with, by timm's names."""
    state = model.state_dict()
    for name, value in state.items():
        new = name
        for theirs, timms in names:
            new = new.replace(theirs, timms)
        part = next((i for i, letter in enumerate("qkv") if f"self_attn.{letter}_proj" in new), None)
        if part is None:
            state[name] = (20 if new in ("pos_embed", "cls_token") else 1) * fill(new, value)
        else:
            new = new.replace(f"self_attn.{'qkv'[part]}_proj", "attn.qkv")
            state[name] = fill(new, value.repeat(3, *[1] * (value.ndim - 1))).chunk(3)[part]
    model.load_state_dict(state)


def clip_teacher(models: Any, large: bool) -> dict[str, Any]:
    """CLIP of random weights behind the authors' resizing and colours: `large` is the 14-pixel one at 196 pixels."""
    sizes = {"patch_size": 14, "image_size": 224} if large else {"patch_size": 8, "image_size": 32}
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, **sizes
    )
    config._attn_implementation = "eager"
    clip = transformers.CLIPVisionModel(config).double().eval()
    fill_hugging_face(clip, CLIP_NAMES)
    if large:  # as the authors' __init__ does it, for names that transformers 5 does not have any more
        table = clip.embeddings.position_embedding.weight.data
        clip.embeddings.position_embedding.weight.data = torch.cat([table[:1], models.resize_pos_embed(table[1:])])
        clip.embeddings.position_ids = torch.arange(197).expand((1, -1))
        clip.embeddings.image_size = 196
    name = "openai/clip-vit-large-patch14" if large else "openai/clip-vit-base-patch16"
    host = SimpleNamespace(teacher_model_name=name, clip_model=clip)
    host.normalize = partial(models.MaskedAutoencoderViT.normalize, host)
    host.denormalize = partial(models.MaskedAutoencoderViT.denormalize, host)
    images = sines(2, 3, 224, 224, rate=0.0031) if large else sines(2, 3, 32, 32)
    return seen(models.MaskedAutoencoderViT.forward_clip(host, images))


def dino_teacher(models: Any) -> dict[str, Any]:
    """DINO of random weights, behind the authors' code."""
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=32
    )
    config._attn_implementation = "eager"
    dino = transformers.ViTModel(config).double().eval()
    fill_hugging_face(dino, DINO_NAMES)
    return seen(models.MaskedAutoencoderViT.forward_dino(SimpleNamespace(dino_model=dino), sines(2, 3, 32, 32)))


def seen(outputs: tuple[Any, ...]) -> dict[str, Any]:
    """Of each layer some values and the sum of absolute values; the first image's importance."""
    _, _, layers, attentions = outputs
    importance = attentions[-1][:, :, 0, 1:].mean(1)
    some = [[*layer[1, 5, :4].tolist(), layer[0, 0, 3].item(), layer.abs().sum().item()] for layer in layers[1:]]
    return {"layers": some, "importance": importance[0].tolist()}


def main() -> None:
    sys.path.insert(0, str(Path(sys.argv[1])))
    for name in ("CLIPVisionModel", "ViTModel"):
        getattr(transformers, name).from_pretrained = classmethod(lambda *_, **__: Sines())
    import models_pretrain as models
    from util.lr_sched import adjust_learning_rate

    multinomial, rand = torch.multinomial, torch.rand
    golden: dict[str, Any] = {"cases": {name: case(models, options) for name, options in CASES.items()}}
    golden["trajectory"] = trajectory(models, adjust_learning_rate)
    torch.multinomial, torch.rand = multinomial, rand
    golden["groups"] = groups(student(models))
    golden["seeded"] = seeded(models)
    golden["teachers"] = {
        "grad_clip": clip_teacher(models, large=False),
        "clip_large": clip_teacher(models, large=True),
        "dino": dino_teacher(models),
    }
    print(json.dumps(golden))


if __name__ == "__main__":
    main()

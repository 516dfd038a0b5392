"""What `compile=true` compiles is captured without a break, in as few graphs as it has shapes, with the same numbers.

The backend counts the graphs and runs them as they are, so no compiler is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimbench.backbones.classifier import build_classifier, load_encoder_into
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.draws import StepDraws, draw_by_image
from mimbench.engine.training.compiling import blocks_of, compile_parts
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig
from mimbench.pretrain.masking.strategies import Masked
from mimbench.pretrain.methods.method import Method
from mimbench.pretrain.methods.table import build_method
from mimbench.seg.config import Heads, UPerNetConfig
from mimbench.seg.model.build import build_segmenter
from tests.det.tiny import SHAPES, tiny_detector

TINY = ViT(32, 4, 4, patch=8, image=32)


@dataclass
class Counting:
    """A backend that counts the graphs and keeps the numbers of their operations."""

    graphs: list[int] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward


@pytest.fixture
def counting() -> Iterator[Counting]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield Counting()
    torch._dynamo.reset()


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _same(plain: Tensor, compiled: Tensor) -> None:
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)


def test_the_classifier_in_training_is_one_graph(counting: Counting) -> None:
    model = build_classifier(TINY, 5, 0.3, "avg", 32)
    load_encoder_into(model, VisionTransformer(TINY).state_dict())
    draws = StepDraws(0, 4, parts=1, part=0, stride=1, paired=False)
    draw_by_image(model, draws)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)

    def steps() -> Tensor:
        model.zero_grad()
        for step in range(3):
            draws.begin(step)
            draws.advance()
            nn.functional.cross_entropy(model(images), labels).backward()
        return _gradients(model)

    plain = steps()
    names = list(model.state_dict())
    compile_parts([model], backend=counting, whole=True)
    _same(plain, steps())
    assert len(counting.graphs) == 1
    assert list(model.state_dict()) == names


def test_the_blocks_of_a_frozen_encoder_share_a_graph(counting: Counting) -> None:
    model = VisionTransformer(TINY).requires_grad_(False).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        plain = list(model.after_each_block(images))
        compile_parts(blocks_of(model), backend=counting, whole=True)
        for one, other in zip(plain, model.after_each_block(images), strict=True):
            _same(one, other)
        assert len(counting.graphs) == 1
        list(model.after_each_block(images[:2]))  # the last batch of a data set
    assert len(counting.graphs) == 2


@pytest.mark.parametrize(
    ("config", "graphs"), [(MAEConfig(depth=2, width=16, heads=2), 2), (CrossMAEConfig(depth=2, width=16, heads=2), 2)]
)
def test_the_blocks_of_a_method_share_a_graph_for_each_kind(
    counting: Counting, config: MAEConfig | CrossMAEConfig, graphs: int
) -> None:
    method: Method = build_method(config, TINY, None)
    order = torch.rand(3, 16).argsort(1)
    images, masked = torch.randn(3, 3, 32, 32), Masked(order[:, :4], order[:, 4:], order[:, :0])

    def step() -> Tensor:
        method.zero_grad()
        method(images, masked, None).backward()
        return _gradients(method)

    plain = step()
    compile_parts(blocks_of(method), backend=counting, whole=True)
    _same(plain, step())
    assert len(counting.graphs) == graphs  # of the encoder's blocks and of the decoder's


def test_backbone_and_rpn_head_are_a_graph_each(counting: Counting) -> None:
    model = tiny_detector(rel_pos=True)
    model.backbone.net.recompute = True  # without it they are too
    images = torch.rand(3, 3, 128, 128) * 255

    def step() -> Tensor:
        model.zero_grad()
        maps = model.features(images, SHAPES)
        logits, codes = model.proposal_generator.rpn_head(maps)
        torch.stack([one.square().mean() for one in (*maps, *logits, *codes)]).sum().backward()
        return _gradients(model)

    plain = step()
    compile_parts(model.compilable(), backend=counting, whole=True)
    _same(plain, step())
    assert len(counting.graphs) == 2


def test_encoder_and_pyramid_of_a_segmenter_are_a_graph_each(counting: Counting) -> None:
    config = UPerNetConfig(data="x", encoder=TINY, heads=Heads(channels=16, aux_channels=16), image=64, batch=2)
    model = build_segmenter(config, 5).model
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # else the steps differ by chance
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    batch = {"images": images, "sizes": [(64, 64), (50, 64)], "labels": torch.zeros(2, 64, 64, dtype=torch.uint8)}

    def step() -> Tensor:
        model.zero_grad()
        torch.manual_seed(0)
        model(batch)["loss"].backward()
        return _gradients(model)

    plain = step()
    compile_parts(model.compilable(), backend=counting, whole=True)
    _same(plain, step())
    assert len(counting.graphs) == 2

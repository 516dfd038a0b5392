"""Compile parts of a model by torch.compile: the parts that are captured whole, never what surrounds them.

    compile_parts(model.compilable())          # modules; their names, weights and states stay as they are

Each module becomes one graph for each shape of its inputs. Modules that are alike (the blocks of an encoder without
drop path) share it: compiling blocks instead of the whole encoder shortens the first step, because one block is
compiled instead of all. Matching, samplers and augmentations read from the device or depend on the data, so they stay
outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

BLOCKS = ("blocks", "decoder_blocks")  # names of the lists of blocks in encoders and methods


def compile_parts(parts: Iterable[nn.Module], *, backend: Any = "inductor", whole: bool = False) -> None:
    """Compile each module of `parts` in place, for the shapes that it meets.

    Args:
        parts: modules whose forward passes are compiled.
        backend: torch.compile's.
        whole: raise an error where a module is not captured in one graph, instead of running the rest as it is.
    """
    for part in parts:
        part.compile(backend=backend, dynamic=False, fullgraph=whole)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of an encoder or a method, in order."""
    for module in model.modules():
        for name in BLOCKS:
            if isinstance(blocks := getattr(module, name, None), nn.ModuleList):
                yield from blocks

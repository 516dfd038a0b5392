"""Parts of a CrossMAE step against the authors' or the plain form (B4, B6, B7, B24).

    python benchmarks/crossmae_parts.py [--original PATH] [--batch 64] [--repeats 5] [--json]

    B4   operations of the decoder, MAE over CrossMAE (.25 predicted), at 12 and 8 blocks: exact integers, no timing
    B6   masking and embedding, forward and backward: only what is shown, against everything and then a gather. Tokens
         equal to the last bit in float64, to rounding in float32.
    B7   targets and queries: index first, against patchify everything and boolean selection. Equal to 1e-6, and to the
         last bit.
    B24  activations kept for the backward pass, MiB an image in fp32, parameters not counted: ours, the peer's, MAE's.

ViT-B. The peer is the authors' code where --original names a checkout of it, else the plain form (crossmae_plain.py).
Ends with status 1 if a ratio is below its floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from crossmae_plain import authors_loss, authors_model, plain_loss, plain_queries, plain_targets, plain_tokens
from crossmae_step import masked
from measure import Kept, Measured, Target, relative, take_turns, total_failed
from torch import Tensor, nn

from mimbench.backbones.config import SIZES, ViT
from mimbench.engine.run.process import device_name
from mimbench.pretrain.config import CrossMAEConfig, MAEConfig
from mimbench.pretrain.flops import decoder_table
from mimbench.pretrain.methods.crossmae import CrossMAE
from mimbench.pretrain.methods.mae import MAE
from mimbench.pretrain.methods.pixels import pixels, standardised

TARGETS = {
    "B4": Target(2.59, 2.59, 2.60),
    "B4, 8 blocks": Target(3.88, 3.88, 3.89),
    "B6": Target(2.5, 3.4, 4.0),
    "B7, targets": Target(3.0, 5.0, float("inf")),
    "B7, queries": Target(10.0, 30.0, float("inf")),
    "B24": Target(1.0, 53.2 / 45, float("inf")),
}


@dataclass(frozen=True)
class Case:
    """What the parts are run on: a model of ours, its peer, images and noise."""

    model: CrossMAE
    theirs: nn.Module | None  # the authors', if their code is there
    images: Tensor
    noise: Tensor
    repeats: int

    @property
    def peer_tokens(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Tokens of the shown patches, and which are predicted."""
        if self.theirs is None:
            return partial(plain_tokens, self.model, self.images, self.noise, 0.75, 0.25)
        return partial(_authors_tokens, self.theirs, self.images, self.noise)


def _authors_tokens(theirs: Any, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    from unittest.mock import patch

    with patch("torch.rand", lambda *_, **__: noise):
        tokens, mask, _ = theirs.random_masking(theirs.grid_patchify(images), 0.75, 0.25)
    return torch.cat([theirs.cls_token.expand(len(tokens), -1, -1), tokens], dim=1), mask.bool()


def b4() -> list[Measured]:
    """Counts, from the table that `mimbench flops pretrain` prints."""
    found = {row.name: row.decoder for row in decoder_table() if row.size == "B"}
    mae = found["MAE, 8 blocks"]
    return [
        _measured("B4", "GFLOP", found["CrossMAE .25, 12 blocks"] / 1e9, mae / 1e9),
        _measured("B4, 8 blocks", "GFLOP", found["CrossMAE .25, 8 blocks"] / 1e9, mae / 1e9),
    ]


def b6(case: Case) -> Measured:
    """Masking and embedding, forward and backward."""
    model = case.model

    def ours() -> Tensor:
        return model.embed(case.images, masked(case.noise, model.shape, 0.25).shown)

    def timed(tokens: Callable[[], Tensor]) -> None:
        tokens().sum().backward()

    difference = relative(ours(), case.peer_tokens()[0])
    assert difference <= 1e-6, f"tokens differ by {difference:.1e}"
    seconds = take_turns(lambda: timed(ours), lambda: timed(lambda: case.peer_tokens()[0]), case.repeats)
    return _measured("B6", "s", *seconds, f"tokens differ by {difference:.0e}")


def b7(case: Case) -> list[Measured]:
    """Targets and queries, given the mask."""
    model, images = case.model, case.images
    predicted = masked(case.noise, model.shape, 0.25).predicted
    mask = case.peer_tokens()[1]
    theirs: Any = case.theirs
    targets: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: standardised(pixels(images, predicted, model.patch)),
        "peer": lambda: plain_targets(images, mask, model.patch, True),
    }
    queries: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.mask_token + model.decoder_pos_embed[0, 1:][predicted],
        "peer": lambda: plain_queries(model, mask),
    }
    if theirs is not None:
        nothing = torch.zeros(len(images), predicted.shape[1], 3 * model.patch**2)
        targets["peer"] = lambda: theirs.forward_loss(images, nothing, mask, None)[1]
        queries["peer"] = lambda: theirs.mask_tokens_grid(mask, mask)
    difference = relative(targets["ours"](), targets["peer"]())
    assert difference <= 1e-6, f"targets differ by {difference:.1e}"
    assert torch.equal(queries["ours"](), queries["peer"]()), "queries differ"
    with torch.no_grad():
        return [
            _measured(name, "s", *take_turns(sides["ours"], sides["peer"], case.repeats), note)
            for name, sides, note in (
                ("B7, targets", targets, f"differ by {difference:.0e}"),
                ("B7, queries", queries, "equal to the last bit"),
            )
        ]


def b24(case: Case) -> Measured:
    """Activations kept, MiB an image."""
    model, images, noise = case.model, case.images[:2].clone(), case.noise[:2]  # a view would keep them all
    mae = MAE(model.shape, MAEConfig())
    peer = plain_loss if case.theirs is None else authors_loss
    holder: Any = model if case.theirs is None else case.theirs
    kept = saved_mib(model, lambda: model(images, masked(noise, model.shape, 0.25))) / 2
    theirs = saved_mib(holder, lambda: peer(holder, images, noise)) / 2
    of_mae = saved_mib(mae, lambda: mae(images, masked(noise, model.shape, 0.75))) / 2
    model.recompute = True
    again = saved_mib(model, lambda: model(images, masked(noise, model.shape, 0.25))) / 2
    model.recompute = False
    return _measured("B24", "MiB", kept, theirs, f"MAE {of_mae:.1f} MiB; with recompute=true {again:.1f}")


def saved_mib(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """What autograd keeps for the backward pass of `loss`, each block of memory once, without parameters."""
    kept = Kept(model)
    with kept.saving():
        loss()
    return kept.bytes / 2**20


def _measured(name: str, unit: str, ours: float, peer: float, note: str = "") -> Measured:
    return Measured(name, unit, ours, peer, TARGETS[name], note)


def measure(shape: ViT, config: CrossMAEConfig, batch: int, repeats: int, original: Path | None) -> list[Measured]:
    """B6, B7 and B24."""
    torch.manual_seed(0)
    model = CrossMAE(shape, config)
    images, noise = torch.randn(batch, 3, shape.image, shape.image), torch.rand(batch, shape.grid**2)
    case = Case(model, None if original is None else authors_model(original, model), images, noise, repeats)
    return [b6(case), *b7(case), b24(case)]


def main() -> int:
    """Measure, print, and say by the exit status whether every floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--original", type=Path, help="a checkout of github.com/TonyLianLong/CrossMAE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results = [*b4(), *measure(SIZES["B"], CrossMAEConfig(), options.batch, options.repeats, options.original)]
    if options.json:
        print(json.dumps([result.row() for result in results], indent=2))
    else:
        peer = "the plain form" if options.original is None else options.original
        capability = torch.backends.cpu.get_cpu_capability()
        print(f"ViT-B, batch {options.batch}, {device_name(torch.device('cpu'))}, {capability}; peer: {peer}")
        for result in results:
            print(result.line())
    return total_failed(results)


if __name__ == "__main__":
    sys.exit(main())

"""`mimbench flops pretrain`: what pretraining computes for one image, counted in the live models."""

from __future__ import annotations

from dataclasses import asdict

from mimbench.jobs.cli.commands import print_json
from mimbench.jobs.runs.recipes import find


def show(as_json: bool) -> None:
    """Print the table of decoders: GFLOP of a forward pass on one image."""
    from mimbench.pretrain.flops import Flops, decoder_table  # imports torch

    rows = list(decoder_table())
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="forward pass, one image, GFLOP (two operations a multiply-add)")
    for name in ("size", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("decoder", "MAE's", "mixing", "encoder", "all"):
        table.add_column(name, justify="right", no_wrap=True)
    mae: Flops | None = None
    for row in rows:
        mae = row if mae is None or row.size != mae.size else mae  # the first of each size
        less = f"{mae.decoder / row.decoder:.1f}x" if row is not mae else ""
        decoder, mixing, encoder, total = (
            f"{count / 1e9:.2f}" if count else "" for count in (row.decoder, row.mixing, row.encoder, row.total)
        )
        table.add_row(f"ViT-{row.size}", row.name, decoder, less, mixing, encoder, total)
    Console().print(table)


def show_modules(recipe: str, depth: int, as_json: bool) -> None:
    """Print what each module of a pretraining recipe computes: fvcore's table, or operations by name as JSON.

    Raises:
        ValueError: if it is no pretraining, or its teacher has no name.
    """
    from mimbench.pretrain.config import Pretrain
    from mimbench.pretrain.flops import method_operations, recipe_table, without_numbers  # imports torch

    config = find(recipe).build()
    if not isinstance(config, Pretrain):
        raise ValueError(f"{recipe} is no pretraining; `mimbench recipes` lists those")
    if as_json:
        by_module, teacher = method_operations(*without_numbers(config))
        print_json({"modules": by_module, "teacher": teacher})
    else:
        print(recipe_table(config, depth))

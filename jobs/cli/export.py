"""`mimbench export FILE --to TARGET`: an encoder in the form that another library reads, timm for one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path


def export(checkpoint: Path, target: str, out: Path | None, patch: int | None, as_json: bool) -> None:
    """Write the encoder in `checkpoint` (a file or a pretraining run's directory); print how to load it there.

    Raises:
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if the checkpoint holds no encoder, or the library cannot represent it; the message says why.
        OSError: if the file exists or cannot be written.
    """
    from mimbench.engine.run.bar import working
    from mimbench.jobs.cli.commands import print_json
    from mimbench.jobs.runs.store import encoder_file

    file = encoder_file(checkpoint)
    with working(f"writing {file.name} for {target}"):
        from mimbench.backbones.checkpoints.export import export_encoder

        made = export_encoder(file, target, out, patch)
    if as_json:
        print_json(asdict(made))
        return
    print(f"{made.file}: {made.tensors} tensors, {made.bytes:,} bytes; encoder {made.content[:16]} ({made.family})")
    print(f"  {made.usage}")
    for note in made.notes:
        print(f"  - {note}")

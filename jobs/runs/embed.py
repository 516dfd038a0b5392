"""`mimbench embed CHECKPOINT DATA -o FILE`: an encoder's features of a data set, by the task that knows images."""

from __future__ import annotations

from mimbench.engine.run.bar import working
from mimbench.engine.run.task import Embedding
from mimbench.jobs.runs.tasks import tasks


def show(asked: Embedding, as_json: bool) -> None:
    """Write the features and print what was written.

    Raises:
        ValueError, FileNotFoundError, OSError: as the task's `embed`.
    """
    embed = next(task.embed for task in tasks().values() if task.embed is not None)
    with working(f"encoding {asked.data} with {asked.checkpoint.name}"):
        written = embed(asked)
    if as_json:
        from mimbench.jobs.cli.commands import print_json

        print_json(written)
        return
    print(f"{written['file']}: {written['images']:,} images, features {written['width']} wide")
    print(f"  feature  {written['feature']}, of images of {written['image']} pixels")
    print('  load it  safetensors.torch.load_file(FILE)["features"]; the names of the images are in its metadata')

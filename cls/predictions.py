"""The predictions for every image, stored for inspection and for comparing runs.

    predictions.safetensors    label (N,) int64, top5 (N, 5) int32, best first, score (N, 5) float32 (softmax), and
                               on request logits (N, C) float32; metadata "mimbench_predictions": JSON with the data
                               set, the names of the images below its folder and those of the classes

The images are in the order of the validation split. `mimbench compare-predictions RUN RUN` reads these files.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from mimbench.engine.data.images import ImageFolder
from mimbench.engine.run.atomic import write_with
from mimbench.engine.run.process import rank_and_world
from mimbench.engine.run.result import PREDICTIONS

# B image of a batch, N image of a split, C class


class Predictions:
    """The predictions of one pass over a split, divided among the ranks as by `accuracy.shared`."""

    def __init__(self, logits: bool = False) -> None:
        self._wanted = ("label", "top5", "score", "logits") if logits else ("label", "top5", "score")
        self._batches: list[dict[str, Tensor]] = []

    def add(self, logits_BC: Tensor, label_B: Tensor) -> None:
        """Add the next batch."""
        logits_BC = logits_BC.float()
        top_B5 = logits_BC.topk(min(5, logits_BC.shape[1])).indices  # as accuracy counts; scores may all be 0
        score_B5 = logits_BC.softmax(1).gather(1, top_B5)
        batch = {"label": label_B.long(), "top5": top_B5.int(), "score": score_B5, "logits": logits_BC}
        self._batches.append({name: batch[name].cpu() for name in self._wanted})

    def write(self, path: Path, folder: ImageFolder, data: str) -> None:
        """Write the predictions of all ranks to `path`. Every rank must call it; rank 0 writes.

        Raises:
            OSError: if it cannot be written.
        """
        whole = self._gathered(len(folder))
        if whole is None:
            return
        root = f"{folder.paths.root}/"
        about = {
            "schema": 1,
            "data": data,
            "names": [folder.paths.text(place).removeprefix(root) for place in range(len(folder))],
            "classes": list(folder.classes),
        }
        payload = save(whole, {PREDICTIONS: json.dumps(about)})
        write_with(path, lambda temporary: temporary.write_bytes(payload))

    def _gathered(self, images: int) -> dict[str, Tensor] | None:
        """Return the predictions of all images in the split's order; None except on rank 0."""
        mine = {name: torch.cat([batch[name] for batch in self._batches]) for name in self._wanted if self._batches}
        rank, world = rank_and_world()
        if world == 1:
            return mine
        parts: list[dict[str, Tensor]] | None = [{} for _ in range(world)] if rank == 0 else None
        dist.gather_object(mine, parts)
        if parts is None:
            return None
        whole = {name: value.new_empty(images, *value.shape[1:]) for name, value in mine.items()}
        for first, part in enumerate(parts):
            for name, value in part.items():
                whole[name][first::world] = value
        return whole

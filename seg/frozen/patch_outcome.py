"""What CAPI's two protocols on patches share: encode both splits, choose a setting on held-out images, report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mimbench.engine.data.datasets import locate
from mimbench.engine.run.process import device_name, peak_memory, setup_process
from mimbench.engine.run.result import Outcome
from mimbench.seg.config import PatchConfig
from mimbench.seg.data.split import open_labelled
from mimbench.seg.frozen.encoder import Blocks, frozen_encoder
from mimbench.seg.frozen.patches import Patches, ignored_ids, patches_of
from mimbench.seg.upernet import data_facts


class Chosen(NamedTuple):
    """The setting that is best on held-out training images."""

    setting: dict[str, Any]  # as the result's facts name it
    held_out: dict[str, float]  # mIoU in 0..1 of each setting tried, by its name
    miou: float  # of the chosen setting, on the validation images, in 0..1


def outcome(
    config: PatchConfig,
    metric: str,
    protocol: str,
    choose: Callable[[Patches, Patches, int, tuple[int, ...]], Chosen],
) -> Outcome:
    """Return `metric`, in percent, of the setting that `choose(train, val, images, ignored ids)` chooses.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if one of them is invalid, or there are too few training images.
    """
    device = setup_process(config.compute, config.seed)
    directory = locate(config.data)
    splits = {split: open_labelled(directory, split) for split in ("train", "val")}
    frozen = frozen_encoder(config, Blocks(1), "checkpoint", device)
    # the validation split first: it is shorter, so that a faulty label map is found early
    val, train = (patches_of(config, splits[name], frozen) for name in ("val", "train"))
    ignore = ignored_ids(config, splits["val"])
    chosen = choose(train, val, len(splits["train"]), ignore)
    facts = {
        "protocol": f"{protocol}, CAPI's, with its own mIoU at the square's size",
        **frozen.facts,
        **chosen.setting,
        "held_out_miou": {name: 100 * value for name, value in chosen.held_out.items()},
        "ignore": list(ignore),
        "image": config.image,
        "seed": config.seed,
        "train_images": len(splits["train"]),
        **data_facts(splits["val"]),
    }
    return Outcome(
        metrics={metric: 100 * chosen.miou},
        facts=facts,
        peak_memory=peak_memory(device),
        device=device_name(device),
        family=frozen.family,
    )

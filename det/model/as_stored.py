"""Settings for evaluating a whole detector: those stored in its file, not the recipe's.

    stored = as_stored(config, run.read_about()["recipe"])
    stored.config, stored.taken, stored.departures      # "heads.nms=0.5, not the recipe's 0.6"; explicit settings

Weights do not contain anchors, thresholds, the image size or the number of detections; mimbench's files store them
(`det.model.detector_file`). Only values set explicitly for the run, which differ from the recipe's, override them. For
files without settings, such as detectron2's, the recipe's settings are used.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from mimbench.backbones.weights import open_weights
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.categories import Categories
from mimbench.det.model.detector_config import described
from mimbench.engine.run.process import rank_and_world

log = logging.getLogger(__name__)

GROUPS = ("vitdet", "proposals", "heads")  # all fields of these describe the detector
SINGLE = ("image", "encoder", "pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Stored:
    """The evaluated config, and the origin of its settings."""

    config: MaskRCNNConfig
    categories: Categories | None  # of the file; None if not stored
    taken: tuple[str, ...] = ()  # values from the file that differ from the recipe
    departures: tuple[str, ...] = ()  # values set for the run that differ from the file

    def facts(self) -> dict[str, Any]:
        """Return the origin of the detector's settings, for `result.json`."""
        source = "the checkpoint's" if self.categories else "the recipe's: the checkpoint does not say"
        about: dict[str, Any] = {"settings": source}
        if self.departures:
            about["departures"] = list(self.departures)
        return about


def as_stored(config: MaskRCNNConfig, recipe: str) -> Stored:
    """Return `config`, made from `recipe` (by name), with the settings stored in its checkpoint's file."""
    about = described(open_weights(str(config.checkpoint), "detector"))
    if about is None:
        return Stored(config, None)
    plain, taken, departures = _recipe(recipe), [], []
    values: dict[str, dict[str, Any]] = {group: {} for group in (*GROUPS, "")}
    for group, name in _settings(config):
        ours, theirs = _value(config, group, name), _value(about.config, group, name)
        if ours == theirs:
            continue
        key = f"{group}.{name}" if group else name
        if plain is not None and ours != _value(plain, group, name):
            departures.append(f"{key}={ours}, which was asked for; the detector was stored with {theirs}")
            continue
        values[group][name] = theirs
        taken.append(f"{key}={theirs}, not the recipe's {ours}")
    groups = {group: replace(getattr(config, group), **values[group]) for group in GROUPS}
    if rank_and_world()[0] == 0:
        for line in taken:
            log.info("%s stores %s", config.checkpoint, line)
        for line in departures:
            log.warning("%s is evaluated with other settings than stored: %s", config.checkpoint, line)
    categories = Categories.of(str(config.checkpoint), about.category_ids, about.categories)
    return Stored(replace(config, **groups, **values[""]), categories, tuple(taken), tuple(departures))


def _settings(config: MaskRCNNConfig) -> Iterator[tuple[str, str]]:
    """Yield group ("" for none) and name of every field that describes a detector."""
    for group in GROUPS:
        yield from ((group, each.name) for each in fields(getattr(config, group)))
    yield from (("", name) for name in SINGLE)


def _value(config: MaskRCNNConfig, group: str, name: str) -> Any:
    return getattr(getattr(config, group) if group else config, name)


def _recipe(name: str) -> MaskRCNNConfig | None:
    """Return the config of the recipe `det/...`; None if it does not exist, for example after a renaming."""
    stage, _, function = name.partition("/")
    package = importlib.import_module("mimbench.det.recipes")
    for module in pkgutil.iter_modules(package.__path__):
        build = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), function, None)
        if stage == "det" and callable(build) and isinstance(made := build(), MaskRCNNConfig):
            return made
    return None

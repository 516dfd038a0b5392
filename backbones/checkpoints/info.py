"""The description of an encoder, as stored in the metadata of our files and read by evaluations."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from mimbench.backbones.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD
from mimbench.backbones.config import Interpolation, Traits, ViT

PLAIN = Traits()
CLASSIFIER = "mimbench_classifier"  # the metadata key of our fine-tuned files; its value is `ClassifierInfo` as JSON


@dataclass(frozen=True)
class EncoderInfo:
    """The description of an encoder: how to build it, how to normalise its images, and its origin."""

    family: str  # a name in `families.FAMILIES`
    vit: ViT
    final_norm: bool  # whether it has a final norm with a learned scale, `norm.*`
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of its pretraining images, for values in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    positions: str = "sincos"  # a value of family.Positions
    recipe: str | None = None
    identity: str | None = None  # of the run that pretrained it
    traits: Traits = PLAIN
    interpolation: Interpolation = "bicubic"  # how the family's own protocol resizes positions
    copy: str | None = None  # the set of weights taken from a file that holds several
    partial: tuple[str, ...] = ()  # what `allow_partial` accepted: "head.weight is not part of the encoder"


def to_json(info: EncoderInfo) -> str:
    """Return `info` as JSON for the metadata of our files; the same `info` gives the same text."""
    return json.dumps(asdict(info), sort_keys=True)


def from_json(text: str) -> EncoderInfo:
    """Read what `to_json` wrote. Fields added in later versions may be absent.

    Raises:
        ValueError: if `text` is not valid.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        values["vit"] = ViT(**values["vit"])
        values["traits"] = Traits(**values.get("traits", {}))
        values["partial"] = tuple(values.get("partial", ()))
        return EncoderInfo(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"metadata that this version of mimbench cannot read: {error}") from None


def of_classifier(text: str) -> EncoderInfo:
    """Return the description of the encoder in a fine-tuned file, from the metadata that mimbench wrote.

    Raises:
        ValueError: if `text` is not valid.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        names = ("vit", "mean", "std", "traits", "recipe", "identity", "interpolation")
        kind = values["traits"]["positions"]
        about = {"final_norm": values["pool"] == "cls", "positions": "learned" if kind == "absolute" else kind}
        return from_json(json.dumps({"family": "finetuned", **about, **{name: values[name] for name in names}}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"metadata of a different version of mimbench: {error}") from None


def differences(traits: Traits) -> dict[str, Any]:
    """Return the traits in which an encoder differs from MAE's."""
    found = {field.name: getattr(traits, field.name) for field in fields(traits)}
    return {name: value for name, value in found.items() if value != getattr(PLAIN, name)}

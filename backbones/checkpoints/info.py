"""What an encoder is, as the metadata of our files says it and as evaluations read it."""

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
    """What an encoder is: enough to build it, to feed it, and to say where it came from."""

    family: str  # a name of `families.FAMILIES`
    vit: ViT
    final_norm: bool  # it has a final norm with learned scale, `norm.*`
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the images it was pretrained on, in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    positions: str = "sincos"  # of family.Positions
    recipe: str | None = None
    identity: str | None = None  # of the run that pretrained it
    traits: Traits = PLAIN
    interpolation: Interpolation = "bicubic"  # how the family's own protocol brings positions to another grid
    copy: str | None = None  # which set of weights was taken, of a file that holds several
    partial: tuple[str, ...] = ()  # what `allow_partial` let pass: "head.weight is no part of the encoder"


def to_json(info: EncoderInfo) -> str:
    """`info` as the metadata of our files hold it; the same text for the same `info`."""
    return json.dumps(asdict(info), sort_keys=True)


def from_json(text: str) -> EncoderInfo:
    """What `to_json` wrote. Fields that came with later versions may be absent.

    Raises:
        ValueError: if `text` is not that.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        values["vit"] = ViT(**values["vit"])
        values["traits"] = Traits(**values.get("traits", {}))
        values["partial"] = tuple(values.get("partial", ()))
        return EncoderInfo(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"metadata of another version of mimbench, or none of ours: {error}") from None


def of_classifier(text: str) -> EncoderInfo:
    """What the metadata of a fine-tuned file of ours say of the encoder in it.

    Raises:
        ValueError: if `text` is not that.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        names = ("vit", "mean", "std", "traits", "recipe", "identity", "interpolation")
        kind = values["traits"]["positions"]
        about = {"final_norm": values["pool"] == "cls", "positions": "learned" if kind == "absolute" else kind}
        return from_json(json.dumps({"family": "finetuned", **about, **{name: values[name] for name in names}}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"metadata of another version of mimbench: {error}") from None


def differences(traits: Traits) -> dict[str, Any]:
    """The traits in which an encoder is not MAE's."""
    found = {field.name: getattr(traits, field.name) for field in fields(traits)}
    return {name: value for name, value in found.items() if value != getattr(PLAIN, name)}

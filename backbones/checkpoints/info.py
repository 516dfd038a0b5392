"""The description of an encoder, as stored in the metadata of our files and read by evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from mimbench.backbones.config import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Traits, ViT, Windows

PLAIN = Traits()
CLASSIFIER = "mimbench_classifier"  # the metadata key of our fine-tuned files; its value is `ClassifierInfo` as JSON

TRAINING = {  # of the families whose files all come from one kind of training; the others may be either
    **dict.fromkeys(("mae", "crossmae", "maskalign"), "pretrained without labels"),
    "finetuned": "trained with labels",
}


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
    assumed: tuple[str, ...] = ()  # what neither the file, a config beside it nor an option told: "heads", "mean" ...
    partial: tuple[str, ...] = ()  # what `allow_partial` accepted: "head.weight is not part of the encoder"
    replaced: tuple[str, ...] = ()  # the user's settings that replace what is stated or published, in words


def to_json(info: EncoderInfo) -> str:
    """Return `info` as JSON for the metadata of our files; the same `info` gives the same text."""
    values = asdict(info)
    if not info.replaced:
        del values["replaced"]  # earlier versions of mimbench read these files
    return json.dumps(values, sort_keys=True)


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
        values |= {name: tuple(values.get(name, ())) for name in ("partial", "assumed", "replaced")}
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


def tuned_from(metadata: Mapping[str, str]) -> str | None:
    """Return the family of the encoder that a classifier of ours was fine-tuned from; None of any other file."""
    return str(json.loads(metadata[CLASSIFIER]).get("family")) if CLASSIFIER in metadata else None


def differences(traits: Traits) -> dict[str, Any]:
    """Return the traits in which an encoder differs from MAE's, as JSON values."""
    found = {field.name: getattr(traits, field.name) for field in fields(traits)}
    return {name: _plain(value) for name, value in found.items() if value != getattr(PLAIN, name)}


def meaning(info: Any) -> dict[str, Any]:
    """What changes an encoder's features beside its tensors, as JSON values: part of its content hash.

    `info` is an `EncoderInfo` or a `ClassifierInfo`. Where the file came from, and what was assumed, do not count;
    statistics count to six decimals, and traits only where they are not MAE's, so that a trait added by a later release
    changes no hash.
    """
    found: dict[str, Any] = {"vit": asdict(info.vit), "interpolation": info.interpolation}
    found |= {name: [round(float(value), 6) for value in getattr(info, name)] for name in ("mean", "std")}
    found["traits"] = differences(info.traits)
    return found | {name: getattr(info, name) for name in ("final_norm", "pool", "eval_crop") if hasattr(info, name)}


def _plain(value: Any) -> Any:
    if isinstance(value, Windows) and value.grid is None:  # added later: files without it keep their hashes
        return {"side": value.side, "global_blocks": value.global_blocks}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def recorded(info: Any) -> dict[str, Any]:
    """What `result.json` says of the encoder that a run started from: how its images and tokens are treated.

    `assumed` lists what no file and no setting told, so that a family's usual value was taken. `replaced`, which is
    there only if it is not empty, lists the settings that replace what the file states or what is published.
    """
    replaced = list(getattr(info, "replaced", ()))
    return {
        "mean": list(info.mean),
        "std": list(info.std),
        "heads": info.vit.heads,
        "activation": info.traits.activation,
        "norm_eps": info.traits.norm_eps,
        "image": info.vit.image,
        "patch": info.vit.patch,
        "assumed": list(getattr(info, "assumed", ())),
        **({"replaced": replaced} if replaced else {}),
    }


def assumption(info: EncoderInfo) -> str:
    """Return in one line what is assumed about an encoder, with the values, and which options replace them."""
    values = {
        "heads": str(info.vit.heads),
        "activation": info.traits.activation,
        "norm_eps": f"{info.traits.norm_eps:g}",
        "mean": _listed(info.mean),
        "std": _listed(info.std),
        "grid": f"{info.vit.grid} x {info.vit.grid}",
    }
    said = ", ".join(f"{name} {values[name]}" for name in info.assumed)
    settled = ", ".join(f"{name}=" for name in info.assumed)
    return f"the file does not tell {', '.join(info.assumed)}; assumed: {said}; {settled} settles it"


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)

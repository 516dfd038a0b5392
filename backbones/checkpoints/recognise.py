"""Which family a file is of: by its names and shapes, and where they are of two encoders, by what is said of it.

A file that two families with other arithmetic fit alike (`Family.rivals`) is never read as either in silence: what is
said beside the keys decides, else the file is refused with the names that `family=` takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from mimbench.backbones.checkpoints.families import FAMILIES
from mimbench.backbones.checkpoints.family import Family, matches
from mimbench.backbones.checkpoints.keys import ENCODER_LIKE, MMDETECTION, other_network
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.checkpoints.stated import Stated

HUGGING_FACE = r"(.*\.)?embeddings\.patch_embeddings?\.(projection\.)?weight"  # only transformers' ViTs have it
FORMERLY = {"pe": "pe_spatial"}  # names that `family=` of earlier releases took, and today's
NAMED = 3  # keys or differences that an error names


def recognise(opened: Opened, seen: Mapping[str, Tensor], said: Sequence[Stated]) -> Family:
    """The family of a file whose tensors, without wrappers, are `seen`.

    Raises:
        ValueError: in one line, if it is of none, of more than one, or not of the one that is asked for.
    """
    found = (family for family in FAMILIES if not family.signature.differences(seen) and family.fits(seen))
    first = next(found, None)
    if first is not None and not said and not first.rivals:
        return first
    fitting = [] if first is None else [first, *found]
    asked = next((one.family for one in said if one.family is not None), None)
    if asked is not None:
        return _asked(opened, seen, fitting, asked, said)
    if first is None:
        raise ValueError(_unknown(opened, seen))
    by_name = _by_model(fitting, said)
    if by_name is not None:
        return by_name
    rivals = [family for family in fitting[1:] if family.name in first.rivals]
    if rivals and not (first.wrapper and opened.found_under.split(".")[0] == first.wrapper):
        raise ValueError(_either(opened, [first, *rivals]))
    return first


def _by_model(fitting: Sequence[Family], said: Sequence[Stated]) -> Family | None:
    """Of `fitting` the first that the name of the model is of."""
    names = [one.model for one in said if one.model is not None]
    return next(
        (family for name in names for family in fitting if family.models and re.fullmatch(family.models, name)), None
    )


def _asked(
    opened: Opened, seen: Mapping[str, Tensor], fitting: Sequence[Family], name: str, said: Sequence[Stated]
) -> Family:
    found = next((family for family in fitting if family.name in (name, FORMERLY.get(name))), None)
    if found is not None:
        _require_its_model(opened, fitting, found, said)
        return found
    of_name = [family for family in FAMILIES if family.name == name]
    if not of_name:
        known = ", ".join(sorted({family.name for family in FAMILIES}))
        raise ValueError(f"{opened.file}: family={name} is no family; the families are {known}")
    differing = [family.signature.differences(seen) for family in of_name]
    why = ", ".join(min(differing, key=len)[:NAMED]) or "has other shapes or values than its files"
    fit = ", ".join(dict.fromkeys(family.name for family in fitting)) or "none"
    raise ValueError(f"{opened.file} is not of family={name}: it {why}; the families that it fits: {fit}")


def _require_its_model(opened: Opened, fitting: Sequence[Family], asked: Family, said: Sequence[Stated]) -> None:
    """Refuse `family=` that contradicts the name of the model in the file or beside it."""
    for one in said:
        states = _by_model(fitting, (one,))
        if states is not None and states.name != asked.name:
            raise ValueError(
                f"{opened.file}: family={asked.name} contradicts {one.source}: {one.model} is a model of "
                f"family={states.name}; leave family= out"
            )


def _either(opened: Opened, families: Sequence[Family]) -> str:
    titles = " and ".join(family.title for family in families)
    options = " or ".join(f"family={family.name}" for family in families)
    return (
        f"{opened.file} fits {titles} alike, which are different encoders, and neither the file nor a config.json "
        f"beside it tells which; add {options}"
    )


def _unknown(opened: Opened, seen: Mapping[str, Tensor]) -> str:
    if any(matches(HUGGING_FACE, key) for key in opened.weights):
        return (
            f"{opened.file} has the names of Hugging Face's transformers, whose config.json tells heads, activation "
            f"and eps; put config.json beside the file, or give the folder of both"
        )
    what = other_network(seen)
    known = "mimbench reads Vision Transformers"
    if what == MMDETECTION:
        known += ", and whole ViTDet detectors with detectron2's names; rename its keys, or give the encoder alone"
    if what is not None:
        return f"{opened.file} holds {what}, by its keys ({', '.join(list(seen)[:NAMED])} ...); {known}"
    where = f" (under {opened.found_under!r})" if opened.found_under else ""
    nearest = _nearest(seen) if any(ENCODER_LIKE.match(key) for key in seen) else "No key is named as in a ViT"
    return (
        f"{opened.file} belongs to no known family{where}. {nearest}; "
        f"it begins with {', '.join(list(opened.weights)[:NAMED])}"
    )


def _nearest(seen: Mapping[str, Tensor]) -> str:
    """Describe the family of whose rules the file breaks the smallest share.

    By their number, a family with two rules would be the nearest to almost any file.
    """
    differing = [(family.signature.differences(seen), family) for family in reversed(FAMILIES)]
    faults, nearest = min(
        ((found, family) for found, family in differing if found),
        key=lambda pair: (len(pair[0]) / len(pair[1].signature), len(pair[0])),
    )
    return f"The nearest is {nearest.name}, but the file {', '.join(faults[:NAMED])}"

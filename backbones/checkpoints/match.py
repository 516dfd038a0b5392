"""Recognise the family of a checkpoint, and give every key a verdict: loaded, converted, dropped, suspicious.

    matched = match(open_checkpoint("mae_pretrain_vit_base_full.pth"))
    matched.family.name, matched.vit, matched.count("loaded")
    matched.require()           # raises an error that names every key not accounted for
    matched.tensors             # the encoder's, with mimbench's names; views of the file until they are read

Only small tensors (a position table) are read here, so inspecting a large file is fast. Matrices that a conversion
joins, queries with keys and values or gates with values, are joined when `tensors` is asked for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.agreement import Agreement
from mimbench.backbones.checkpoints.families.ours import ours
from mimbench.backbones.checkpoints.family import Family, Positions, compiled, matches
from mimbench.backbones.checkpoints.huggingface.family import family_of
from mimbench.backbones.checkpoints.info import CLASSIFIER, EncoderInfo, from_json, of_classifier, tuned_from
from mimbench.backbones.checkpoints.keys import unwrap
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.checkpoints.recognise import recognise
from mimbench.backbones.checkpoints.safetensors_header import METADATA
from mimbench.backbones.checkpoints.stated import Stated, stated
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.positions import rows_first, sincos_2d, split_table
from mimbench.backbones.shapes import Shape, encoder_shapes

Verdict = Literal["loaded", "converted", "expected missing", "expected dropped", "suspicious"]
VERDICTS: tuple[Verdict, ...] = ("loaded", "converted", "expected missing", "expected dropped", "suspicious")
NAMED = 3  # number of keys that an error names
PARTS = r"blocks\.\d+\.|patch_embed\.|rope|norm|neck\.|\w*(token|pos_embed)|.*rel_pos"  # parts of an encoder
JOINED = r"blocks\.\d+\.(attn\.[qkv]_proj|mlp\.(gate|up)_proj)\.weight"  # by renamed keys; joined when they are read
TOKENS = ("cls_token", "reg_token", "pos_embed")  # without one of them, another encoder
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Entry:
    """One key of the file, or a missing key, with its verdict."""

    key: str  # the file's name; the encoder's name if the file lacks it
    verdict: Verdict
    to: str | None = None  # the encoder's name, if loaded or converted
    note: str = ""  # how it was converted, what was dropped, or why it is suspicious
    shape: tuple[int, ...] = ()
    bytes: int = 0  # in the file
    fatal: bool = False  # not accepted even with `allow_partial`: a contradiction, or another encoder


@dataclass(frozen=True)
class Matched:
    """A recognised checkpoint with a verdict on every key."""

    opened: Opened
    family: Family
    wrappers: tuple[str, ...]  # removed from the names
    vit: ViT
    traits: Traits
    final_norm: bool
    positions: Positions
    entries: tuple[Entry, ...]  # in the file's order, then missing keys
    shapes: Mapping[str, Tensor]  # as `tensors`; those that are joined have shape and type, and no numbers
    mean: Triple  # of its pretraining images, for values in 0..1
    std: Triple
    assumed: tuple[str, ...] = ()  # not told: "heads", "activation", "norm_eps", "mean", "std", "grid"
    recorded: EncoderInfo | None = None  # the metadata of a file that mimbench wrote
    replaced: tuple[str, ...] = ()  # settings of the user that replace what the file states, or what is published
    read: Callable[[], Mapping[str, Tensor]] = field(default=dict, repr=False)  # converts again, with all numbers

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The encoder's loaded and converted weights, with mimbench's names."""
        if not any(value.is_meta for value in self.shapes.values()):
            return self.shapes
        whole = self.read()
        return {name: whole[name] if value.is_meta else value for name, value in self.shapes.items()}

    def of(self, verdict: Verdict) -> tuple[Entry, ...]:
        """Return the entries with this verdict."""
        return tuple(entry for entry in self.entries if entry.verdict == verdict)

    def require(self, allow_partial: bool = False) -> tuple[str, ...]:
        """Refuse keys that are not accounted for; with `allow_partial`, return them: "head.weight is ...".

        Raises:
            ValueError: in one line that names the keys.
        """
        suspicious = self.of("suspicious")
        stopping = [entry for entry in suspicious if entry.fatal or not allow_partial]
        if stopping:
            fatal = any(entry.fatal for entry in stopping)
            raise ValueError(_refusal(self.opened.file, self.family, [_said(entry) for entry in stopping], fatal))
        return tuple(_said(entry) for entry in suspicious)


def match(opened: Opened) -> Matched:
    """Recognise the family of `opened` and give every key a verdict.

    Raises:
        ValueError: in one line, if it belongs to no known family, or its shapes are not a Vision Transformer's.
    """
    recorded = _recorded(opened)
    described = None if recorded else family_of(opened)  # by transformers' config.json
    names, wrappers = unwrap(opened.weights) if described is None else ({key: key for key in opened.weights}, ())
    seen = {name: opened.weights[key] for key, name in names.items()}
    said = stated(opened)
    if recorded is not None or described is not None:
        said = said[:1] if opened.options else ()  # the file, or transformers' config, says everything else
    family = described or (
        ours(recorded, METADATA not in opened.metadata) if recorded else recognise(opened, seen, said)
    )
    sorting = _Sorting(opened, family, names, said, Agreement(said, family, recorded, described is not None))
    try:
        if recorded is not None or described is not None:
            sorting.agreement.require_family((family.name, tuned_from(opened.metadata)))
        return sorting.matched(wrappers, recorded)
    except ValueError as error:
        raise ValueError(f"{opened.file}: recognised as {family.title}, but {error}") from None


def _recorded(opened: Opened) -> EncoderInfo | None:
    try:
        if METADATA in opened.metadata:
            return from_json(opened.metadata[METADATA])
        return of_classifier(opened.metadata[CLASSIFIER]) if CLASSIFIER in opened.metadata else None
    except ValueError as error:
        raise ValueError(f"{opened.file} has {error}") from None


# -------------------------------------------------------------------------------------------------- what each key is


class _Sorting:
    """Convert the keys of one file to the encoder's."""

    def __init__(
        self, opened: Opened, family: Family, names: Mapping[str, str], said: Sequence[Stated], agreement: Agreement
    ) -> None:
        self.opened, self.family, self.said, self.agreement = opened, family, said, agreement
        self.entries: dict[str, Entry] = {}  # by the file's key
        self.came_from: dict[str, str] = {}  # the encoder's name -> the file's key
        self.tensors: dict[str, Tensor] = {}
        self.whole: dict[str, Tensor] = {}  # before conversion, with all numbers
        self.how: dict[str, str] = {}  # the encoder's name -> how it was converted
        for key, name in names.items():
            self._rename(key, name)

    def matched(self, wrappers: tuple[str, ...], recorded: EncoderInfo | None) -> Matched:
        """Return the verdict on every key."""
        self._convert()
        traits = self._traits()
        final_norm = recorded.final_norm if recorded else self._final_norm()
        vit = recorded.vit if recorded else self._sizes()
        vit = replace(vit, heads=self._heads(vit))
        self.agreement.require_grid(vit.grid)
        wanted = encoder_shapes(vit, final_norm, traits)
        self._fit_table(wanted)
        self._judge(wanted)
        lacking = [self._lacks(name, shape) for name, shape in wanted.items() if name not in self.came_from]
        return Matched(
            opened=self.opened,
            family=self.family,
            wrappers=wrappers,
            vit=vit,
            traits=traits,
            final_norm=final_norm,
            positions=_positions(self.tensors, traits),
            entries=(*(self.entries[key] for key in self.opened.weights), *lacking),
            shapes={name: self.tensors[name] for name in wanted if name in self.tensors},
            mean=self.agreement.value("mean", lambda: self.family.mean),
            std=self.agreement.value("std", lambda: self.family.std),
            replaced=tuple(self.agreement.replaced),
            assumed=recorded.assumed if recorded and not self.said else self._assumed(vit, recorded),
            recorded=recorded,
            read=partial(_converted, self.family, self.whole),
        )

    def _told(self, name: str) -> Any:
        """Return the first statement about `name` beside the keys; None if there is none."""
        return next((value for one in self.said if (value := getattr(one, name)) is not None), None)

    def _traits(self) -> Traits:
        """Return the family's traits, replaced where something beside the keys states them.

        Raises:
            ValueError: if the stated model is not supported, or does not belong to this family.
        """
        traits = self.family.traits(self.tensors)
        given = self.agreement.given
        if traits.mlp != "mlp" and given is not None and given.activation is not None:
            raise ValueError(
                f"activation={given.activation} is given, and its MLP is SwiGLU, whose gate is always SiLU; "
                "leave activation= out"
            )
        told = {
            "norm_eps": self.agreement.value("norm_eps", lambda: traits.norm_eps),
            "activation": self.agreement.value("activation", lambda: traits.activation),
        }
        built, source = next(((one.architecture, one.source) for one in self.said if one.architecture), (None, ""))
        if built is not None and built.reason is not None:
            raise ValueError(f"{source} names timm's {built.name}, which mimbench does not support: {built.reason}")
        if built is not None and built.rotary != traits.rotary:
            raise ValueError(
                f"{source} names timm's {built.name}, {'with' if built.rotary else 'without'} rotary positions"
            )
        if built is not None and built.rope is not None:
            told["rope"] = built.rope
        if traits.mlp != "mlp":
            told.pop("activation", None)
        return replace(traits, **told)

    def _assumed(self, vit: ViT, recorded: EncoderInfo | None) -> tuple[str, ...]:
        """Return what neither the file, anything beside it nor the family's published sizes tell."""
        usual = recorded.assumed if recorded else self.family.unsure
        published = (vit.width, vit.depth) in self.family.sizes or self.family.shown_heads(self.tensors) is not None
        heads = not recorded and not self.agreement.described and not published
        grid = heads and _learned(self.tensors)
        names = (*(("heads",) if heads else ()), *usual, *(("grid",) if grid else ()))
        return tuple(name for name in dict.fromkeys(names) if self._told(name) is None)

    def _rename(self, key: str, name: str) -> None:
        what = next((what for rule, what in self.family.dropped if matches(rule, name)), None)
        if what is not None:
            self._enter(key, "expected dropped", note=what)
            return
        if not name.startswith(self.family.prefix):
            self._enter(key, "suspicious", note=f"has no prefix {self.family.prefix} and is unknown in this family")
            return
        new = name.removeprefix(self.family.prefix)
        for rule, replacement in self.family.renames:
            new = compiled(rule).sub(replacement, new)
        if new in self.came_from:
            self._enter(key, "suspicious", note=f"would become {new}, as does {self.came_from[new]}", fatal=True)
            return
        self.came_from[new], self.whole[new] = key, self.opened.weights[key]
        later = self.family.convert is not None and matches(JOINED, new)
        self.tensors[new] = torch.empty_like(self.whole[new], device="meta") if later else self.whole[new]

    def _convert(self) -> None:
        if self.family.convert is None:
            return
        before = dict(self.tensors)
        self.tensors, self.how = self.family.convert(dict(before))
        self.tensors = dict(self.tensors)
        for name in [name for name in before if name not in self.tensors]:
            into = _nearest(name, self.how)
            self._enter(self.came_from.pop(name), "converted", to=into, note=self.how.get(into or "", "used up"))
        for name in self.tensors:
            self.came_from.setdefault(name, "")

    def _final_norm(self) -> bool:
        return self.family.final_norm == "as found" and "norm.weight" in self.tensors

    def _sizes(self) -> ViT:
        kernel = self.tensors.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 4:
            raise ValueError("patch_embed.proj.weight is missing or has not 4 axes")
        width, colours, patch, other = kernel.shape
        if colours != 3 or patch != other:
            raise ValueError(f"its patches have {colours} channels and {patch} x {other} pixels; need 3 and square")
        numbers = [int(name.split(".")[1]) for name in self.tensors if re.match(r"blocks\.\d+\.", name)]
        image = self.family.grid(self.tensors) * patch
        return ViT(width, 1 + max(numbers, default=-1), 1, patch, image)

    def _heads(self, vit: ViT) -> int:
        """Return the number of heads of an encoder of this width and depth."""
        published = (vit.width, vit.depth) in self.family.sizes
        shown = self.family.shown_heads(self.tensors)
        heads: int = self.agreement.value("heads", lambda: self.family.heads(vit.width), shown, published)
        return heads

    def _fit_table(self, wanted: Mapping[str, Shape]) -> None:
        """Add a row of zeros for the class token to the position table, or remove its row, as the encoder needs."""
        table, shape = self.tensors.get("pos_embed"), wanted.get("pos_embed")
        if table is None or shape is None or table.ndim != 3:
            return
        patches, token = split_table(table)
        if len(shape) != 3 or patches.shape[1] + 1 - token.shape[1] != shape[1]:
            return
        if token.shape[1]:
            self.tensors["pos_embed"], self.how["pos_embed"] = patches, "without the class token's row"
        else:
            row = table.new_zeros(1, 1, table.shape[2])
            self.tensors["pos_embed"] = torch.cat([row, table], dim=1)
            self.how["pos_embed"] = "with a row of zeros for the class token"

    def _judge(self, wanted: Mapping[str, Shape]) -> None:
        for name, key in self.came_from.items():
            if key:
                self._judge_one(name, key, wanted)

    def _judge_one(self, name: str, key: str, wanted: Mapping[str, Shape]) -> None:
        tensor = self.tensors[name]
        if name not in wanted:
            unknown = f"is not part of the encoder and unknown in {self.family.name} files"
            why = next((why for rule, why in self.family.unfit if matches(rule, name)), unknown)
            another = why is unknown and compiled(PARTS).match(name) is not None
            self._enter(key, "suspicious", note=why, fatal=another)
        elif tensor.shape != wanted[name]:
            shapes = f"{_by(tensor.shape)}, but the rest of the file needs {_by(wanted[name])}"
            self._enter(key, "suspicious", note=f"has shape {shapes}", fatal=True)
        elif not tensor.is_floating_point():
            self._enter(key, "suspicious", note=f"has dtype {tensor.dtype}, which is not floating-point", fatal=True)
        elif name in self.how:
            self._enter(key, "converted", to=name, note=self.how[name])
        else:
            self._enter(key, "loaded", to=name)

    def _lacks(self, name: str, shape: Shape) -> Entry:
        if any(matches(rule, name) for rule in self.family.missing):
            self.tensors[name], note = _stand_in(name, shape)
            return Entry(name, "expected missing", to=name, note=note, shape=tuple(shape))
        another = name in TOKENS or name.endswith(".gamma")
        return Entry(name, "suspicious", note="is missing", shape=tuple(shape), fatal=another)

    def _enter(self, key: str, verdict: Verdict, to: str | None = None, note: str = "", fatal: bool = False) -> None:
        tensor = self.opened.weights[key]
        self.entries[key] = Entry(key, verdict, to, note, tuple(tensor.shape), tensor.nbytes, fatal)


def _converted(family: Family, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors if family.convert is None else family.convert(dict(tensors))[0]


def _positions(tensors: Mapping[str, Tensor], traits: Traits) -> Positions:
    """Return the kind of its positions; a fixed table is recognised by its values."""
    if traits.positions != "absolute":
        return traits.positions
    return "learned" if rows_first(tensors["pos_embed"]) is None else "sincos"


def _learned(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether there is a learned table, whose rows do not tell a square grid from another."""
    return "pos_embed" in tensors and rows_first(tensors["pos_embed"]) is None


def _stand_in(name: str, shape: Shape) -> tuple[Tensor, str]:
    """Return the value of a weight that its family's files leave out, and how it was made."""
    if name == "pos_embed":
        side = math.isqrt(shape[1])
        return sincos_2d(shape[2], (side, side), class_token=side**2 != shape[1]), "the fixed sine-cosine table"
    if name.endswith(".bias") or name == "cls_token":
        return torch.zeros(shape), "zeros"
    return torch.ones(shape), "ones"


def _nearest(name: str, candidates: Mapping[str, str]) -> str | None:
    """Return the converted weight that a consumed one was merged into: its neighbour in the tree of names."""
    parts = name.split(".")

    def alike(first: Sequence[str], second: Sequence[str]) -> int:
        pairs = zip(first, second, strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def shared(other: str) -> tuple[bool, int, int]:
        renamed = candidates[other].removesuffix(" by another name") in name
        return renamed, alike(parts, other.split(".")), alike(name[::-1], other[::-1])  # a weight goes into a weight

    return max(candidates, key=shared, default=None)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _said(entry: Entry) -> str:
    return f"{entry.key} {entry.note}"


def _refusal(file: object, family: Family, said: list[str], fatal: bool) -> str:
    more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
    way_out = "" if fatal else "; allow_partial=true loads the keys that fit"
    return (
        f"{file}, recognised as {family.title}, has unexplained keys: {', '.join(said[:NAMED])}{more}. "
        f"`mimbench inspect` shows every key{way_out}"
    )


def counts(matched: Matched) -> dict[Verdict, int]:
    """Return the number of keys with each verdict."""
    found = Counter(entry.verdict for entry in matched.entries)
    return {verdict: found[verdict] for verdict in VERDICTS}

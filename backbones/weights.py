"""The one door for weights: what a checkpoint is, by its file and by what it is taken for.

    found = open_weights("mae_pretrain_vit_base.pth")               # names and shapes; no weight is read
    found.kind, found.family, found.vit, found.mean                 # "encoder", "mae", ViT(768, 12, 12), ...
    found.require()                                                 # refuse keys that are not accounted for
    found.tensors                                                   # read: float32, finite, by canonical names
    model, info = found.build_encoder()
    open_weights("model_final.pkl", "detector").kind                # "detector": all of it is taken

`inspect`, run identities, and whatever builds an encoder, a classifier, a detector or a teacher ask here. A file is
opened once in a process (`checkpoints.opening`). What a file is depends on the role it is taken in:

| role | what is taken |
|---|---|
| encoder | the encoder in it; a detector's, where its relative positions are untrained |
| classifier | encoder and head |
| detector | a whole detector; a ViTDet backbone with trained relative positions; else the encoder |
| teacher | the encoder; of a network that is no encoder to us, all weights as they are |

`my_encoder.py:build` is a user's own encoder (`backbones.user_encoder`): its file is code, and is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.detector import detector_weights, is_detector, trained_relative_positions
from mimbench.backbones.checkpoints.digest import tensors_hash
from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.checkpoints.location import Role
from mimbench.backbones.checkpoints.match import Matched, encoder_shapes, match
from mimbench.backbones.checkpoints.opening import Opened, open_checkpoint
from mimbench.backbones.checkpoints.report import Report, report
from mimbench.backbones.classifier_file import classifier_in
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.vit import VisionTransformer

Pool = Literal["avg", "cls"]
Kind = Literal["encoder", "classifier", "detector", "ViTDet backbone", "other network"]


@dataclass(frozen=True)
class Weights:
    """A checkpoint's file that is open, taken in a role."""

    opened: Opened
    role: Role
    kind: Kind
    allow_partial: bool

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.opened.file

    @property
    def family(self) -> str:
        """A name of `families.FAMILIES`, or the kind of what has none."""
        return self.matched.family.name if self.holds_encoder else self.kind

    @property
    def vit(self) -> ViT:
        """Sizes of the encoder."""
        return self.matched.vit

    @property
    def traits(self) -> Traits:
        """What the encoder has beyond MAE's ViT."""
        return self.matched.traits

    @property
    def holds_encoder(self) -> bool:
        """Whether an encoder is what is taken, alone or with what belongs to it; not so of a whole detector."""
        return self.kind not in ("detector", "other network")

    @cached_property
    def matched(self) -> Matched:
        """What every key of the file is.

        Raises:
            ValueError: in one line, if it is of no known family, or what is taken is no encoder.
        """
        if not self.holds_encoder:
            raise ValueError(f"{self.file} is taken as a {self.kind}, which is no encoder alone")
        return match(self.opened)

    def require(self) -> tuple[str, ...]:
        """Refuse keys that are not accounted for; with `allow_partial`, say which were let pass.

        Raises:
            ValueError: in one line that names the keys.
        """
        return self.matched.require(self.allow_partial) if self.holds_encoder else ()

    @cached_property
    def relative_positions(self) -> dict[str, Tensor]:
        """Trained relative positions of a ViTDet backbone, by a detector's names; empty of any other kind."""
        return trained_relative_positions(self.opened) if self.kind == "ViTDet backbone" else {}

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights by our names, in float32 on the CPU; copies, which may be changed.

        What `allow_partial` lets be missing is drawn at random, the same each time.

        Raises:
            ValueError: in one line, if keys are not accounted for, or weights are not finite.
        """
        matched = self.matched
        self.require()
        state = {key: value.to(torch.float32, copy=True) for key, value in matched.tensors.items()}
        _require_finite(state, self.file)
        return {**_drawn(matched, state), **state}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All weights that the role takes, in float32 on the CPU; copies, but for another network's.

        Raises:
            ValueError: as `encoder`.
        """
        if self.kind == "detector":
            return detector_weights(self.opened)
        if self.kind == "classifier":
            return dict(classifier_in(self.opened)[0].state_dict())
        if self.kind == "other network":
            return dict(self.opened.weights)
        return {**self.encoder, **self.relative_positions}

    @property
    def content_hash(self) -> str:
        """As `backbones.content.content_hash`, which remembers it."""
        try:
            return tensors_hash(self.tensors)
        except ValueError:
            if self.role != "teacher":
                raise
            return tensors_hash(self.opened.weights)

    @property
    def info(self) -> EncoderInfo:
        """What the encoder is: enough to build it, to feed it, and to say where it came from.

        Raises:
            ValueError: as `require`.
        """
        matched, partial = self.matched, self.require()
        if matched.recorded is not None:
            return replace(matched.recorded, partial=matched.recorded.partial + partial)
        family = matched.family
        return EncoderInfo(
            family=family.name,
            vit=matched.vit,
            final_norm=matched.final_norm,
            mean=family.mean,
            std=family.std,
            positions=matched.positions,
            traits=matched.traits,
            interpolation=family.interpolation,
            copy=self.opened.found_under if self.opened.copies else None,
            partial=partial,
        )

    def report(self) -> Report:
        """What there is to tell a person: every key, what the file holds, and whether it loads."""
        return report(self.matched)

    def build_encoder(
        self, pool: Pool = "avg", interpolation: Interpolation | None = None
    ) -> tuple[VisionTransformer, EncoderInfo]:
        """The encoder as a model; positions go to other grids by `interpolation`, by default as its family does it.

        Raises:
            ValueError: as `encoder`; also if `pool` asks for a class token that there is not.
        """
        state, info = self.encoder, self.info
        info = replace(info, interpolation=interpolation or info.interpolation)
        model = VisionTransformer(info.vit, info.final_norm, pool, info.traits, info.interpolation)
        model.load_state_dict(state)
        return model, info


def open_weights(
    path: str | Path, role: Role = "encoder", *, allow_partial: bool = False, copy: str | None = None
) -> Weights:
    """What the file at `path` is when it is taken as `role`.

    Args:
        path: a file of any known family; a `file://` URL, or `?copy=ema` at the end, will do.
        role: what it is taken for.
        allow_partial: let keys pass that are not accounted for. What is missing is drawn at random, the same each time,
            what is unknown is left out, and `EncoderInfo.partial` names both.
        copy: which set of weights to take from a file that holds several ("ema", "teacher", ...).

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line, if the file is not a checkpoint, or is not safe to open. That it is of no known family
            is said when the encoder in it is asked for.
    """
    opened = open_checkpoint(path, copy)
    if role == "detector" and is_detector(opened):
        return Weights(opened, role, "detector", allow_partial)
    if role == "classifier":
        return Weights(opened, role, "classifier", allow_partial)
    if role == "detector" and trained_relative_positions(opened):
        return Weights(opened, role, "ViTDet backbone", allow_partial=True)
    found = Weights(opened, role, "encoder", allow_partial)
    if role == "teacher" and not _is_encoder(found):
        return replace(found, kind="other network")
    return found


def _is_encoder(found: Weights) -> bool:
    try:
        return bool(found.matched)
    except ValueError:
        return False


def _require_finite(state: Mapping[str, Tensor], file: Path) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            wrong = int((~value.isfinite()).sum())
            raise ValueError(
                f"{file}: {wrong} of the {value.numel()} weights in {name} are NaN or infinite; "
                f"the training diverged, or the file is damaged"
            )


def _drawn(matched: Matched, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file lacks, from a fresh encoder of a fixed seed; nothing where it is whole."""
    if len(state) == len(encoder_shapes(matched.vit, matched.final_norm, matched.traits)):
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = VisionTransformer(matched.vit, matched.final_norm, traits=matched.traits).state_dict()
    return {key: value for key, value in fresh.items() if key not in state}

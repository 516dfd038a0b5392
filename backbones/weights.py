"""Open any checkpoint: what it holds, and what a run takes from it. All other code opens weights here.

    found = open_weights("mae_pretrain_vit_base.pth")               # names and shapes; no weight is read
    found.kind, found.family, found.vit, found.mean                 # "encoder", "mae", ViT(768, 12, 12), ...
    found.require()                                                 # refuse keys that are not accounted for
    found.tensors                                                   # read now: float32, finite, canonical names
    model, info = found.build_encoder()
    open_weights("model_final.pkl", "detector").kind                # "detector": all its weights are taken

`inspect`, run identities, and all code that builds an encoder, a classifier, a detector or a teacher use it. A file is
opened once in a process (`checkpoints.opening`). The role decides what is taken from a file:

| role | weights taken |
|---|---|
| encoder | the encoder; a detector's encoder only if its relative positions are untrained |
| classifier | encoder and head |
| detector | a whole detector; a ViTDet backbone with trained relative positions; otherwise the encoder |
| segmenter | a whole segmenter; otherwise the encoder |
| teacher | the encoder; if the network is not an encoder known to mimbench, all weights unchanged |

`my_encoder.py:build` is a user's own encoder (`backbones.user_encoder`): its file is code and is run.

Models, and with them timm, are imported only when one is built: `inspect` and hashes of files do without.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoints.agreement import require_none_given
from mimbench.backbones.checkpoints.detector import detector_weights, is_detector, trained_relative_positions
from mimbench.backbones.checkpoints.digest import Hashes, tensors_hash
from mimbench.backbones.checkpoints.finite import require_finite
from mimbench.backbones.checkpoints.info import EncoderInfo, assumption, meaning
from mimbench.backbones.checkpoints.location import Role
from mimbench.backbones.checkpoints.match import Matched, match
from mimbench.backbones.checkpoints.opening import Opened, open_checkpoint
from mimbench.backbones.checkpoints.report import Report, report
from mimbench.backbones.checkpoints.segmenter import is_segmenter, segmenter_meaning, segmenter_weights
from mimbench.backbones.config import Interpolation, Traits, ViT
from mimbench.backbones.shapes import encoder_shapes

if TYPE_CHECKING:
    from mimbench.backbones.classifier import Classifier
    from mimbench.backbones.classifier_file import ClassifierInfo
    from mimbench.backbones.vit import VisionTransformer

_log = logging.getLogger(__name__)
Pool = Literal["avg", "cls"]
Kind = Literal["encoder", "classifier", "detector", "ViTDet backbone", "segmenter", "other network"]


@dataclass(frozen=True)
class Weights:
    """An open checkpoint file and the role it is used in."""

    opened: Opened
    role: Role
    kind: Kind
    allow_partial: bool

    @property
    def file(self) -> Path:
        """The path of the file."""
        return self.opened.file

    @property
    def family(self) -> str:
        """The name of its family in `families.FAMILIES`; its kind if it has no family."""
        return self.matched.family.name if self.holds_encoder else self.kind

    @property
    def vit(self) -> ViT:
        """The sizes of the encoder."""
        return self.matched.vit

    @property
    def traits(self) -> Traits:
        """The encoder's differences from MAE's ViT."""
        return self.matched.traits

    @property
    def holds_encoder(self) -> bool:
        """Whether an encoder is taken, not a whole detector or a whole segmenter."""
        return self.kind not in ("detector", "segmenter", "other network")

    @cached_property
    def matched(self) -> Matched:
        """The verdict on every key of the file.

        Raises:
            ValueError: in one line, if the file belongs to no known family, or no encoder is taken.
        """
        if not self.holds_encoder:
            raise ValueError(f"{self.file} is used as a {self.kind}, not as an encoder")
        return match(self.opened)

    def require(self) -> tuple[str, ...]:
        """Refuse keys that are not accounted for; with `allow_partial`, return those that were accepted.

        Raises:
            ValueError: in one line that names the keys.
        """
        return self.matched.require(self.allow_partial) if self.holds_encoder else ()

    @cached_property
    def relative_positions(self) -> dict[str, Tensor]:
        """The trained relative positions of a ViTDet backbone, with a detector's names; empty for other kinds."""
        return trained_relative_positions(self.opened) if self.kind == "ViTDet backbone" else {}

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights with mimbench's names, in float32 on the CPU; copies, which may be changed.

        With `allow_partial`, missing weights are drawn at random, the same each time.

        Raises:
            ValueError: in one line, if keys are not accounted for, or weights are not finite.
        """
        matched = self.matched
        self.require()
        state = {key: value.to(torch.float32, copy=True) for key, value in matched.tensors.items()}
        require_finite(state, self.file)
        return {**_drawn(matched, state), **state}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All weights that the role takes, in float32 on the CPU; copies, except of another network.

        Raises:
            ValueError: as `encoder`.
        """
        if self.kind == "detector":
            return detector_weights(self.opened)
        if self.kind == "segmenter":
            return segmenter_weights(self.opened)
        if self.kind == "classifier":
            return dict(self._classifier()[0].state_dict())
        if self.kind == "other network":
            return dict(self.opened.weights)
        return {**self.encoder, **self.relative_positions}

    @property
    def hashes(self) -> Hashes:
        """The hashes, as `backbones.content.content_hashes`, which caches them."""
        try:
            tensors = tensors_hash(self.tensors)
        except ValueError:
            if self.role != "teacher":
                raise
            return Hashes.of(tensors_hash(self.opened.weights), None)
        return Hashes.of(tensors, self._meaning())

    @property
    def content_hash(self) -> str:
        """The content hash, as `backbones.content.content_hash`, which caches it."""
        return self.hashes.content

    def _classifier(self) -> tuple[Classifier, ClassifierInfo]:
        from mimbench.backbones.classifier_file import classifier_in

        return classifier_in(self.opened)

    def _meaning(self) -> dict[str, Any] | None:
        """What changes the outputs beside the tensors; None of a network that is no encoder to us."""
        if self.kind == "classifier":
            return meaning(self._classifier()[1])
        if self.kind == "segmenter":
            return segmenter_meaning(self.opened)
        if self.kind == "detector":
            return dict(self.opened.metadata) or None  # the config that a detector of ours was trained with
        return None if self.kind == "other network" else meaning(self.info)

    @property
    def info(self) -> EncoderInfo:
        """The description of the encoder: how to build it, how to normalise its images, and its origin.

        Raises:
            ValueError: as `require`.
        """
        matched, partial = self.matched, self.require()
        told: dict[str, Any] = {"vit": matched.vit, "traits": matched.traits, "mean": matched.mean, "std": matched.std}
        if (recorded := matched.recorded) is not None:
            replaced = (*recorded.replaced, *matched.replaced)
            told |= {"assumed": matched.assumed, "replaced": replaced, "partial": recorded.partial + partial}
            return replace(recorded, **told)
        family = matched.family
        return EncoderInfo(
            family=family.name,
            **told,
            final_norm=matched.final_norm,
            positions=matched.positions,
            assumed=matched.assumed,
            interpolation=family.interpolation,
            copy=self.opened.found_under if self.opened.copies else None,
            partial=partial,
            replaced=matched.replaced,
        )

    def report(self) -> Report:
        """The report for people: every key, the contents of the file, and whether it loads."""
        return report(self.matched)

    def build_encoder(
        self, pool: Pool = "avg", interpolation: Interpolation | None = None
    ) -> tuple[VisionTransformer, EncoderInfo]:
        """Build the encoder; `interpolation` resizes its positions to other grids (default: its family's method).

        Raises:
            ValueError: as `encoder`; also if `pool` needs a class token that the encoder lacks.
        """
        from mimbench.backbones.vit import VisionTransformer

        state, info = self.encoder, self.info
        info = replace(info, interpolation=interpolation or info.interpolation)
        if info.assumed:
            _log.warning("%s: %s", self.file, assumption(info))
        if info.replaced:
            _log.warning("%s: %s", self.file, "; ".join(info.replaced))
        model = VisionTransformer(info.vit, info.final_norm, pool, info.traits, info.interpolation)
        model.load_state_dict(state)
        return model, info


def open_weights(
    path: str | Path, role: Role = "encoder", *, allow_partial: bool = False, copy: str | None = None
) -> Weights:
    """Open the checkpoint at `path` for use as `role`.

    Args:
        path: a file of any known family, also as a `file://` URL or with `?copy=ema` at the end.
        role: what the run uses it as.
        allow_partial: accept keys that are not accounted for. Missing weights are drawn at random, the same each time;
            unknown ones are left out; `EncoderInfo.partial` names both.
        copy: the set of weights to take from a file that holds several ("ema", "teacher", ...).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if the file is not a checkpoint, or is not safe to open. A file of no known family
            raises only when its encoder is used. Settings of a location (`?heads=6`) that contradict the file raise
            too (`checkpoints.agreement`).
    """
    opened = open_checkpoint(path, copy)
    if role == "detector" and is_detector(opened):
        require_none_given(opened, "detector")
        return Weights(opened, role, "detector", allow_partial)
    if role == "segmenter" and is_segmenter(opened):
        require_none_given(opened, "segmenter")
        return Weights(opened, role, "segmenter", allow_partial)
    if role == "classifier":
        return Weights(opened, role, "classifier", allow_partial)
    if role == "detector" and trained_relative_positions(opened) and not _has_windows(opened):
        return Weights(opened, role, "ViTDet backbone", allow_partial=True)
    found = Weights(opened, role, "encoder", allow_partial)
    if role == "teacher" and not _is_encoder(found):
        return replace(found, kind="other network")
    return found


def _has_windows(opened: Opened) -> bool:
    """Return whether the relative positions are those of an encoder with windows of its own (SAM), not of a ViTDet."""
    try:
        return match(opened).traits.windows is not None
    except ValueError:
        return False


def _is_encoder(found: Weights) -> bool:
    """Return whether a teacher's file is of a known family; settings of any other file are refused.

    Raises:
        ValueError: if there are settings, and the file is no encoder or contradicts them.
    """
    try:
        return bool(found.matched)
    except ValueError as error:
        if found.opened.options:
            names = ", ".join(f"{name}=" for name in found.opened.options)
            raise ValueError(f"{error}; only an encoder has settings: leave {names} out") from None
        return False


def _drawn(matched: Matched, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw the weights that the file lacks from a fixed seed; empty if it lacks none."""
    if len(state) == len(encoder_shapes(matched.vit, matched.final_norm, matched.traits)):
        return {}
    from mimbench.backbones.vit import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = VisionTransformer(matched.vit, matched.final_norm, traits=matched.traits).state_dict()
    return {key: value for key, value in fresh.items() if key not in state}

"""How patches are chosen, as configs (without torch); strategies.py and its neighbours do the work.

Shares are of all patches of an image. Two are asked of every one of them, because CrossMAE's learning rate follows
them: `hidden_share`, what the encoder does not see, and `predicted_share`, what is reconstructed.

`needs` says where weights for the draw come from: from nowhere, from the method (a teacher's attention:
"attention"), or from a map kept for each training image ("maps").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from mimbench.engine.run.config import science

Needs = Literal["nothing", "attention", "maps"]
PUBLISHED_SIDE = 224  # pixels that AMT's authors' code enlarges its piece of a map to (`crop_mode="original"`)


def _between(name: str, value: float, about: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1: {about}")


def _unit(side: int) -> None:
    if side < 1:
        raise ValueError(f"unit={side} must be at least 1: that many patches make a side of what is drawn as one")


@dataclass(frozen=True)
class RandomMasking:
    """Patches drawn alike: MAE's masking, and CrossMAE's, which predicts only some of what is hidden."""

    needs: ClassVar[Needs] = "nothing"

    kind: Literal["random"] = science("random")
    mask: float = science(0.75, about="share of all patches that the encoder does not see")
    predict: float = science(0.25, about="share of all patches that are reconstructed, at most mask")
    unit: int = science(1, about="side, in patches, of the squares that are drawn as one (SimMIM: 2)")

    def __post_init__(self) -> None:
        _between("mask", self.mask, "some patches are hidden and some are seen")
        if not 0 < self.predict <= self.mask:
            raise ValueError(
                f"predict={self.predict} must lie in (0, mask={self.mask}]: only hidden patches can be reconstructed. "
                "CrossMAE uses mask=0.75 with predict=0.25 or 0.75"
            )
        _unit(self.unit)

    @property
    def hidden_share(self) -> float:
        """Of all patches."""
        return self.mask

    @property
    def predicted_share(self) -> float:
        """Of all patches."""
        return self.predict


@dataclass(frozen=True)
class GridMasking:
    """One patch of every square of `cell` by `cell` is seen, at the same place in each square of an image.

    The place is drawn for each image, and so are the patches predicted where not all hidden ones are.
    """

    needs: ClassVar[Needs] = "nothing"

    kind: Literal["grid"] = science("grid")
    cell: int = science(2, about="side of the squares in patches; 2 hides three quarters")
    predict: float = science(0.75, about="share of all patches that are reconstructed, at most what is hidden")

    def __post_init__(self) -> None:
        if self.cell < 2:
            raise ValueError(f"cell={self.cell} must be at least 2, which hides three patches of four")
        if not 0 < self.predict <= self.hidden_share:
            raise ValueError(
                f"predict={self.predict} must lie in (0, {self.hidden_share:.4g}]: "
                f"cell={self.cell} hides no more than that"
            )

    @property
    def hidden_share(self) -> float:
        """Of all patches."""
        return 1 - 1 / self.cell**2

    @property
    def predicted_share(self) -> float:
        """Of all patches."""
        return self.predict


@dataclass(frozen=True)
class KeepMasking:
    """MaskAlign's attentive masking: what the teacher attends to is likely to be seen; nothing is predicted."""

    needs: ClassVar[Needs] = "attention"
    predicted_share: ClassVar[float] = 0.0

    kind: Literal["keep"] = science("keep")
    mask: float = science(0.7, about="share of all patches that the encoder does not see; 0 shows all")

    def __post_init__(self) -> None:
        if not 0 <= self.mask < 1:
            raise ValueError(f"mask={self.mask} must lie in [0, 1): some patches are seen. The paper uses mask=0.7")

    @property
    def hidden_share(self) -> float:
        """Of all patches."""
        return self.mask


FreqMode = Literal["none", "lowpass_energy", "attn_of_lowpass", "attn_map_lowpass"]


@dataclass(frozen=True)
class AttentionMasking:
    """AMT and FAMT (arXiv 2211.15362): what the encoder itself attends to is likely to be masked, the next is thrown
    away, and the rest is seen.

    Before `start_epoch` patches are drawn alike. Then each training image has a map of weights, made by the encoder
    at the start of that epoch and made again every `interval` epochs.

    AMT is `freq_mode="none"`, and equal to its authors' code where that does what they describe. How FAMT brings in
    frequencies could not be established: the other modes are reconstructions of ours, unverified, and runs with them
    say so wherever they are named.
    """

    needs: ClassVar[Needs] = "maps"

    kind: Literal["attention"] = science("attention")
    mask: float = science(0.45, about="share of all patches that are masked and reconstructed")
    throw: float = science(0.40, about="share of all patches that neither the encoder nor the decoder sees")
    unit: int = science(1, about="side, in patches, of the squares that are drawn as one (SimMIM: 2)")
    random_mask: float = science(0.75, about="share hidden before start_epoch")
    random_predict: float = science(0.75, about="share reconstructed before start_epoch, at most random_mask")
    start_epoch: int | None = science(
        None, about="first epoch (from 0) masked by attention; none: after a tenth of them (41 of 400, as published)"
    )
    interval: int | None = science(
        None, about="epochs between two renewals of the maps; none: a tenth of them (40 of 400, as published)"
    )
    crop_mode: Literal["correct", "original"] = science(
        "correct", about="how a map follows its image's crop; original: as the authors' code does, which is a fault"
    )
    freq_mode: FreqMode = science("none", about="none: AMT; all others: FAMT-style, our reconstruction, unverified")
    freq_radius: float | None = science(
        None, about="frequencies kept, in cycles per image; none: 16, or 3 with attn_map_lowpass"
    )
    freq_share: float | None = science(
        None, about="weight of the frequency map in a sum with attention's; none: their product"
    )

    def __post_init__(self) -> None:
        _between("mask", self.mask, "some patches are masked and some are seen")
        _between("random_mask", self.random_mask, "some patches are hidden and some are seen")
        _unit(self.unit)
        if not 0 < self.random_predict <= self.random_mask:
            raise ValueError(f"random_predict={self.random_predict} must lie in (0, random_mask={self.random_mask}]")
        if not 0 <= self.throw < 1 - self.mask:
            raise ValueError(
                f"throw={self.throw} must lie in [0, {1 - self.mask:.4g}): mask={self.mask} must leave some to see"
            )
        if (self.start_epoch or 0) < 0:
            raise ValueError(f"start_epoch={self.start_epoch} must not be negative")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval={self.interval} must be at least 1 epoch")
        self._check_frequencies()

    def _check_frequencies(self) -> None:
        if self.freq_mode == "none" and (self.freq_radius is not None or self.freq_share is not None):
            raise ValueError("freq_radius and freq_share mean nothing with freq_mode=none: choose a freq_mode")
        if self.freq_radius is not None and not self.freq_radius > 0:
            raise ValueError(f"freq_radius={self.freq_radius} must be positive: cycles per image that are kept")
        if self.freq_share is not None:
            _between("freq_share", self.freq_share, "both maps have a part in the sum")

    @property
    def hidden_share(self) -> float:
        """Of all patches, once attention masks them."""
        return round(self.mask + self.throw, 9)

    @property
    def predicted_share(self) -> float:
        """Of all patches, once attention masks them."""
        return self.mask

    @property
    def label(self) -> str:
        """What a run with it may be called."""
        return "AMT" if self.freq_mode == "none" else f"FAMT-style ({self.freq_mode}, unverified)"

    def facts(self) -> dict[str, str]:
        """For `result.json`: what masked the patches, and what tables have to say about it."""
        facts = {"masked_by": self.label, "crop_mode": self.crop_mode}
        return facts if self.freq_mode == "none" else {**facts, "caveat": "FAMT-style, frequencies unverified"}

    def schedule(self, epochs: int) -> Schedule:
        """When the maps are made in a training of so many epochs.

        Raises:
            ValueError: if it would be over before attention masks anything.
        """
        tenth = epochs // 10
        start = self.start_epoch if self.start_epoch is not None else min(tenth + 1, epochs - 1)
        if start >= epochs:
            raise ValueError(
                f"masking.start_epoch={start} is not before the end of epochs={epochs}: attention would mask nothing"
            )
        return Schedule(start, self.interval or max(tenth, 1))


class Schedule(NamedTuple):
    """Epochs, from 0, at whose start the maps of weights are made: `start`, and every `interval` after it."""

    start: int
    interval: int

    def begins(self, epoch: int) -> bool:
        """Whether maps are made at the start of `epoch`."""
        return epoch >= self.start and (epoch - self.start) % self.interval == 0

    def in_force(self, epoch: float) -> int | None:
        """The epoch whose maps are used at `epoch`; None before the first."""
        if epoch < self.start:
            return None
        return self.start + int(epoch - self.start) // self.interval * self.interval


MaskingConfig = RandomMasking | GridMasking | KeepMasking | AttentionMasking

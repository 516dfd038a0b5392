"""The configs of maskings (without torch); strategies.py and its neighbours implement them.

Shares refer to all patches of an image. Every config has two, because CrossMAE's learning rate depends on them:
`hidden_share`, which the encoder does not see, and `predicted_share`, which is reconstructed.

`needs` is the source of the weights for the draw: "nothing", the method ("attention", of a teacher), or a stored map
for each training image ("maps").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from mimbench.engine.run.config import science

Needs = Literal["nothing", "attention", "maps"]
PUBLISHED_SIDE = 224  # pixels to which the code of AMT's authors enlarges a part of a map (`crop_mode="original"`)


def _between(name: str, value: float, about: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1: {about}")


def _unit(side: int) -> None:
    if side < 1:
        raise ValueError(f"unit={side} must be at least 1: the side, in patches, of the squares that are drawn as one")


@dataclass(frozen=True)
class RandomMasking:
    """Uniform random masking: MAE's, and CrossMAE's, which predicts only some of the hidden patches."""

    needs: ClassVar[Needs] = "nothing"

    kind: Literal["random"] = science("random")
    mask_ratio: float = science(0.75, about="share of all patches that the encoder does not see", formerly="mask")
    predict: float = science(0.25, about="share of all patches that are reconstructed, at most mask_ratio")
    unit: int = science(1, about="side, in patches, of the squares that are drawn as one (SimMIM: 2)")

    def __post_init__(self) -> None:
        _between("mask_ratio", self.mask_ratio, "some patches must be hidden and some seen")
        if not 0 < self.predict <= self.mask_ratio:
            raise ValueError(
                f"predict={self.predict} must lie in (0, mask_ratio={self.mask_ratio}]: only hidden patches can be "
                "reconstructed. CrossMAE uses mask_ratio=0.75 with predict=0.25 or 0.75"
            )
        _unit(self.unit)

    @property
    def hidden_share(self) -> float:
        """Of all patches."""
        return self.mask_ratio

    @property
    def predicted_share(self) -> float:
        """Of all patches."""
        return self.predict


@dataclass(frozen=True)
class GridMasking:
    """Grid masking: the encoder sees one patch of every `cell` by `cell` square, at the same position in each square.

    The position is drawn for each image, and so are the predicted patches if only some hidden ones are predicted.
    """

    needs: ClassVar[Needs] = "nothing"

    kind: Literal["grid"] = science("grid")
    cell: int = science(2, about="side of the squares, in patches; 2 hides three quarters")
    predict: float = science(0.75, about="share of all patches that are reconstructed, at most the hidden share")

    def __post_init__(self) -> None:
        if self.cell < 2:
            raise ValueError(f"cell={self.cell} must be at least 2, which hides three of four patches")
        if not 0 < self.predict <= self.hidden_share:
            raise ValueError(
                f"predict={self.predict} must lie in (0, {self.hidden_share:.4g}]: "
                f"cell={self.cell} hides only that share"
            )

    @property
    def hidden_share(self) -> float:
        """The share hidden of all patches."""
        return 1 - 1 / self.cell**2

    @property
    def predicted_share(self) -> float:
        """Of all patches."""
        return self.predict


@dataclass(frozen=True)
class KeepMasking:
    """MaskAlign's attentive masking: patches with high teacher attention are more likely shown; none is predicted."""

    needs: ClassVar[Needs] = "attention"
    predicted_share: ClassVar[float] = 0.0

    kind: Literal["keep"] = science("keep")
    mask_ratio: float = science(
        0.7, about="share of all patches that the encoder does not see; 0 shows all", formerly="mask"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} must lie in [0, 1): some patches must be seen. The paper uses 0.7"
            )

    @property
    def hidden_share(self) -> float:
        """Of all patches."""
        return self.mask_ratio


FreqMode = Literal["none", "lowpass_energy", "attn_of_lowpass", "attn_map_lowpass"]


@dataclass(frozen=True)
class AttentionMasking:
    """AMT and FAMT (arXiv 2211.15362): patches with high encoder attention are likely masked, the next are thrown away,
    and the rest is seen.

    Before `start_epoch` all patches are equally likely. Then each training image has a map of weights: the encoder
    computes it at the start of that epoch and again every `interval` epochs.

    AMT is `freq_mode="none"`, and equals its authors' code where that follows their description. How FAMT uses
    frequencies is not known: the other modes are our unverified reconstructions, and runs with them are labelled so.
    """

    needs: ClassVar[Needs] = "maps"

    kind: Literal["attention"] = science("attention")
    mask_ratio: float = science(0.45, about="share of all patches that are masked and reconstructed", formerly="mask")
    throw: float = science(0.40, about="share of all patches that neither the encoder nor the decoder sees")
    unit: int = science(1, about="side, in patches, of the squares that are drawn as one (SimMIM: 2)")
    random_mask: float = science(0.75, about="share hidden before start_epoch")
    random_predict: float = science(0.75, about="share reconstructed before start_epoch, at most random_mask")
    start_epoch: int | None = science(
        None, about="first epoch (from 0) masked by attention; none: after a tenth of all (41 of 400, as published)"
    )
    interval: int | None = science(
        None, about="epochs between two renewals of the maps; none: a tenth of all (40 of 400, as published)"
    )
    crop_mode: Literal["correct", "original"] = science(
        "correct", about="how a map is cropped with its image; original: as in the authors' code, which has a bug"
    )
    freq_mode: FreqMode = science("none", about="none: AMT; others: FAMT-style, our unverified reconstruction")
    freq_radius: float | None = science(
        None, about="frequencies kept, in cycles per image; none: 16, or 3 with attn_map_lowpass"
    )
    freq_share: float | None = science(
        None, about="weight of the frequency map in its sum with attention; none: their product"
    )

    def __post_init__(self) -> None:
        _between("mask_ratio", self.mask_ratio, "some patches must be masked and some seen")
        _between("random_mask", self.random_mask, "some patches must be hidden and some seen")
        _unit(self.unit)
        if not 0 < self.random_predict <= self.random_mask:
            raise ValueError(f"random_predict={self.random_predict} must lie in (0, random_mask={self.random_mask}]")
        if not 0 <= self.throw < 1 - self.mask_ratio:
            raise ValueError(
                f"throw={self.throw} must lie in [0, {1 - self.mask_ratio:.4g}), so that some patches stay visible "
                f"with mask_ratio={self.mask_ratio}"
            )
        if (self.start_epoch or 0) < 0:
            raise ValueError(f"start_epoch={self.start_epoch} must not be negative")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval={self.interval} must be at least 1 epoch")
        self._check_frequencies()

    def _check_frequencies(self) -> None:
        if self.freq_mode == "none" and (self.freq_radius is not None or self.freq_share is not None):
            raise ValueError("freq_radius and freq_share have no effect with freq_mode=none: choose a freq_mode")
        if self.freq_radius is not None and not self.freq_radius > 0:
            raise ValueError(f"freq_radius={self.freq_radius} must be positive: the cycles per image that are kept")
        if self.freq_share is not None:
            _between("freq_share", self.freq_share, "it weights both maps in their sum")

    @property
    def hidden_share(self) -> float:
        """The share hidden of all patches, from `start_epoch` on."""
        return round(self.mask_ratio + self.throw, 9)

    @property
    def predicted_share(self) -> float:
        """The share predicted of all patches, from `start_epoch` on."""
        return self.mask_ratio

    @property
    def label(self) -> str:
        """The name for runs with this masking."""
        return "AMT" if self.freq_mode == "none" else f"FAMT-style ({self.freq_mode}, unverified)"

    def facts(self) -> dict[str, str]:
        """Return the facts for `result.json`: the masking's label, and the caveat that tables must show."""
        facts = {"masked_by": self.label, "crop_mode": self.crop_mode}
        return facts if self.freq_mode == "none" else {**facts, "caveat": "FAMT-style, frequencies unverified"}

    def schedule(self, epochs: int) -> Schedule:
        """Return when maps are computed in a training of `epochs`.

        Raises:
            ValueError: if the training ends before attention masks anything.
        """
        tenth = epochs // 10
        start = self.start_epoch if self.start_epoch is not None else min(tenth + 1, epochs - 1)
        if start >= epochs:
            raise ValueError(
                f"masking.start_epoch={start} must be less than epochs={epochs}, or attention masks nothing"
            )
        return Schedule(start, self.interval or max(tenth, 1))


class Schedule(NamedTuple):
    """The epochs (from 0) at whose start maps are computed: `start`, and every `interval` epochs after it."""

    start: int
    interval: int

    def begins(self, epoch: int) -> bool:
        """Return whether maps are computed at the start of `epoch`."""
        return epoch >= self.start and (epoch - self.start) % self.interval == 0

    def in_force(self, epoch: float) -> int | None:
        """Return the epoch whose maps are used at `epoch`; None before the first."""
        if epoch < self.start:
            return None
        return self.start + int(epoch - self.start) // self.interval * self.interval


MaskingConfig = RandomMasking | GridMasking | KeepMasking | AttentionMasking

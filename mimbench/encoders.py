"""Encoders for notebooks and scripts: any checkpoint to features of images, and what a checkpoint file holds.

    encoder = load_encoder("crossmae_vitb.pth")
    pooled, grid = encoder.features(["cat.jpg", "dog.jpg"], size=224)      # (2, 768) and (2, 14, 14, 768)

    report = inspect("crossmae_vitb.pth")
    print(report.family, report.architecture, report.refused)

Every known family of checkpoints is read (`mimbench.backbones.checkpoints.families`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo
from mimbench.backbones.checkpoint import load_encoder as load_weights
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.checkpoints.report import report
from mimbench.backbones.contract import Features
from mimbench.backbones.vit import VisionTransformer
from mimbench.jobs.runs.store import encoder_file
from mimbench.pixels import Pictures, normalised, to_batch

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.report import Report

BATCH = 64  # images in one pass; another number changes memory and time, and no feature


class ImageEncoder:
    """A frozen encoder: images to features, with the normalisation that its checkpoint's family was pretrained with.

    Attributes:
        model: the encoder as an `nn.Module`: images (B, 3, H, W), already normalised, to `Features`. Use it to train.
        info: family, sizes, traits and image statistics, as read from the checkpoint.
    """

    def __init__(self, model: VisionTransformer, info: EncoderInfo) -> None:
        self.model, self.info = model, info

    def __repr__(self) -> str:
        vit = self.info.vit
        return f"ImageEncoder({self.info.family}, width {vit.width}, depth {vit.depth}, patch {vit.patch})"

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.model.patch

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.model.width

    @property
    def image(self) -> int:
        """Side in pixels of the images it was pretrained on."""
        return self.info.vit.image

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> ImageEncoder:
        """Move the weights to `device` and return this encoder."""
        self.model.to(device)
        return self

    def prepare(self, images: Pictures, size: int | None = None) -> Tensor:
        """Return `images` as `model` wants them: (B, 3, H, W), float32, normalised, on the CPU.

        Args:
            images, size: as in `features`.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `features`.
        """
        batch = self._fitting(to_batch(images, size))
        return normalised(batch, self.info.mean, self.info.std)

    @torch.no_grad()
    def features(self, images: Pictures, size: int | None = None, batch: int = BATCH) -> Features:
        """Return the features of `images`: pooled (B, D) and grid (B, h, w, D), float32, on the encoder's device.

        They are what the last block gives, after the final norm where the checkpoint has one (MAE trains one, CrossMAE
        does not). k-NN and probes of `mimbench evaluate` standardise features of an encoder without one.

        Args:
            images: one image or several: file paths, PIL images, arrays (H, W, 3) or (B, H, W, 3), tensors (3, H, W)
                or (B, 3, H, W); uint8 in 0..255 or floats in 0..1, not normalised. One image is a batch of one.
            size: resize the short side and crop the centre to `size` pixels, as evaluations do (224: resize to 256,
                crop 224). None takes the images as they are; both sides must then be multiples of `patch`.
            batch: images encoded at a time.

        Raises:
            TypeError: for something that is no image.
            ValueError: for wrong shapes, values or sizes, saying which.
            FileNotFoundError: for a file that does not exist.
        """
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        pixels = self._fitting(to_batch(images, size))
        mean, std = self.info.mean, self.info.std
        parts = [self.model(normalised(part.to(self.device), mean, std)) for part in pixels.split(batch)]
        return Features(*(torch.cat(of_all) for of_all in zip(*parts, strict=True)))

    __call__ = features

    def _fitting(self, batch: Tensor) -> Tensor:
        """`batch`, if its images can be cut into patches.

        Raises:
            ValueError: if they cannot.
        """
        height, width = batch.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be cut into patches of {self.patch}; "
                f"size={self.image} resizes and crops them to the pretraining's {self.image} pixels"
            )
        return batch


def load_encoder(
    checkpoint: str | Path,
    *,
    pool: Literal["avg", "cls"] = "avg",
    copy: str | None = None,
    allow_partial: bool = False,
    device: str | torch.device = "cpu",
) -> ImageEncoder:
    """Return the encoder in a checkpoint, in evaluation mode.

    Args:
        checkpoint: a file of any known family (`mimbench.inspect` names it), a `file://` URL, or the directory of a
            pretraining run.
        pool: the pooled feature: "avg" is the mean of the patch tokens, "cls" the class token.
        copy: which weights to take from a file that holds several ("ema", "teacher" ...).
        allow_partial: load a file whose keys are not all accounted for; `encoder.info.partial` names them.
        device: where to put the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one line, if it is no checkpoint of a known family, is damaged, or has unexplained keys; if
            pool="cls" and the encoder has no class token.
    """
    state, info = load_weights(encoder_file(Path(checkpoint)), allow_partial=allow_partial, copy=copy)
    model = VisionTransformer(info.vit, info.final_norm, pool, info.traits, info.interpolation)
    model.load_state_dict(state)
    return ImageEncoder(model.eval(), info).to(device)


def inspect(checkpoint: str | Path, copy: str | None = None) -> Report:
    """Return what a checkpoint is and what becomes of every key in it, as `mimbench inspect` prints it.

    `family` and `architecture` name it, `refused` says in one line why it would not load (None: it loads), `vitdet` why
    ViTDet does not take it, `counts` and `keys` what becomes of its keys. Large weights are not read.

    Args:
        checkpoint: as in `load_encoder`.
        copy: which weights, of a file that holds several.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one line, if it is no checkpoint of a known family.
    """
    return report(match(open_checkpoint(encoder_file(Path(checkpoint)), copy)))

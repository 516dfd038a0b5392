"""Encoders for notebooks and scripts: compute features of images from any checkpoint, and inspect checkpoint files.

    encoder = load_encoder("crossmae_vitb.pth")
    pooled, grid = encoder.features(["cat.jpg", "dog.jpg"], size=224)      # (2, 768) and (2, 14, 14, 768)

    report = inspect("crossmae_vitb.pth")
    print(report.family, report.architecture, report.refused)

Every known family of checkpoints is supported (`mimbench.backbones.checkpoints.families`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mimbench.backbones.checkpoint import EncoderInfo
from mimbench.backbones.checkpoint import load_encoder as load_weights
from mimbench.backbones.checkpoints.location import settled
from mimbench.backbones.checkpoints.match import match
from mimbench.backbones.checkpoints.opening import open_checkpoint
from mimbench.backbones.checkpoints.report import report
from mimbench.backbones.contract import Features
from mimbench.backbones.vit import VisionTransformer
from mimbench.jobs.runs.store import encoder_file
from mimbench.pixels import Pictures, normalised, to_batch

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.report import Report

BATCH = 64  # images in one pass; it changes memory and time, not the features


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
        """Return the side of a patch in pixels."""
        return self.model.patch

    @property
    def width(self) -> int:
        """Return the length of a feature."""
        return self.model.width

    @property
    def image(self) -> int:
        """Return the side in pixels of the pretraining images."""
        return self.info.vit.image

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> ImageEncoder:
        """Move the weights to `device` and return this encoder."""
        self.model.to(device)
        return self

    def prepare(self, images: Pictures, size: int | None = None) -> Tensor:
        """Return `images` in the form that `model` takes: (B, 3, H, W), float32, normalised, on the CPU.

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

        They are the output of the last block, after the final norm if the checkpoint has one (MAE trains one, CrossMAE
        does not). k-NN and probes of `mimbench evaluate` standardise features of an encoder without one.

        Args:
            images: one image or several: file paths, PIL images, arrays (H, W, 3) or (B, H, W, 3), tensors (3, H, W)
                or (B, 3, H, W); uint8 in 0..255 or floats in 0..1, not normalised. One image is a batch of one.
            size: resize the short side and crop the centre to `size` pixels, as evaluations do (224: resize to 256,
                crop 224). None keeps the images unchanged; both sides must then be multiples of `patch`.
            batch: images encoded at a time.

        Raises:
            TypeError: if an argument is not an image.
            ValueError: if shapes, values or sizes are wrong.
            FileNotFoundError: if a file does not exist.
        """
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        pixels = self._fitting(to_batch(images, size))
        mean, std = self.info.mean, self.info.std
        parts = [self.model(normalised(part.to(self.device), mean, std)) for part in pixels.split(batch)]
        return Features(*(torch.cat(of_all) for of_all in zip(*parts, strict=True)))

    __call__ = features

    def _fitting(self, batch: Tensor) -> Tensor:
        """Return `batch` if its images can be cut into patches.

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
    **settings: object,
) -> ImageEncoder:
    """Return the encoder in a checkpoint, in evaluation mode.

    Args:
        checkpoint: a file of any known family (`mimbench.inspect` names it), a `file://` URL, or the directory of a
            pretraining run.
        pool: the pooled feature: "avg" is the mean of the patch tokens, "cls" the class token.
        copy: which weights to load if the file has several ("ema", "teacher" ...).
        allow_partial: load a file with unexplained keys; `encoder.info.partial` lists them.
        device: where to put the weights.
        settings: what the file does not tell, replacing assumptions (`encoder.info.assumed`): family, heads,
            activation, norm_eps, grid, mean and std (three numbers each). Mean and std may also replace what the file
            states (`encoder.info.replaced`).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a checkpoint of a known family, is damaged, has unexplained keys, or contradicts a
            setting; or if pool="cls" and the encoder has no class token.
    """
    location = settled(checkpoint, [f"{name}={value}" for name, value in settings.items()])
    state, info = load_weights(encoder_file(Path(location)), allow_partial=allow_partial, copy=copy)
    model = VisionTransformer(info.vit, info.final_norm, pool, info.traits, info.interpolation)
    model.load_state_dict(state)
    return ImageEncoder(model.eval(), info).to(device)


def inspect(checkpoint: str | Path, copy: str | None = None, **settings: object) -> Report:
    """Return a report of a checkpoint and of the use of every key in it, as printed by `mimbench inspect`.

    `family` and `architecture` describe it; `refused` is the reason why it would not load (None: it loads); `vitdet`
    is the reason why ViTDet does not support it; `counts` and `keys` tell how its keys are used. Large weights are not
    read.

    Args:
        checkpoint: as in `load_encoder`.
        copy: which weights to use if the file has several.
        settings: as in `load_encoder`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a checkpoint of a known family.
    """
    location = settled(checkpoint, [f"{name}={value}" for name, value in settings.items()])
    return report(match(open_checkpoint(encoder_file(Path(location)), copy)))

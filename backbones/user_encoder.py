"""A user's own encoder: returned by a function in the user's Python file and checked against `backbones.contract`.

    def build():                                  # my_encoder.py
        return Mine()                             # images (B, 3, H, W) to Features(pooled, grid)

    user = load_user_encoder("my_encoder.py:build")
    user.encoder.patch, user.encoder.width, user.mean, user.std
    user.ours                                     # the encoder, if it is a VisionTransformer of mimbench; else None
    user.features(images)                         # Features, checked

`encoder.patch` and `encoder.width` are whole numbers. `encoder.mean` and `encoder.std`, three numbers each, normalise
its images; without them ImageNet's are used. The file is code and is run: use only files you trust.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.checkpoints.location import UserCode, user_code
from mimbench.backbones.config import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from mimbench.backbones.content import content_hash
from mimbench.backbones.contract import Encoder, Features
from mimbench.backbones.vit import VisionTransformer

FAMILY = "user code"  # the family of such an encoder in results
ADVICE = "k-NN, linear, fast linear and few-shot accept it"


@dataclass(frozen=True)
class UserEncoder:
    """An encoder that a user's function returned."""

    code: UserCode
    encoder: Encoder
    mean: tuple[float, ...]  # of its images, for values in 0..1
    std: tuple[float, ...]
    statistics_given: bool  # whether the encoder has its own; otherwise they are ImageNet's

    @property
    def name(self) -> str:
        """`my_encoder.py:build`."""
        return self.code.name

    @property
    def type_name(self) -> str:
        """The name of the encoder's class."""
        return type(self.encoder).__name__

    @property
    def ours(self) -> VisionTransformer | None:
        """The encoder if it is a VisionTransformer of mimbench, which every evaluation accepts; otherwise None."""
        return self.encoder if isinstance(self.encoder, VisionTransformer) else None

    @property
    def module(self) -> nn.Module | None:
        """The encoder if it is a torch module, whose weights are known; otherwise None."""
        return self.encoder if isinstance(self.encoder, nn.Module) else None

    def to(self, device: torch.device) -> None:
        """Move it to `device`, frozen and in eval mode, if it is a module; other objects must do so themselves."""
        if self.module is not None:
            self.module.requires_grad_(False).eval().to(device)

    def build(
        self, pool: Literal["avg", "cls"] = "avg", interpolation: Interpolation | None = None
    ) -> tuple[VisionTransformer, EncoderInfo]:
        """Return the encoder, if it is mimbench's, and its description; as `weights.Weights.build_encoder`.

        Raises:
            ValueError: if it is not mimbench's, naming what accepts it; if `pool` needs a class token that it lacks.
        """
        model = self.ours
        if model is None:
            raise ValueError(
                f"{self.name} returns a {self.type_name}, which is not a VisionTransformer of mimbench: ViTDet and "
                f"fine-tuning need its blocks and weights by name; {ADVICE}"
            )
        if pool == "cls" and not model.traits.class_token:
            raise ValueError(f"pool=cls needs a class token, and the encoder of {self.name} has none; use pool=avg")
        model.pool, model.interpolation = pool, interpolation or model.interpolation
        final_norm = isinstance(model.norm, nn.LayerNorm)
        mean, std = (cast("tuple[float, float, float]", values) for values in (self.mean, self.std))
        positions = "learned" if model.traits.positions == "absolute" else model.traits.positions
        info = EncoderInfo(
            family=FAMILY,
            vit=model.shape,
            final_norm=final_norm,
            mean=mean,
            std=std,
            positions=positions,
            traits=model.traits,
            interpolation=model.interpolation,
        )
        return model, info

    def features(self, images: Tensor) -> Features:
        """Return pooled features (B, D) and maps (B, h, w, D) of normalised images (B, 3, H, W).

        Raises:
            ValueError: in one line, if the encoder raises an error or breaks the contract.
        """
        with _as_one_line(self.code, "encoding images"):
            found: Any = self.encoder(images)
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
            raise ValueError(f"{self.name} returns {_kind(found)} for images; it must be Features(pooled, grid)")
        features = Features(*found)
        patch, width = self.encoder.patch, self.encoder.width
        batch, _, height, breadth = images.shape
        wanted = {"pooled": (batch, width), "grid": (batch, height // patch, breadth // patch, width)}
        for part, shape in wanted.items():
            value: Tensor = getattr(features, part)
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{self.name}: {part} is {tuple(value.shape)} for images {tuple(images.shape)}; with patch={patch} "
                    f"and width={width} it must be {shape}"
                )
            if not value.is_floating_point():
                raise ValueError(f"{self.name}: {part} has dtype {value.dtype}; it must be floating-point")
        return features

    def try_out(self, image: int, device: torch.device) -> None:
        """Encode two images of noise of side `image` to check that it meets the contract.

        Raises:
            ValueError: as `features`; also for features that are not finite.
        """
        patch = self.encoder.patch
        if image % patch:
            raise ValueError(f"image={image} is not a multiple of patch={patch} of {self.name}")
        images = torch.randn(2, 3, image, image, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            features = self.features(images)
        for part, value in features._asdict().items():
            if not value.isfinite().all():
                raise ValueError(f"{self.name}: {part} holds NaN or infinity for images of noise of side {image}")


def about(user: UserEncoder) -> dict[str, Any]:
    """Return the description of a user's encoder as plain values, after trying the encoder out.

    Raises:
        ValueError: if it does not meet the contract.
    """
    encoder, module, ours = user.encoder, user.module, user.ours
    side = getattr(encoder, "image", None) if ours is None else ours.shape.image
    image = side if isinstance(side, int) else max(224 // encoder.patch, 1) * encoder.patch
    user.to(torch.device("cpu"))
    user.try_out(image, torch.device("cpu"))
    return {
        "code": user.name,
        "file": str(user.code.file.absolute()),
        "hash": content_hash(user.code.location),
        "type": user.type_name,
        "patch": encoder.patch,
        "width": encoder.width,
        "weights": None if module is None else sum(value.numel() for value in module.parameters()),
        "mean": list(user.mean),
        "std": list(user.std),
        "statistics": "the encoder's" if user.statistics_given else "ImageNet's, because the encoder has none",
        "tried_on": image,
        "ours": ours is not None,
    }


def load_user_encoder(location: str | Path) -> UserEncoder:
    """Run the user's file and call its function.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: in one line, if the file or the function raises an error, the function does not exist, or the
            returned object has no patch and width or cannot be called.
    """
    code = user_code(location)
    if code is None:
        raise ValueError(f"{location} is not FILE.py:FUNCTION")
    if not code.file.is_file():
        raise FileNotFoundError(f"{code.file}, the file of checkpoint={code.name}, does not exist")
    build = getattr(_imported(code), code.function, None)
    if not callable(build):
        raise ValueError(f"{code.file} has no function {code.function!r}; it must return the encoder")
    with _as_one_line(code, f"{code.function}()"):
        encoder = cast(Callable[[], Any], build)()
    return _checked(code, encoder)


def _imported(code: UserCode) -> ModuleType:
    """Import the user's file; it can import files beside it, but installed packages come first."""
    beside = str(code.file.absolute().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    name = f"mimbench_user_{code.file.stem}"
    spec = importlib.util.spec_from_file_location(name, code.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    with _as_one_line(code, "importing it"):
        spec.loader.exec_module(module)
    return module


def _checked(code: UserCode, encoder: Any) -> UserEncoder:
    for attribute in ("patch", "width"):
        value = getattr(encoder, attribute, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{code.name} returns a {type(encoder).__name__} whose {attribute} is {value!r}; it must be a whole "
                f"number: patch is the side of a patch in pixels, width the length of a feature"
            )
    if not callable(encoder):
        raise ValueError(f"{code.name} returns {_kind(encoder)}, which cannot be called with images")
    given = [getattr(encoder, name, None) for name in ("mean", "std")]
    if given == [None, None]:
        return UserEncoder(code, cast(Encoder, encoder), IMAGENET_MEAN, IMAGENET_STD, statistics_given=False)
    mean, std = (_colours(code, name, value) for name, value in zip(("mean", "std"), given, strict=True))
    if min(std) <= 0:
        raise ValueError(f"{code.name}: std={std} of the encoder must be positive")
    return UserEncoder(code, cast(Encoder, encoder), mean, std, statistics_given=True)


def _colours(code: UserCode, name: str, value: Any) -> tuple[float, ...]:
    """Return `value` as three finite numbers."""
    try:
        numbers = tuple(float(number) for number in (value.flatten() if isinstance(value, Tensor) else value))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{code.name}: {name}={value!r} of the encoder must be three numbers, for images in 0..1; set both mean "
            f"and std, or neither to use ImageNet's"
        )
    return numbers


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value)}"
    return f"a {type(value).__name__}"


@contextmanager
def _as_one_line(code: UserCode, doing: str) -> Iterator[None]:
    """Report an error of the user's code in one line that names the file, the line and the error."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        where = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(code.file)
        ]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (where[-1] if where else None)
        said = " ".join(str(error).split())[:300]
        at = f", line {line}" if line else ""
        raise ValueError(f"{code.name}: {doing} fails with {type(error).__name__}: {said} ({code.file}{at})") from error

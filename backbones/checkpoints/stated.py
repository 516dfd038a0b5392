"""What is said of an encoder beside its keys: by the user, by a config.json beside the file, by the file's own options.

    vit.pth?heads=16&mean=.5,.5,.5                                the user (`location.SETTINGS`)
    config.json                          timm's: `architecture`, `model_args`, `pretrained_cfg`
    config.json                          Apple's own AIMv2's
    open_clip_config.json                open_clip's: `model_cfg`, `preprocess_cfg`
    {"arch": "vit_small_patch16_224"}    in the file, as timm's training saves it
    {"detector": "{...}"}                in a detector or segmenter that mimbench trained

Keys and shapes do not tell heads, activation, eps of norms, rotary positions or the statistics of images. What nothing
tells comes from the family's published sizes, else it is assumed and said so (`match.Matched.assumed`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mimbench.backbones.checkpoints.location import SETTINGS
from mimbench.backbones.checkpoints.opening import Opened
from mimbench.backbones.checkpoints.timm_architecture import Architecture, is_architecture, read_architecture
from mimbench.backbones.checkpoints.weight_sets import DETECTOR, SEGMENTER
from mimbench.backbones.config import Activation

CONFIGS = ("config.json", "open_clip_config.json")
_WRAPPERS = re.compile(r"^(module\.)?(model\.|timm_model\.)?")
LONGEST = 2**20  # bytes of a config.json that are read
GIVEN = "the options given"  # the source of what the user says
RECORDED = "the metadata that mimbench wrote into it"
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Stated:
    """What one source says; None where it says nothing."""

    source: str  # as messages name it: "config.json", "the options given"
    family: str | None = None
    heads: int | None = None
    activation: Activation | None = None
    norm_eps: float | None = None
    mean: Triple | None = None
    std: Triple | None = None
    model: str | None = None  # the name of the model: timm's, or as its authors' training calls it
    architecture: Architecture | None = None  # what timm builds under that name
    grid: tuple[int, int] | None = None  # rows and columns of patches in a pretraining image


def stated(opened: Opened) -> tuple[Stated, ...]:
    """What is said of the encoder in `opened`, the first source to be believed first.

    Raises:
        ValueError: in one line, if an option that the user gave is no value of its kind.
    """
    found = [_given(opened.options), _beside(opened), _inside(opened), of_whole(opened)]
    return tuple(one for one in found if one is not None)


def _given(options: Mapping[str, str]) -> Stated | None:
    if not any(name in options for name in SETTINGS):
        return None
    try:
        activation: Any = options.get("activation")
        if activation is not None and activation not in get_args(Activation):
            raise ValueError(f"activation={activation} must be one of {', '.join(get_args(Activation))}")
        heads = int(options["heads"]) if "heads" in options else None
        eps = float(options["norm_eps"]) if "norm_eps" in options else None
        if (heads is not None and heads < 1) or (eps is not None and eps <= 0):
            raise ValueError(f"heads={heads} and norm_eps={eps} must be above 0")
        mean, std = (_numbers(name, options.get(name)) for name in ("mean", "std"))
        grid = _grid(options.get("grid"))
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={options['std']} must be above 0")
    except ValueError as error:
        raise ValueError(f"the options of the checkpoint: {error}") from None
    return Stated(GIVEN, options.get("family"), heads, activation, eps, mean, std, grid=grid)


def _grid(text: str | None) -> tuple[int, int] | None:
    """Rows and columns of patches: `16`, or `8x32`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.replace(" ", "").lower())
    if found is None or int(found[1]) < 1:
        raise ValueError(f"grid={text} must be patches along a side, as in grid=16, or rows x columns, as in grid=8x32")
    return int(found[1]), int(found[2] or found[1])


def _numbers(name: str, text: str | None) -> Triple | None:
    """Three numbers, or one for all three: `.5` or `.485,.456,.406`, with or without brackets."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.strip("[]() ").replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if len(values) == 1:
        values = values * 3
    if len(values) != 3:
        raise ValueError(f"{name}={text} must be three numbers, as in {name}=0.485,0.456,0.406")
    return values[0], values[1], values[2]


def _inside(opened: Opened) -> Stated | None:
    """What the options in the file say: the name of the model, and the statistics that timm's training was given."""
    name = next((opened.arguments[key] for key in ("arch", "model") if _text(opened.arguments.get(key))), None)
    if name is None:
        return None
    source, arguments = f"the file's options ({name})", opened.arguments
    architecture = _architecture(opened, str(name), arguments.get("model_kwargs"))
    if architecture is None:
        return Stated(source, model=str(name))
    if "arch" not in arguments:  # not saved by timm's training: the images are the other code's
        return _of(source, architecture, None, None)
    mean, std = (_triple(arguments.get(key)) for key in ("mean", "std"))
    return _of(source, architecture, mean or architecture.mean, std or architecture.std)


def _beside(opened: Opened) -> Stated | None:
    """What a config beside the file says, if it is one of timm's or open_clip's, and describes these tensors."""
    for name in CONFIGS:
        content = _json(opened.file.with_name(name))
        if content is None:
            continue
        if isinstance(content.get("model_cfg"), Mapping):
            return _open_clip(name, content)
        if _text(content.get("architecture")):
            return _timm(opened, name, content)
        if content.get("model_type") == "aimv2" and "vision_config" not in content:
            return _apple(opened, name, content)
    return None


def of_whole(opened: Opened) -> Stated | None:
    """What a detector or segmenter that mimbench trained states of its encoder; None of any other file."""
    text = opened.metadata.get(DETECTOR) or opened.metadata.get(SEGMENTER)
    try:
        about = json.loads(text or "{}")
        traits = about.get("traits") or {}
        vit = about.get("vit") or {
            name: int(number) for name, number in re.findall(r"encoder\.(\w+) = (\d+)", about.get("config", ""))
        }
        side = vit["image"] // vit["patch"]
        return Stated(
            RECORDED,
            heads=vit["heads"],
            activation=traits.get("activation"),
            norm_eps=traits.get("norm_eps"),
            mean=_triple(about.get("mean")),
            std=_triple(about.get("std")),
            grid=(side, side),
        )
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        return None


def _timm(opened: Opened, source: str, content: Mapping[str, Any]) -> Stated | None:
    architecture = _architecture(opened, content["architecture"], content.get("model_args"))
    if architecture is None:
        return None
    about = content.get("pretrained_cfg", content)
    about = about if isinstance(about, Mapping) else {}
    mean, std = (_triple(about.get(key)) for key in ("mean", "std"))
    return _of(source, architecture, mean or architecture.mean, std or architecture.std)


def _of(source: str, architecture: Architecture, mean: Triple | None, std: Triple | None) -> Stated:
    return Stated(
        source=source,
        heads=architecture.heads,
        activation=architecture.activation,
        norm_eps=architecture.norm_eps,
        mean=mean,
        std=std,
        model=architecture.name,
        architecture=architecture,
        grid=architecture.grid,
    )


def _architecture(opened: Opened, name: str, arguments: object) -> Architecture | None:
    """What timm builds under `name`, if it has exactly the file's blocks; None of another model's description."""
    if not is_architecture(name):
        return None
    given = {str(key): value for key, value in arguments.items()} if isinstance(arguments, Mapping) else {}
    try:
        built = read_architecture(name, json.dumps(given, sort_keys=True, default=str))
    except ValueError:
        return None
    shapes = {_WRAPPERS.sub("", key): value.shape for key, value in opened.weights.items()}
    return built if built.fits(shapes) else None


def _open_clip(source: str, content: Mapping[str, Any]) -> Stated:
    model, images = content["model_cfg"], content.get("preprocess_cfg")
    tower = model.get("vision_cfg")
    tower = tower if isinstance(tower, Mapping) else {}
    images = images if isinstance(images, Mapping) else {}
    width, each = tower.get("width"), tower.get("head_width", 64)
    whole = isinstance(width, int) and isinstance(each, int) and each > 0 and width % each == 0
    quick = bool(model.get("quick_gelu", False))
    return Stated(
        source=source,
        heads=width // each if whole and isinstance(width, int) else None,
        activation="quick_gelu" if quick else "gelu",
        mean=_triple(images.get("mean")),
        std=_triple(images.get("std")),
        grid=_patches(tower.get("image_size"), tower.get("patch_size")),
        model=tower.get("timm_model_name") if _text(tower.get("timm_model_name")) else None,
    )


def _apple(opened: Opened, source: str, content: Mapping[str, Any]) -> Stated | None:
    """What the config.json of Apple's own AIMv2 says, if it has the file's width."""
    kernels = (value for key, value in opened.weights.items() if key.endswith("patchifier.proj.weight"))
    if (kernel := next(kernels, None)) is None or len(kernel) != content.get("hidden_size"):
        return None
    heads, eps = content.get("num_attention_heads"), content.get("rms_norm_eps")
    return Stated(
        source=source,
        heads=heads if isinstance(heads, int) else None,
        norm_eps=eps if isinstance(eps, float) else None,
        grid=_patches(content.get("image_size"), content.get("patch_size")),
    )


def _patches(image: object, patch: object) -> tuple[int, int] | None:
    """Rows and columns of patches in an image of one side, or of two."""
    sides: list[Any] = list(image) if isinstance(image, list | tuple) else [image, image]
    if len(sides) != 2 or not isinstance(patch, int) or patch < 1 or not all(isinstance(side, int) for side in sides):
        return None
    return sides[0] // patch, sides[1] // patch


def _json(file: Path) -> Mapping[str, Any] | None:
    try:
        if not file.is_file() or file.stat().st_size > LONGEST:
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, Mapping) else None


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _triple(value: object) -> Triple | None:
    """Three numbers of a list, if it is one."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(isinstance(number, int | float) for number in value):
        return None
    return float(value[0]), float(value[1]), float(value[2])

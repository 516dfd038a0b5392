"""Shrink images and pack them into a few large files, for GPUs that train faster than the originals can be decoded.

    mimbench data shrink imagenet /data/imagenet-256 --short 256
    mimbench run pretrain/crossmae_vitb_800ep data=/data/imagenet-256

engine/data/shards.py describes and reads the files. An image is resized (bicubic, antialiased) so that its short side
has `short` pixels, and written as JPEG; an image that is no larger is kept byte for byte. ImageNet at 256 px, quality
90, shrinks from 110 to 31 KB per image, and loading is four to five times faster. Crops then come from fewer pixels
than in the papers, which results record. An interrupted shrinking resumes with the first missing tar. Images that
cannot be decoded are left out and reported.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimbench.engine.data.datasets import Split, UnfitError, unfit
from mimbench.engine.data.images import ImageFolder, shortened
from mimbench.engine.data.layouts.recognise import splits_of
from mimbench.engine.data.shards import ABOUT, INDEX, SCHEMA, Shards, tar_path
from mimbench.engine.run.atomic import replacing, write_json, write_with
from mimbench.engine.run.bar import track

IMAGES = 8192  # per tar: a quarter of a gigabyte at 256 px
AT_ONCE = 16  # images that a process shrinks before it returns them

# N images of a split


@dataclass(frozen=True)
class Shrinking:
    """The size and quality that images are shrunk to."""

    short: int  # pixels of the short side
    quality: int = 90  # of the JPEG, 1 to 100

    def __post_init__(self) -> None:
        if self.short < 16:
            raise ValueError(f"short={self.short} must be at least 16 pixels")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must lie between 1 and 100")

    def __str__(self) -> str:
        return f"shrunk to a short side of {self.short} px, JPEG quality {self.quality}"


@dataclass
class Shrunk:
    """The result of shrinking one split."""

    split: str
    images: int
    bytes: int
    left_out: list[str] = field(default_factory=list)  # one line for each image that cannot be decoded


def shrink(source: Path, out: Path, shrinking: Shrinking, workers: int) -> Iterator[Shrunk]:
    """Pack every split of the data set at `source` into `out`, or resume that, with `workers` processes.

    Raises:
        FileNotFoundError: if there is no data set at `source`.
        ValueError: if `out` holds other files, or `source` is already packed.
    """
    found: list[Split] = splits_of(source) or ["train"]
    folders = [ImageFolder(source, split, cache=False) for split in found]
    if any(isinstance(folder.paths, Shards) for folder in folders):
        raise ValueError(f"{source} is already packed; shrink the original images")
    _begin(source, out, shrinking)
    for folder in folders:
        yield _shrink_split(folder, out if folder.splitless else out / folder.split, shrinking, workers)


def _begin(source: Path, out: Path, shrinking: Shrinking) -> None:
    """Record in `out` what it will hold, or check that its record agrees."""
    about = {"source": str(source.resolve()), **asdict(shrinking), "images_per_tar": IMAGES}
    if (out / ABOUT).is_file():
        before = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        if different := [name for name, value in about.items() if before.get(name) != value]:
            said = ", ".join(f"{name}={before.get(name)}" for name in different)
            raise ValueError(f"{out} was started with {said}: use another directory, or remove it")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} already exists and holds other files: use a new directory")
    else:
        write_json(out / ABOUT, about)


def _shrink_split(folder: ImageFolder, directory: Path, shrinking: Shrinking, workers: int) -> Shrunk:
    directory.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    shards = range(-(-len(folder) // IMAGES))
    missing = [
        index for shard in shards if not tar_path(directory, shard).is_file() for index in _places(shard, folder)
    ]
    images = iter(_images(folder, missing, shrinking, workers))
    for shard in shards:
        if not tar_path(directory, shard).is_file():
            with replacing(tar_path(directory, shard)) as temporary:
                left_out += _write_tar(temporary, images, len(_places(shard, folder)))
    _write_index(directory, shards, folder.classes, shrinking)
    size = sum(tar_path(directory, shard).stat().st_size for shard in shards)
    return Shrunk(folder.split, len(Shards(directory)), size, left_out)


def _places(shard: int, folder: ImageFolder) -> range:
    return range(shard * IMAGES, min((shard + 1) * IMAGES, len(folder)))


@dataclass(frozen=True)
class _Image:
    """A packed image: its name in the tar and its bytes, or its fault."""

    name: str
    content: bytes = b""
    fault: str = ""


class _Shrinker(Dataset[_Image]):
    """The shrunk images of a folder at the indices `places`."""

    def __init__(self, folder: ImageFolder, places: Sequence[int], shrinking: Shrinking) -> None:
        self.folder, self.places, self.shrinking = folder, places, shrinking

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> _Image:
        paths, index = self.folder.paths, self.places[number]
        name = _with_class(paths.name(index), self.folder.classes[int(self.folder.labels[index])])
        try:
            encoded, image = paths.encoded(index), self.folder[index][0]
        except UnfitError as error:
            return _Image(name, fault=str(error))
        if min(image.shape[-2:]) <= self.shrinking.short:
            return _Image(name, bytes(encoded))
        is_jpeg = name.lower().endswith((".jpg", ".jpeg"))
        return _Image(name if is_jpeg else f"{name}.jpg", _as_jpeg(image, self.shrinking))


def _with_class(name: str, label: str) -> str:
    """Return a path in the class's folder, also for an image whose source has no class folders."""
    folder = _folder(label)
    return name if name.startswith(f"{folder}/") else f"{folder}/{name.replace('/', '_')}"


def _folder(label: str) -> str:
    """Return a class's name as a folder name; Places365's class names contain slashes."""
    return label.strip("/").replace("/", "-")


def _as_jpeg(image: Tensor, shrinking: Shrinking) -> bytes:
    from torchvision.io import encode_jpeg

    return encode_jpeg(shortened(image, shrinking.short).contiguous(), shrinking.quality).numpy().tobytes()


def _images(folder: ImageFolder, places: Sequence[int], shrinking: Shrinking, workers: int) -> Iterator[_Image]:
    loader = DataLoader(_Shrinker(folder, places, shrinking), batch_size=AT_ONCE, num_workers=workers, collate_fn=list)
    yield from track((image for batch in loader for image in batch), f"shrinking {folder.split} images", len(places))


def _write_tar(path: Path, images: Iterator[_Image], number: int) -> list[str]:
    """Write the next `number` of `images` to a tar; return the faults of those left out."""
    left_out = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for _ in range(number):
            image = next(images)
            if image.fault:
                left_out.append(image.fault)
                continue
            entry = tarfile.TarInfo(image.name)
            entry.size = len(image.content)
            tar.addfile(entry, BytesIO(image.content))
    return left_out


def _write_index(directory: Path, shards: Sequence[int], classes: Sequence[str], shrinking: Shrinking) -> None:
    """Write the index: the position and class of every image in the tars."""
    numbers = {_folder(name): number for number, name in enumerate(classes)}
    names: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    for shard in shards:
        with tarfile.open(tar_path(directory, shard)) as tar:
            for entry in tar:
                names.append(entry.name)
                rows.append((shard, entry.offset_data, entry.size, numbers[entry.name.partition("/")[0]]))
    if not rows:
        raise unfit(directory, "has no image that can be decoded", "check the source with `mimbench data check`")
    shard_N, start_N, size_N, label_N = torch.tensor(rows, dtype=torch.int64).unbind(1)
    text = bytearray("\0".join(names).encode("utf-8", "surrogateescape"))
    tensors = {"shard": shard_N, "start": start_N, "size": size_N, "labels": label_N}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    tensors["names"] = torch.frombuffer(text, dtype=torch.uint8)
    about = {"schema": SCHEMA, "classes": list(classes), "description": str(shrinking)}
    described = {"mimbench": json.dumps(about)}  # one entry: safetensors writes several in any order
    write_with(directory / INDEX, lambda temporary: temporary.write_bytes(save(tensors, described)))

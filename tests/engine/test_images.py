"""Image folders and crops: layouts, what broken ones say, and crops equal to torchvision's."""

from __future__ import annotations

import io
import logging
import pickle
import random
import zlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as V
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode, ToTensor
from torchvision.transforms import Normalize as TorchvisionNormalize
from torchvision.transforms import functional as on_pil
from torchvision.transforms.v2 import RandomResizedCrop

from mimbench.engine.data import images
from mimbench.engine.data.batches import SeededDataset
from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.folders import Paths
from mimbench.engine.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Box,
    ImageFolder,
    RandomCrops,
    centre_crop,
    cut,
    decode,
    draw_box,
    normalise,
    read_image,
)

BICUBIC = InterpolationMode.BICUBIC


def _picture(height: int = 40, width: int = 52, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _write(path: Path, image: Image.Image, **settings: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits; the validation split has no image of class `bee`, and some files that are not images."""
    for number, name in enumerate(["ant/1.png", "ant/deep/er.png", "bee/2.PNG", "cat/3.jpg"]):
        _write(tmp_path / "train" / name, _picture(seed=number))
    for number, name in enumerate(["ant/7.png", "cat/8.png"]):
        _write(tmp_path / "val" / name, _picture(seed=10 + number))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    _write(tmp_path / "train" / "cat" / ".hidden.png", _picture())
    return tmp_path


def test_labels_are_the_training_classes_in_order(folder: Path) -> None:
    train, val = ImageFolder(folder, "train"), ImageFolder(folder, "val")
    assert train.classes == val.classes == ["ant", "bee", "cat"]
    assert train.labels.tolist() == [0, 0, 1, 2]
    assert val.labels.tolist() == [0, 2]
    assert [train.paths[index].name for index in range(len(train))] == ["1.png", "er.png", "2.PNG", "3.jpg"]
    image, label = val[1]
    assert label == 2
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(_picture(seed=11)))


def test_images_of_one_size_are_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = ImageFolder(folder, "train"), ImageFolder(folder, "train", cache=False)
    assert kept.pixels is not None
    assert kept.pixels.shape == (4, 3, 40, 52)
    assert read.pixels is None
    for index in range(4):
        assert torch.equal(kept[index][0], read[index][0])
    monkeypatch.setattr(images, "CACHE_BYTES", 3 * 40 * 52 * 4 - 1)
    assert ImageFolder(folder, "train").pixels is None
    assert ImageFolder(folder, "train", cache=True).pixels is not None


def test_images_of_several_sizes_are_not(folder: Path) -> None:
    _write(folder / "train" / "bee" / "wide.png", _picture(40, 53))
    assert ImageFolder(folder, "train").pixels is None
    with pytest.raises(UnfitError, match=r"wide\.png: differs in size"):
        ImageFolder(folder, "train", cache=True)


def test_a_folder_without_splits_serves_as_both_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train, val = ImageFolder(folder / "train", "train"), ImageFolder(folder / "train", "val")
    assert train.splitless and val.splitless
    assert len(train) == len(val) == 4
    assert "accuracy is measured on the training images" in caplog.text
    assert not ImageFolder(folder, "val").splitless


def test_the_view_inside_a_data_set_with_several(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    both = tmp_path_factory.mktemp("both")
    folder.rename(both / "images")
    assert len(ImageFolder(both, "val")) == 2


def test_layouts_that_cannot_be_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ImageFolder(other / "nothing", "train")
    with pytest.raises(UnfitError, match="holds no images"):
        ImageFolder(other, "train")
    (other / "train" / "ant").mkdir(parents=True)
    with pytest.raises(UnfitError, match="holds no images"):
        ImageFolder(other, "train")
    with pytest.raises(FileNotFoundError, match="has train/ but no val/"):
        ImageFolder(other, "val")
    _write(other / "val" / "1.png", _picture())
    with pytest.raises(UnfitError, match="has 1 images but no class folders"):
        ImageFolder(other, "val")
    _write(folder / "val" / "dog" / "1.png", _picture())
    with pytest.raises(UnfitError, match="dog: is a class that the training split lacks"):
        ImageFolder(folder, "val")


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "L"), ("a.jpg", "CMYK"), ("a.png", "P"), ("a.png", "RGBA"), ("a.bmp", "RGB"), ("a.png", "I;16")],
)
def test_whatever_is_in_the_file_becomes_rgb(tmp_path: Path, name: str, mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(np.full((40, 52), 200 * 256 + 7, dtype=np.uint16))
    else:
        source = _picture().convert(mode)
    image = read_image(_write(tmp_path / name, source))
    assert image.shape == (3, 40, 52)
    assert image.dtype == torch.uint8
    if mode == "I;16":
        assert set(image.flatten().tolist()) == {200}
    else:
        expected = torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))).permute(2, 0, 1)
        assert (image.int() - expected.int()).abs().float().mean() < 1


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "BMP"), ("a.JPEG", "TIFF"), ("a.png", "PPM"), ("a.jpg", "PNG"), ("a.gif", "JPEG")]
)
def test_a_file_named_as_another_kind_is_read_as_the_originals_read_it(tmp_path: Path, name: str, kind: str) -> None:
    _picture().save(tmp_path / name, format=kind)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / name), expected)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.jpg", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG")])
def test_of_a_moving_image_the_first_is_taken(tmp_path: Path, name: str, kind: str) -> None:
    first = _picture()
    further = [first.rotate(90), first.rotate(180)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / name, format=kind, save_all=True, append_images=further, **lossless)  # type: ignore[arg-type]
    expected = torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / name), expected)


def test_an_image_beyond_all_bounds_is_named(tmp_path: Path) -> None:
    """A header of 50 bytes that promises ten billion pixels."""
    path = _write(tmp_path / "a.bmp", _picture())
    content = bytearray(path.read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(UnfitError, match=r"a\.bmp: has 100000 x 100000 pixels; .* shrink it"):
        read_image(path)


def _png(mode: str, damage: str) -> bytearray:
    """A PNG whose pixels are damaged, with a checksum that says so or one that does not, or that lacks a piece."""
    picture = Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)) if mode == "I;16" else _picture()
    buffer = io.BytesIO()
    (picture if mode == "I;16" else picture.convert(mode)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"IDAT")
    end = start + 4 + int.from_bytes(content[start - 4 : start], "big")
    content[start + 4 : start + 6] = b"\xff\xff" if damage != "rest" else content[start + 4 : start + 6]
    if damage == "consistent":
        content[end : end + 4] = zlib.crc32(content[start:end]).to_bytes(4, "big")
    return content[: (start + end) // 2] if damage == "rest" else content


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "I;16"])
def test_a_damaged_png_ends_no_process(mode: str) -> None:
    """Which it does in torchvision; so this is tried in a process of its own."""

    def refused() -> None:
        for damage in ("checksum", "consistent", "rest"):
            with pytest.raises(UnfitError, match=r"a\.png: (is not an image that can be read|the image is cut short)"):
                decode(_png(mode, damage), "a.png")

    child = get_context("fork").Process(target=refused)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_png_of_16_bits_keeps_its_upper_8(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7), dtype=np.uint16)
    image = read_image(_write(tmp_path / "a.png", Image.fromarray(values)))
    assert torch.equal(image, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, -1, -1))


def test_orientation_is_followed_only_when_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    _picture().save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 40, 52)
    assert read_image(tmp_path / "a.jpg", upright=True).shape == (3, 52, 40)


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("a.jpg", 0.6, "the image is cut short"),
        ("a.bmp", 0.6, "the image is cut short"),
        ("a.png", 0.6, "cannot be read|can be read|cut short"),
        ("a.jpg", 0.0, "is not an image"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, keep: float, expected: str) -> None:
    path = _write(tmp_path / name, _picture())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UnfitError, match=expected) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_paths_keep_any_name() -> None:
    names = ["a/ü 1.png", "b/x.jpg", "b/\udcff.png"]
    paths = Paths(Path("root"), names)
    assert [paths[index] for index in range(3)] == [Path("root") / name for name in names]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (75, 100), (333, 251)])
def test_crops_are_those_of_torchvision(height: int, width: int) -> None:
    random.seed(height)
    image = torch.from_numpy(np.array(_picture(height, width))).permute(2, 0, 1).contiguous()
    for _ in range(5):
        box = draw_box(height, width, (0.2, 1.0), (3 / 4, 4 / 3))
        expected = V.resized_crop(image, *box[:4], [32, 32], interpolation=BICUBIC, antialias=True)
        assert torch.equal(cut(image, box, 32), V.horizontal_flip(expected) if box.flip else expected)
        expected = V.resized_crop(image, *box[:4], [32, 32], interpolation=InterpolationMode.BILINEAR, antialias=True)
        assert torch.equal(cut(image, box._replace(flip=False), 32, resizing="bilinear"), expected)
        picture = V.resized_crop(_picture(height, width), *box[:4], [32, 32], InterpolationMode.BILINEAR)
        ours = cut(image, box._replace(flip=False), 32, "pil", "bilinear")
        assert torch.equal(ours, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    for side, short in ((28, 32), (32, 32), (24, 200)):
        expected = V.center_crop(V.resize(image, [short], interpolation=BICUBIC, antialias=True), [side, side])
        assert torch.equal(centre_crop(image, side, short), expected)
        assert centre_crop(image, side, short).permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 200)])
def test_boxes_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    random.seed(0)
    torch.manual_seed(0)
    theirs_of = RandomResizedCrop(8, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
    blank = torch.zeros(3, height, width)
    theirs = [theirs_of.make_params([blank]) for _ in range(1500)]
    ours = [draw_box(height, width, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(1500)]
    for key in ("top", "left", "height", "width"):
        assert ks_2samp([getattr(box, key) for box in ours], [params[key] for params in theirs]).pvalue > 0.001
    assert 0.45 < np.mean([box.flip for box in ours]) < 0.55


def test_a_box_that_never_fits_is_the_middle() -> None:
    assert draw_box(20, 200, (1.0, 1.0), (3 / 4, 4 / 3), flip=False) == Box(0, 86, 20, 27, False)
    assert draw_box(200, 20, (1.0, 1.0), (3 / 4, 4 / 3), flip=False) == Box(86, 0, 27, 20, False)


def test_random_crops_depend_on_the_random_state_alone(folder: Path) -> None:
    crops = RandomCrops(ImageFolder(folder, "train"), 16)
    random.seed(5)
    first = crops[2]
    random.seed(5)
    second = RandomCrops(ImageFolder(folder, "train", cache=False), 16)[2]
    assert torch.equal(first.image, second.image)
    assert first.image.shape == (3, 16, 16)
    assert first.label == second.label == 1
    assert first.place == second.place == 2
    assert first.crop == second.crop


def test_a_sample_says_where_it_was_cut_and_brings_its_noise(folder: Path) -> None:
    images_in = ImageFolder(folder, "train")
    items = SeededDataset(RandomCrops(images_in, 16, noise=9), seed=4)
    image, label, place, crop, noise = sample = items[3, 1]
    assert (label, place, crop.image_height, crop.image_width) == (0, 1, 40, 52)
    assert torch.equal(image, cut(images_in[1][0], Box(*crop[:5]), 16))
    assert noise.shape == (9,)
    assert noise.dtype == torch.float32
    assert 0 <= noise.min() < noise.max() < 1
    assert torch.equal(items[3, 1].noise, noise)
    assert not torch.equal(items[4, 1].noise, noise)
    assert not torch.equal(items[3, 2].noise, noise)
    without = SeededDataset(RandomCrops(images_in, 16), seed=4)[3, 1]
    assert without.noise.shape == (0,)
    assert without.crop == sample.crop


def test_a_broken_image_waits_until_it_is_asked_for(folder: Path) -> None:
    broken = folder / "train" / "ant" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    for cache in (None, False):
        found = ImageFolder(folder, "train", cache=cache)
        assert (found.pixels is None) == (cache is False)
        assert torch.equal(found[1][0], read_image(folder / "train" / "ant" / "deep" / "er.png"))
        with pytest.raises(UnfitError, match=r"1\.png: "):
            found[0]


# --------------------------------------------------------------------------------------- the papers' pixels, to the bit


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("b.jpg", "L"), ("c.jpg", "CMYK"), ("d.png", "P")])
def test_with_pillow_pixels_are_those_of_the_originals_pipeline(tmp_path: Path, name: str, mode: str) -> None:
    """RandomResizedCrop (bicubic) and flip on a PIL image, ToTensor, Normalize: what MAE and CrossMAE train on."""
    path = _write(tmp_path / "images" / "train" / "class" / name, _picture(211, 260).convert(mode))
    crops = RandomCrops(ImageFolder(tmp_path / "images", "train", decoder="pil"), 64)
    opened = pil_loader(str(path))
    finish = TorchvisionNormalize(IMAGENET_MEAN, IMAGENET_STD)
    flips = set()
    for epoch in range(6):
        image, _, _, crop, _ = SeededDataset(crops, seed=1)[epoch, 0]
        theirs = on_pil.resized_crop(opened, *crop[:4], [64, 64], BICUBIC)
        theirs = on_pil.hflip(theirs) if crop.flip else theirs
        assert torch.equal(image, on_pil.pil_to_tensor(theirs))
        torch.testing.assert_close(normalise(image[None])[0], finish(ToTensor()(theirs)), rtol=1e-6, atol=1e-6)
        flips.add(crop.flip)
    assert flips == {False, True}


def test_torchvisions_pixels_are_near_those_of_pillow(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jpg", _picture(375, 500), quality=90)
    plain, exact = read_image(path), torch.from_numpy(np.array(pil_loader(str(path)))).permute(2, 0, 1)
    box = Box(20, 30, 300, 280, True)
    differ = (cut(plain, box, 224).int() - cut(exact, box, 224, "pil").int()).abs()
    assert differ.float().mean() < 0.1
    assert differ.max() < 20


def test_facts_name_what_is_unusual(folder: Path) -> None:
    assert ImageFolder(folder, "train").facts() == {}
    assert ImageFolder(folder, "train", decoder="pil").facts() == {"decoder": "pil"}


def test_normalise_gives_the_same_bits_in_both_memory_orders() -> None:
    images = torch.arange(2 * 3 * 5 * 7, dtype=torch.uint8).view(2, 3, 5, 7)
    last = normalise(images.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, normalise(images))


def test_normalise() -> None:
    values = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    black, white = normalise(values)
    assert black[:, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert white[:, 1, 1].tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])

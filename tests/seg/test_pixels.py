"""Resizing, crops and photometric distortion: bytes equal to mmcv's and mmsegmentation 1.2.2's for the same draws."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
import pytest
from PIL import Image as Pillow

from mimbench.seg.config import Augment, Inference
from mimbench.seg.data.augment import (
    augmented,
    draw_crop,
    hue_turned,
    jittered_size,
    linear,
    photometric_distortion,
    saturated,
    varied,
)
from mimbench.seg.data.batches import TrainingCrops, training_batch, view_size, views_of
from mimbench.seg.data.pixels import (
    decode_image,
    decode_labels,
    look_up,
    rescaled_size,
    resize_image,
    resize_labels,
    to_hsv,
)
from mimbench.seg.data.split import label_table, open_split
from tests.seg.rules import golden, sha

GOLDEN = golden("data")


def picture() -> np.ndarray:
    """The image of the golden numbers (83, 117, 3)."""
    y, x, c = np.mgrid[:83, :117, :3]
    return ((7 * y + 13 * x + 50 * c + (x * y) % 17) % 256).astype(np.uint8)


def picture_labels() -> np.ndarray:
    """Its label map, ids 0 to 150."""
    y, x = np.mgrid[:83, :117]
    return (((y // 9) * 13 + x // 7) % 151).astype(np.uint8)


@pytest.mark.parametrize("scale", list(GOLDEN["resize"]["results"]))
def test_resizing(scale: str) -> None:
    wanted = GOLDEN["resize"]["results"][scale]
    long, short = (int(part) for part in scale.strip("()").split(","))
    size = rescaled_size((83, 117), long, short)
    assert list(size) == wanted["shape"]
    image, labels = resize_image(picture(), size), resize_labels(picture_labels(), size)
    assert (int(image.sum()), int(labels.sum())) == (wanted["img_sum"], wanted["label_sum"])
    assert (sha(image), sha(labels)) == (wanted["img_sha"], wanted["label_sha"])


@pytest.mark.parametrize("case", list(GOLDEN["random_resize_sizes_hw"]))
def test_sizes_at_random_scales(case: str) -> None:
    size, _, ratio = case.partition("@")
    width, height = (int(side) for side in size.split("x"))
    made = jittered_size((height, width), float(ratio), Augment(), 512)
    other = jittered_size((width, height), float(ratio), Augment(), 512)
    assert GOLDEN["random_resize_sizes_hw"][case] in ([*made], [*other])


def test_photometric_operations() -> None:
    wanted = GOLDEN["photometric"]["ops"]
    image = np.ascontiguousarray(picture()[:48, :64])
    made = {
        "input": image,
        "brightness+20.7": look_up(image, linear(1.0, 20.7)),
        "brightness-20.7": look_up(image, linear(1.0, -20.7)),
        "contrast1.3": look_up(image, linear(1.3, 0.0)),
        "contrast0.6": look_up(image, linear(0.6, 0.0)),
        "bgr2hsv": to_hsv(image),
        "saturation1.4": saturated(image, 1.4),
        "hue+10": hue_turned(image, 10),
        "hue-18": hue_turned(image, -18),
    }
    assert made.keys() == wanted.keys()
    assert {name: sha(one) for name, one in made.items()} == {name: one["sha"] for name, one in wanted.items()}


def test_photometric_distortion_from_the_same_draws() -> None:
    image = np.ascontiguousarray(picture()[:48, :64])
    for seed, wanted in GOLDEN["photometric"]["numpy_seed_runs"].items():
        np.random.seed(int(seed))
        made = photometric_distortion(image)
        assert (int(made.sum()), sha(made)) == (wanted["sum"], wanted["sha"]), seed


def test_photometric_distortion_is_distributed_alike() -> None:
    wanted = GOLDEN["photometric"]["distribution"]
    image = np.ascontiguousarray(picture()[:16, :16])
    np.random.seed(wanted["numpy_seed"])
    drawn = np.stack([photometric_distortion(image) for _ in range(wanted["n"])])
    assert (drawn == image).all((1, 2, 3)).mean() == wanted["p_unchanged"]
    means = drawn.mean((1, 2, 3))
    for quantile, value in wanted["mean_quantiles"].items():
        assert np.quantile(means, float(quantile)) == pytest.approx(value, rel=1e-12)
    assert means.mean() == pytest.approx(wanted["mean_mean"], rel=1e-12)


def _scene() -> np.ndarray:
    labels = np.zeros((96, 128), dtype=np.uint8)
    labels[:, 80:] = 1
    labels[60:] = 2
    labels[10:20, 100:120] = 3
    labels[:8] = 255
    return labels


@pytest.mark.parametrize(("key", "ratio"), [("with_cat_max_ratio_075", 0.75), ("without", 1.0)])
def test_crops_of_several_classes(key: str, ratio: float) -> None:
    wanted, labels = GOLDEN["random_crop"][key], _scene()
    np.random.seed(wanted["numpy_seed"])
    corners = np.array([draw_crop(labels, 64, ratio) for _ in range(wanted["n"])])
    assert corners[:, 0].mean() == wanted["mean_offset_h"]
    assert corners[:, 1].mean() == wanted["mean_offset_w"]
    assert corners.std(0).tolist() == pytest.approx([wanted["std_h"], wanted["std_w"]], rel=1e-12)
    failing = np.mean([not varied(labels[t : t + 64, left : left + 64], 0.75) for t, left in corners])
    assert failing == wanted["share_of_crops_failing_the_test"]


def test_the_first_crops() -> None:
    np.random.seed(5)
    corners = [draw_crop(_scene(), 64, 0.75) for _ in range(6)]
    assert [[top, top + 64, left, left + 64] for top, left in corners] == GOLDEN["random_crop"][
        "numpy_seed5_first6_y1y2x1x2"
    ]


def test_a_crop_of_one_class_is_taken_after_ten_tests() -> None:
    np.random.seed(0)
    draw_crop(np.zeros((96, 128), dtype=np.uint8), 64, 0.75)
    after = np.random.random_sample()
    np.random.seed(0)
    for _ in range(11):
        np.random.randint(0, 33)
        np.random.randint(0, 65)
    assert np.random.random_sample() == after


def test_ids_from_one() -> None:
    table = label_table(150, zero_is_ignored=True)
    for raw, wanted in GOLDEN["reduce_zero_label"].items():
        if int(raw) <= 150 or int(raw) == 255:
            assert table[int(raw)] == wanted
    assert (table[151:255] == 254).all()  # mmsegmentation lets these pass, and the loss fails on them


def test_a_small_crop_is_padded() -> None:
    config = Augment(smallest=0.5, largest=0.5, flip=0.0, photometric=False)
    image, labels = augmented(picture(), picture_labels(), config, 128)
    assert labels.shape == (64, 90)
    assert np.array_equal(image, resize_image(picture(), (64, 90)))
    import torch

    batch = training_batch([(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels))], 128)
    assert batch["sizes"] == [(64, 90)]
    assert (batch["labels"][0, 64:] == 255).all()
    assert (batch["labels"][0, :, 90:] == 255).all()
    assert batch["images"].shape == (1, 3, 128, 128)


def test_sizes_of_several_views() -> None:
    """BEiT's code lifts the short side to the crop, so that three of its six sizes are one."""
    six = Inference(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
    sizes = [view_size((512, 683), scale, six, 512) for scale in six.scales]
    assert sizes[:3] == [(512, 683)] * 3
    assert sizes[3:] == [(640, 854), (768, 1025), (896, 1195)]
    assert [view.weight for view in views_of(np.zeros((512, 683, 3), np.uint8), six, 512)] == [3, 1, 1, 1]
    described = Inference(scales=six.scales, scaling="described")
    assert view_size((512, 683), 0.5, described, 512) == (256, 342)
    assert view_size((480, 2100), 1.0, Inference(), 512) == (468, 2048)


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1), (3, 3)])
def test_no_side_becomes_zero(size: tuple[int, int]) -> None:
    for config in (Inference(), Inference(scales=(1e-4,)), Inference(scales=(1e-4,), resizing="pillow")):
        assert min(view_size(size, config.scales[0], config, 512)) >= 1
        assert len(views_of(np.zeros((*size, 3), np.uint8), config, 32)) == 1
    labels = np.zeros(size, np.uint8)
    assert augmented(np.zeros((*size, 3), np.uint8), labels, Augment(long=1, short=1, photometric=False), 32)[1].size


@pytest.mark.parametrize("transforms", ["mmseg", "dinov3"])
@pytest.mark.parametrize("photometric", [True, False])
def test_a_crop_of_one_pixel_becomes_tensors(
    transforms: Literal["mmseg", "dinov3"], photometric: bool, make_pairs
) -> None:
    config = Augment(
        long=1, short=1, smallest=1e-3, largest=1e-3, flip=1.0, photometric=photometric, transforms=transforms
    )
    for _ in range(8):
        image, labels = TrainingCrops(open_split(make_pairs(1), "train"), config, 32)[0]
        assert (image.shape, labels.shape) == ((3, 1, 1), (1, 1))


def _png(image: Pillow.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _png_of_few_bits(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG (W a multiple of 4) that stores `values` with `bits` each, put together by hand."""
    planes = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    made = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def test_label_maps_of_every_mode() -> None:
    ids = (np.arange(12).reshape(3, 4) % 5).astype(np.uint8)
    palette = Pillow.fromarray(ids)
    palette = palette.convert("P")
    indexed = Pillow.frombytes("P", (4, 3), ids.tobytes())
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 8, 8, 8])
    for file in (Pillow.fromarray(ids), indexed):
        assert np.array_equal(decode_labels(_png(file), "x.png"), ids)
    for bits in (1, 2, 4):  # Pillow and OpenCV multiply these grey values
        few = ids % 2**bits
        assert np.array_equal(decode_labels(_png_of_few_bits(few, bits), "x.png"), few)
    assert np.array_equal(decode_labels(_png_of_few_bits(ids, 8), "x.png"), ids)
    stream = io.BytesIO()
    Pillow.fromarray(ids).save(stream, "JPEG")
    with pytest.raises(ValueError, match=r"x\.png: is a JPEG"):
        decode_labels(stream.getvalue(), "x.png")
    with pytest.raises(ValueError, match=r"x\.png: .*\(RGB\).*8-bit PNG"):
        decode_labels(_png(Pillow.fromarray(ids).convert("RGB")), "x.png")
    with pytest.raises(ValueError, match=r"x\.png: .*16 bits"):
        decode_labels(_png(Pillow.fromarray(ids.astype(np.uint16))), "x.png")
    with pytest.raises(ValueError, match=r"x\.png: is not an image"):
        decode_labels(b"", "x.png")
    with pytest.raises(ValueError, match=r"x\.jpg: is not an image"):
        decode_image(b"abc", "x.jpg")

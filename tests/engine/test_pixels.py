"""What pixels become: values of more than 8 bits, orientations, sizes, and files that are something else."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.engine.data.datasets import UnfitError
from mimbench.engine.data.folders import SUFFIXES, labelled_files
from mimbench.engine.data.images import ImageFolder, decode, read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
ORIENTATION = 0x0112


def _tiff(values: np.ndarray, *, photometric: int = 1, sample_format: int = 1, bits: int | None = None) -> bytes:
    """An uncompressed greyscale TIFF, written by hand: the order of bytes is that of `values`."""
    order = "<" if values.dtype.newbyteorder("<") == values.dtype or values.dtype.itemsize == 1 else ">"
    height, width = values.shape
    data = values.tobytes()
    tags = [
        (256, width), (257, height), (258, bits or 8 * values.itemsize), (259, 1), (262, photometric), (273, 8),
        (277, 1), (278, height), (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    return header + data + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0"


def _twelve_bits(values: np.ndarray) -> bytes:
    """Two values of 12 bits in three bytes."""
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
    return _tiff(np.packbits(bits.reshape(16, -1), axis=1)).replace(
        struct.pack("<HHII", 256, 4, 1, 24), struct.pack("<HHII", 256, 4, 1, 16)
    ).replace(struct.pack("<HHII", 258, 4, 1, 8), struct.pack("<HHII", 258, 4, 1, 12))  # fmt: skip


def _saved(values: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


WIDE = RAMP.astype(np.uint16) * 257
DEEP: dict[str, bytes] = {
    "TIFF 16": _tiff(WIDE),
    "TIFF 16, big-endian": _tiff(WIDE.astype(">u2")),
    "TIFF 16, 0 is white": _tiff(65535 - WIDE, photometric=0),
    "TIFF 16 with sign": _tiff((RAMP.astype(np.int16) << 7) + 127, sample_format=2),
    "TIFF 12": _twelve_bits(RAMP.astype(np.uint16) * 16 + 15),
    "TIFF 32": _tiff(RAMP.astype(np.uint32) * 0x01010101),
    "TIFF 32 with sign": _tiff((RAMP.astype(np.int32) << 23), sample_format=2),
    "TIFF 32, big-endian with sign": _tiff((RAMP.astype(">i4") << 23).astype(">i4"), sample_format=2),
    "TIFF 32 of 16 bits": _tiff(RAMP.astype(np.uint32) * 257),
    "TIFF 32 of 8 bits": _tiff(RAMP.astype(np.uint32)),
    "TIFF floats to 1": _tiff((RAMP / 255).astype(np.float32), sample_format=3),
    "TIFF floats to 1, big-endian": _tiff((RAMP / 255).astype(">f4"), sample_format=3),
    "TIFF floats to 1, 0 is white": _tiff((1 - RAMP / 255).astype(np.float32), sample_format=3, photometric=0),
    "TIFF floats to 255": _tiff(RAMP.astype(np.float32), sample_format=3),
    "TIFF floats to 65535": _tiff(WIDE.astype(np.float32), sample_format=3),
    "PNG 16": _saved(WIDE, "PNG"),
    "PGM 16": b"P5 16 16 65535\n" + WIDE.astype(">u2").tobytes(),
    "PGM of 10 bits": b"P5 16 16 1023\n" + np.rint(RAMP / 255 * 1023).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_scaled(kind: str, decoder) -> None:
    suffix = {"TIFF": ".tif", "PNG": ".png", "PGM": ".pgm"}[kind[:4].strip()]
    for name in (f"a{suffix}", "a.jpg"):  # by the file's name, and by what it holds
        image = decode(bytearray(DEEP[kind]), name, decoder=decoder)
        off = (image - torch.from_numpy(RAMP.astype(np.int16))).abs().max()
        assert off <= (1 if "10 bits" in kind else 0), kind


@pytest.mark.parametrize("values", [[-1.0, 5.0], [0.0, 70_000.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_floats_without_a_known_white_are_refused(values: list[float]) -> None:
    file = _tiff(np.resize(np.array(values, dtype=np.float32), (4, 4)), sample_format=3)
    with pytest.raises(UnfitError, match=r"a\.tif: holds floats from .*; scale them to 0"):
        decode(bytearray(file), "a.tif")


def _photo(orientation: int | None, kind: str, **options) -> bytes:
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    buffer = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


FORMATS = {"JPEG": ".jpg", "WEBP": ".webp", "PNG": ".png", "TIFF": ".tif", "AVIF": ".avif", "MPO": ".jpg"}


@pytest.mark.parametrize(("kind", "orientation"), itertools.product(FORMATS, range(1, 9)))
def test_every_format_is_turned_as_its_exif_data_say(kind: str, orientation: int) -> None:
    """Where the four corners go, by the EXIF specification."""
    encoded = bytearray(_photo(orientation, kind))
    image = decode(encoded, f"a{FORMATS[kind]}", upright=True)
    assert tuple(image.shape[1:]) == ((32, 48) if orientation < 5 else (48, 32))
    corners = image[:, [4, 4, -5, -5], [4, -5, 4, -5]].T.tolist()
    names = ["".join(c for c, v in zip("RGB", corner, strict=True) if v > 150) or "-" for corner in corners]
    assert "".join(names) == {
        1: "RGB-", 2: "GR-B", 3: "-BGR", 4: "B-RG", 5: "RBG-", 6: "BR-G", 7: "-GBR", 8: "G-RB",
    }[orientation]  # fmt: skip
    lying = decode(encoded, f"a{FORMATS[kind]}")
    assert tuple(lying.shape[1:]) == ((48, 32) if kind == "TIFF" and orientation >= 5 else (32, 48))  # as PIL has it


def test_a_webp_is_turned_pixel_by_pixel(tmp_path: Path) -> None:
    """Losslessly, so that each pixel is known; and Pillow's own turning says the same."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exif=exif)
    assert (read_image(tmp_path / "a.webp", upright=True).permute(1, 2, 0).numpy() == pixels[::-1, ::-1]).all()


@pytest.mark.parametrize("kind", ["XMP first", "big-endian", "damaged", "beyond 8"])
def test_other_exif_data_of_jpeg(kind: str) -> None:
    plain = _photo(None, "JPEG")
    value = 9 if kind == "beyond 8" else 6
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, value, 0, 0)
    exif = b"Exif\0\0" + (tiff[:14] if kind == "damaged" else tiff)
    parts = [b"http://ns.adobe.com/xap/1.0/\0<x/>", exif] if kind == "XMP first" else [exif]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    image = decode(bytearray(plain[:2] + segments + plain[2:]), "a.jpg", upright=True)
    assert tuple(image.shape[1:]) == ((48, 32) if kind in ("XMP first", "big-endian") else (32, 48))


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_a_file_can_have_shows_the_picture(mode: str, tmp_path: Path) -> None:
    """Not white, not black, not noise: within a few steps of the greyscale that was written."""
    grey = Image.fromarray(RAMP)
    made = {
        "I;16": lambda: Image.fromarray(WIDE), "I": lambda: Image.fromarray(RAMP.astype(np.int32)),
        "F": lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
        "LAB": lambda: Image.merge("LAB", (grey, Image.new("L", (16, 16), 128), Image.new("L", (16, 16), 128))),
        "PA": lambda: grey.convert("RGB").quantize(256).convert("PA"), "LA": lambda: grey.convert("LA"),
        "P": lambda: grey.convert("RGB").quantize(256),
    }.get(mode, lambda: grey.convert("RGB").convert(mode))()  # fmt: skip
    path = tmp_path / "a.tif"
    written = False
    for kind in ("TIFF", "PNG"):
        try:
            made.save(path, kind)
            written = True
            break
        except (OSError, KeyError):
            continue
    if not written:
        pytest.skip(f"Pillow writes no file of mode {mode}")
    image = read_image(path).float().mean(0).numpy()
    if mode == "1":
        assert 0.3 < (image == 255).mean() < 0.7
    else:
        assert np.abs(image - RAMP).mean() < (12 if mode == "LAB" else 6)


def test_an_image_beyond_pillows_own_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # in place of 89 million: above twice that, Pillow refuses
    for suffix in (".png", ".tif", ".bmp"):
        Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tmp_path / f"a{suffix}")
        assert read_image(tmp_path / f"a{suffix}").shape == (3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 60, "is a HEIC image: this format is not supported; convert it to PNG"),
        (b"\xff\x0a" + b"\0" * 60, "is a JPEG XL: "),
        (b"<!DOCTYPE html><html><body>404</body></html>" * 3, "is a web page, not an image: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer, not an image: "),
        (_tiff(np.zeros((4, 4), dtype=np.float64), sample_format=3), "is a TIFF variant: "),
        (b"nothing at all that anybody knows", "is not an image"),
        (b"", "is not an image"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, expected: str) -> None:
    for name in ("a.jpg", "a.tif"):
        with pytest.raises(UnfitError) as raised:
            decode(bytearray(content), name, upright=True)
        assert expected in str(raised.value)


JUNK = [".ipynb_checkpoints", "@eaDir", "@EADIR", "__MACOSX", "#recycle", "lost+found", "$RECYCLE.BIN"]


def test_folders_of_programs_are_no_classes_and_hold_no_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for folder in (tmp_path / name, *(tmp_path / name / junk for junk in JUNK), tmp_path / name / "more"):
            folder.mkdir()
            Image.new("RGB", (4, 4)).save(folder / "a.png")
    for junk in JUNK:
        (tmp_path / junk / "deeper").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / junk / "a.png")
    folder = ImageFolder(tmp_path, "train")
    assert folder.classes == ["cat", "dog"]
    assert [folder.paths.name(place) for place in range(len(folder))] == [
        "cat/a.png", "cat/more/a.png", "dog/a.png", "dog/more/a.png",
    ]  # fmt: skip


def test_formats_that_are_read_and_those_left_out_with_a_word(tmp_path: Path, caplog) -> None:
    (tmp_path / "cat").mkdir()
    kinds = {".jfif": "JPEG", ".JPE": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".pbm": "PPM"}
    for suffix, kind in kinds.items():
        Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "cat" / f"a{suffix}", kind)
        assert suffix.lower() in SUFFIXES
    for name in ("a.heic", "b.HEIC", "notes.txt", "Thumbs.db", ".DS_Store", "README"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    names, _ = labelled_files(tmp_path, ["cat"])
    assert len(names) == 5
    for name in names:
        assert (read_image(tmp_path / name)[:, 8, 8] - torch.tensor([200, 100, 50])).abs().max() < 6
    assert f"{tmp_path}: 2 .heic, 1 .txt, 1 README files are ignored; the names of images end in .avif" in caplog.text
    assert "Thumbs" not in caplog.text

"""Robustness sets: which classes are right, which compete, and the numbers, against a plain loop over the files."""

from __future__ import annotations

import json
import pkgutil
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimbench.cls.data.check_robustness import check_robustness
from mimbench.cls.data.imagenet import imagenet_a_wnids, imagenet_r_wnids, indices, names, real_labels, wnids
from mimbench.cls.data.robustness import ALEXNET_ERROR, KINDS, Part, Robustness, robustness
from mimbench.engine.data.datasets import UnfitError

ALEXNET_RATES = {  # errors at severities 1 to 5, as tabulated for the five severities apart
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def _write(directory: Path, count: int = 1, name: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        seed = np.random.default_rng([number, *directory.name.encode()])
        pixels = seed.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / (name or f"{number}.png"))


def _measured(test: Robustness, logits: Sequence[Tensor]) -> dict[str, float]:
    """Batches of two, the last first."""
    percent = {}
    for part, logits_NC in zip(test.parts, logits, strict=True):
        places = torch.arange(len(part.folder)).split(2)
        right = [part.right(logits_NC[few], few) for few in reversed(places)]
        percent[part.name] = part.percent(torch.cat(right))
    return test.metrics(percent)


def _logits(images: int, classes: int = 1000) -> Tensor:
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(images))


def test_the_order_of_classes_is_the_published_one() -> None:
    assert wnids() == tuple(sorted(wnids()))
    assert (wnids()[0], names()[0]) == ("n01440764", "tench, Tinca tinca")
    assert (wnids()[-1], len(wnids())) == ("n15075141", 1000)
    assert len(imagenet_a_wnids()) == len(imagenet_r_wnids()) == 200
    assert set(imagenet_a_wnids()) | set(imagenet_r_wnids()) < set(wnids())
    for known, file in ((imagenet_a_wnids(), "imagenet_a_indices.txt"), (imagenet_r_wnids(), "imagenet_r_indices.txt")):
        content = pkgutil.get_data("timm.data", f"_info/{file}") or b""
        assert indices(known) == [int(line) for line in content.split()]  # timm's own table of the same
    assert indices(["n01443537", "cat"]) == [1, None]
    assert indices([str(number) for number in range(1000)]) == list(range(1000))
    assert sum(1 for sets in real_labels() if sets) == 46_837  # images that ReaL labels (Beyer et al. 2020)


@pytest.mark.parametrize(("kind", "known"), [("imagenet-a", imagenet_a_wnids), ("imagenet-r", imagenet_r_wnids)])
def test_only_the_classes_of_the_set_compete(tmp_path: Path, kind: str, known: object) -> None:
    chosen = known()[5:8]  # type: ignore[operator]
    for number, wnid in enumerate(chosen):
        _write(tmp_path / "inner" / wnid, number + 1)
    (test,) = (robustness(kind, tmp_path),)  # type: ignore[arg-type]
    (part,) = test.parts
    labels = [wnids().index(wnid) for number, wnid in enumerate(chosen) for _ in range(number + 1)]
    assert part.folder.labels.tolist() == labels
    logits = _logits(6)
    logits[:, wnids().index("n15075141")] = 99  # toilet tissue, in neither set: it must not be guessed
    competing = [wnids().index(wnid) for wnid in known()]  # type: ignore[operator]
    for place in (0, 3, 5):
        logits[place, labels[place]] = 50
    guesses = [max(competing, key=lambda number: float(row[number])) for row in logits]
    right = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
    assert right >= 3
    assert _measured(test, [logits]) == {f"{kind.replace('-', '_')}_top1": pytest.approx(100 * right / 6)}


def test_sketch_takes_all_classes(tmp_path: Path) -> None:
    for place in (999, 0, 500):
        _write(tmp_path / "sketch" / wnids()[place])
    test = robustness("imagenet-sketch", tmp_path)
    assert test.parts[0].mask is None
    assert test.parts[0].folder.labels.tolist() == [0, 500, 999]
    logits = torch.zeros(3, 1000)
    logits[0, 0] = logits[1, 499] = logits[2, 999] = 1
    assert _measured(test, [logits]) == {"imagenet_sketch_top1": pytest.approx(200 / 3)}


def test_v2_counts_folders_as_numbers(tmp_path: Path) -> None:
    for number in (0, 2, 10, 100):
        _write(tmp_path / "one" / str(number))
    test = robustness("imagenet-v2", tmp_path / "one")
    assert test.parts[0].folder.labels.tolist() == [0, 10, 100, 2]  # files lie in the order of the folders' texts
    for sampling in ("matched-frequency", "threshold0.7", "top-images"):
        shutil.copytree(tmp_path / "one", tmp_path / "all" / f"imagenetv2-{sampling}-format-val")
    test = robustness("imagenet-v2", tmp_path / "all")
    logits = [torch.eye(1000)[torch.tensor(hits)] for hits in ([0, 10, 100, 2], [0, 1, 1, 1], [0, 10, 1, 1])]
    assert _measured(test, logits) == {
        "imagenet_v2_top1": pytest.approx((100 + 25 + 50) / 3),
        "imagenet_v2_imagenetv2_matched_frequency_format_val_top1": 100,
        "imagenet_v2_imagenetv2_threshold07_format_val_top1": 25,
        "imagenet_v2_imagenetv2_top_images_format_val_top1": 50,
    }


def test_v2s_numbers_are_imagenets_whatever_the_classifiers_order(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        _write(tmp_path / str(number))
    mine = (wnids()[10], wnids()[5], wnids()[0], wnids()[2])
    test = robustness("imagenet-v2", tmp_path, mine)
    assert test.parts[0].folder.labels.tolist() == [2, 0, 3]
    with pytest.raises(UnfitError, match=f"10: is {wnids()[10]}, "):
        robustness("imagenet-v2", tmp_path, mine[1:])


def test_alexnets_errors_are_the_means_over_severities() -> None:
    assert {name: pytest.approx(sum(rates) / 5, abs=1e-7) for name, rates in ALEXNET_RATES.items()} == ALEXNET_ERROR


def test_corruptions(tmp_path: Path) -> None:
    groups = {"gaussian_noise": "noise/", "glass_blur": "blur/"}
    for name in (*ALEXNET_ERROR, "speckle_noise"):
        for severity in range(1, 6):
            _write(tmp_path / groups.get(name, "") / name / str(severity) / wnids()[7], 2)
    test = robustness("imagenet-c", tmp_path)
    assert len(test.parts) == 16 * 5
    percent = {}
    for part in test.parts:
        name, _, severity = part.name.partition("/")
        percent[part.name] = 100 - 100 * (ALEXNET_RATES[name][int(severity) - 1] if name in ALEXNET_RATES else 0)
    metrics = test.metrics(percent)
    assert metrics["imagenet_c_mce"] == pytest.approx(100)  # AlexNet's own, by definition
    assert metrics["imagenet_c_top1"] == pytest.approx(100 - 100 * sum(ALEXNET_ERROR.values()) / 15)
    assert metrics["imagenet_c_fog_top1"] == pytest.approx(100 * (1 - 0.819324))
    assert metrics["imagenet_c_speckle_noise_top1"] == 100  # told, and in no mean
    halved = test.metrics({name: (100 + value) / 2 for name, value in percent.items()})
    assert halved["imagenet_c_mce"] == pytest.approx(50)
    del percent["snow/3"]
    assert "imagenet_c_mce" not in test.metrics(percent)  # not of 15 corruptions at 5 severities
    assert test.parts[0].folder.labels.tolist() == [7, 7]


@pytest.mark.parametrize("own_file", [False, True])
def test_real_takes_any_of_an_images_labels(tmp_path: Path, own_file: bool) -> None:
    labels = [list(one) for one in real_labels()[:4]]
    assert [len(one) for one in labels] == [0, 2, 2, 1]  # of the published file
    for number in range(4):
        _write(tmp_path / "val" / wnids()[number % 3], name=f"ILSVRC2012_val_{number + 1:08}.JPEG")
    if own_file:
        labels[3] = [5]
        (tmp_path / "real.json").write_text(json.dumps([*labels, *real_labels()[4:]]))
    test = robustness("imagenet-real", tmp_path)
    places = [Path(test.parts[0].folder.paths.text(place)).name for place in range(4)]
    order = [int(name[15:23]) - 1 for name in places]
    assert order == [0, 3, 1, 2]
    guesses = {0: 0, 1: labels[1][1], 2: (labels[2][0] + 1) % 1000, 3: labels[3][0]}
    if guesses[2] in labels[2]:
        guesses[2] = (guesses[2] + 1) % 1000
    logits = torch.eye(1000)[torch.tensor([guesses[number] for number in order])]
    assert _measured(test, [logits]) == {"imagenet_real_top1": pytest.approx(200 / 3)}  # image 1 has no label


def test_a_classifier_of_fewer_classes(tmp_path: Path) -> None:
    mine = (imagenet_a_wnids()[3], wnids()[0], imagenet_a_wnids()[1])
    _write(tmp_path / mine[0])
    test = robustness("imagenet-a", tmp_path, mine)
    assert test.parts[0].folder.labels.tolist() == [0]
    assert test.parts[0].mask is not None
    assert test.parts[0].mask.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"logits have 1000 classes, but .* for 3"):
        test.parts[0].right(_logits(1), torch.tensor([0]))
    _write(tmp_path / imagenet_a_wnids()[9])
    with pytest.raises(UnfitError, match="is not among the classes of this set"):
        robustness("imagenet-a", tmp_path, mine)


def test_classes_without_names_are_taken_in_imagenets_order(tmp_path: Path) -> None:
    _write(tmp_path / wnids()[17])
    test = robustness("imagenet-sketch", tmp_path, [str(number) for number in range(1000)])
    assert test.parts[0].folder.labels.tolist() == [17]


def test_what_is_not_such_a_set(tmp_path: Path) -> None:
    _write(tmp_path / "images" / "cat")
    for kind in KINDS:
        if kind != "imagenet-real":
            with pytest.raises(UnfitError):
                robustness(kind, tmp_path / "images")
    with pytest.raises(UnfitError, match="ILSVRC2012_val_00000001"):
        robustness("imagenet-real", tmp_path / "images")
    with pytest.raises(ValueError, match=r"not a robustness set; .* imagenet-a"):
        robustness("imagenet-b", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        robustness("imagenet-a", tmp_path / "nothing")
    outside = next(wnid for wnid in wnids() if wnid not in imagenet_a_wnids())
    _write(tmp_path / "a" / outside)
    with pytest.raises(UnfitError, match=f"{outside}: is not among the classes of this set"):
        robustness("imagenet-a", tmp_path / "a")
    _write(tmp_path / "v2" / "1000")
    with pytest.raises(UnfitError, match="is not a number below 1000"):
        robustness("imagenet-v2", tmp_path / "v2")
    _write(tmp_path / "c" / "rain" / "1" / wnids()[0])
    with pytest.raises(UnfitError, match="rain: is not a corruption of ImageNet-C"):
        robustness("imagenet-c", tmp_path / "c")


def test_a_check_counts_classes_and_images_and_reads_them(tmp_path: Path) -> None:
    for wnid in imagenet_a_wnids()[:2]:
        _write(tmp_path / wnid, 2)
    broken = tmp_path / imagenet_a_wnids()[1] / "1.png"
    broken.write_text("no image")
    report = check_robustness(tmp_path, "imagenet-a")
    assert [(finding.file, finding.what) for finding in report.findings] == [
        (str(tmp_path), "has images of 2 classes, but imagenet-a has 200"),
        (str(tmp_path), "has 4 images, but imagenet-a has 7,500"),
        (str(broken), "is not an image that can be read"),
    ]
    assert (report.failed, report.facts) == (True, {"images": 4})
    assert check_robustness(tmp_path / "nothing", "imagenet-a").failed
    assert "has images of 2 classes" in str(check_robustness(tmp_path, "imagenet-v2").findings)


def test_a_check_names_corruptions_that_are_missing(tmp_path: Path) -> None:
    for name in ("fog", "spatter"):
        for severity in range(1, 6):
            _write(tmp_path / name / str(severity) / wnids()[0])
    found = [str(finding) for finding in check_robustness(tmp_path, "imagenet-c").findings]
    assert "has no gaussian_noise/1, gaussian_noise/2, gaussian_noise/3, ...: 70 of 75 are missing" in found[0]
    assert "also has spatter" in found[1]


def test_a_damaged_file_of_labels(tmp_path: Path) -> None:
    _write(tmp_path / "val" / wnids()[0], name="ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "real.json").write_text("[[1], [2]]")
    with pytest.raises(UnfitError, match=r"real\.json: cannot be read"):
        robustness("imagenet-real", tmp_path)


def test_a_part_with_no_label_at_all_says_so(tmp_path: Path) -> None:
    _write(tmp_path / "val" / wnids()[0], name="ILSVRC2012_val_00000001.JPEG")
    part: Part = robustness("imagenet-real", tmp_path).parts[0]
    with pytest.raises(ValueError, match="none of the 1 images has a label"):
        part.percent(part.right(_logits(1), torch.tensor([0])))

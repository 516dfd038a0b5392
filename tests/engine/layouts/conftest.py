"""A tiny ImageNet, as folders and as everything else that people have."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.engine.layouts.made import IDS, TRAIN, VAL, WNIDS, class_tar, jpeg, tar_of


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with folders of wnids, files named as ImageNet's are; images of the classes are interleaved."""
    root = tmp_path_factory.mktemp("folders")
    for number, (wnid, count) in enumerate(zip(WNIDS, TRAIN, strict=True)):
        (root / "train" / wnid).mkdir(parents=True)
        for image in range(count):
            (root / "train" / wnid / f"{wnid}_{100 - image}.JPEG").write_bytes(jpeg(100 * number + image))
    left = dict(zip(WNIDS, VAL, strict=True))
    for number in range(1, sum(VAL) + 1):
        wnid = [name for name in WNIDS if left[name]][number % sum(map(bool, left.values()))]
        left[wnid] -= 1
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        (root / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(jpeg(1000 + number))
    return root


@pytest.fixture(scope="session")
def val_wnids(folders: Path) -> list[str]:
    """The class of each validation image, in the order of their numbers."""
    return [file.parent.name for file in sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)]


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory, val_wnids: list[str]) -> Path:
    """The development kit, unpacked: its data/ with meta.mat and the ground truth."""
    from scipy.io import savemat

    data = tmp_path_factory.mktemp("kit") / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = [(IDS[wnid], wnid, f"{wnid} word, other", "what it is", 0, [], 0, 1300.0) for wnid in WNIDS]
    rows.append((5, "n00001740", "entity", "all", 2, [1, 2], 3, 0.0))  # no leaf
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in names])
    for place, row in enumerate(sorted(rows)):
        table[place, 0] = row
    savemat(data / "meta.mat", {"synsets": table})
    numbers = "".join(f"{IDS[wnid]}\n" for wnid in val_wnids)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
    return data.parent


@pytest.fixture(scope="session")
def packed_kit(kit: Path) -> bytes:
    """The same as published, a .tar.gz."""
    return tar_of(
        [
            (f"{kit.name}/readme.txt", b"about"),
            (f"{kit.name}/data/meta.mat", (kit / "data" / "meta.mat").read_bytes()),
            (
                f"{kit.name}/data/ILSVRC2012_validation_ground_truth.txt",
                (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").read_bytes(),
            ),
        ],
        mode="w:gz",
    )


@pytest.fixture
def tars(tmp_path: Path, folders: Path, packed_kit: bytes) -> Path:
    """As published: a tar of tars, a tar of images, the kit."""
    root = tmp_path / "tars"
    root.mkdir()
    classes = sorted((folders / "train").iterdir(), reverse=True)
    tar_of(((f"{folder.name}.tar", class_tar(folder)) for folder in classes), root / "ILSVRC2012_img_train.tar")
    flat = sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)
    tar_of(((file.name, file.read_bytes()) for file in flat), root / "ILSVRC2012_img_val.tar")
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed_kit)
    return root


@pytest.fixture
def flat(tmp_path: Path, folders: Path) -> Path:
    """train/ in folders, val/ flat, and nothing that says which image is what."""
    root = tmp_path / "flat"
    shutil.copytree(folders / "train", root / "train")
    (root / "val").mkdir()
    for file in (folders / "val").rglob("*.JPEG"):
        shutil.copy(file, root / "val" / file.name)
    return root

"""detectron2's side of a recipe: the LazyConfig, and what it makes of our weights, data and settings.

The tests of the second half need detectron2 and are skipped without it; its Python part, uncompiled, is enough.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

from mimbench.backbones.config import ViT
from mimbench.det.config import TTA, Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.data.augment import fitted, render
from mimbench.det.data.batches import TrainingImages
from mimbench.det.data.coco import CocoSplit, read_split
from mimbench.det.detectron2 import installed
from mimbench.det.detectron2.run import named, write_lazyconfig
from mimbench.det.evaluation.evaluate import CocoMetrics
from mimbench.det.model.build import build_detector
from mimbench.det.model.detector_config import config_of
from mimbench.det.model.detector_file import open_detector
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.det.model.masks import paste
from mimbench.det.optim import groups, learning_rate
from mimbench.det.run import run
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir
from tests.det.lvis_data import write_lvis
from tests.det.tiny import fixed_permutation

with_detectron2 = pytest.mark.skipif(
    bool(installed.missing()), reason=f"needs detectron2 (lacks {', '.join(installed.missing())}): {installed.INSTALL}"
)

DRAWS = 1500
HEADS = Heads(samples=16, convs=1, channels=16, fc=32, score_threshold=0.05, detections=10)
CASES = {
    "mask": HEADS,
    "cascade": replace(HEADS, cascade=True),
    "federated": replace(HEADS, cascade=True, class_loss="federated", federated=2),
    "boxes": replace(HEADS, masks=False),
}


def config_for(data: Path, heads: Heads = HEADS, **changes: Any) -> MaskRCNNConfig:
    """A small detector with windows, relative positions and four levels."""
    config = MaskRCNNConfig(
        data=str(data),
        encoder=ViT(16, 4, 2, patch=8, image=32),
        vitdet=ViTDetConfig(window=3, drop_path=0.0, channels=16, scales=(2.0, 1.0, 0.5)),
        proposals=Proposals(anchor_sizes=(8.0, 16.0, 24.0, 32.0), samples=32, before_nms=(90, 90), after_nms=(60, 60)),
        heads=heads,
        augment=Augment(smallest=0.8, largest=1.25),
        image=64,
        steps=4,
        batch=2,
        lr=1e-3,
        warmup=2.0,
        milestones=(3,),
        shown=0,
        loss_weights="batch",
        compute=Compute(precision="fp32", workers=0, threads=1, device="cpu", save_every=2),
    )
    return replace(config, **changes)


def splits_of(config: MaskRCNNConfig) -> tuple[CocoSplit, CocoSplit]:
    train, val = (read_split(Path(config.data), split, masks=config.heads.masks) for split in ("train", "val"))
    return train, val


def lively(model: MaskRCNN) -> MaskRCNN:
    """Weights with which scores, boxes and masks are spread out."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * (0.5 if "rel_pos" in name else 1 / weight[0].numel() ** 0.5))
    return model


def written(config: MaskRCNNConfig, directory: Path) -> tuple[MaskRCNN, Path]:
    splits = splits_of(config)
    model, _ = build_detector(config, 2, splits[0].images_showing().tolist())
    write_lazyconfig(config, lively(model), splits, directory / "lazy.py", directory, "cpu")
    return model, directory / "lazy.py"


@pytest.mark.parametrize("case", CASES)
def test_a_lazy_config_is_python_and_has_the_recipes_values(make_coco: Any, tmp_path: Path, case: str) -> None:
    _, file = written(config_for(make_coco(2), CASES[case]), tmp_path)
    text = file.read_text()
    compile(text, str(file), "exec")
    for value in ("window_block_indexes=[]", "max_iter=4", "milestones=[3]", "max_scale=1.25", "lr_decay_rate=0.7"):
        assert value in text or value.startswith("window")
    assert ("CascadeROIHeads)(" in text) == CASES[case].cascade
    assert ("_common.update(" in text) == CASES[case].masks
    assert set(torch.load(file.with_suffix(".pth"), weights_only=True)) == {"model"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"grad_clip": 1.0}, "grad_clip=none"),
        ({"compute": Compute(accumulate=2)}, "compute.accumulate=2"),
        ({"heads": replace(HEADS, soft_nms="linear")}, "heads.soft_nms=off"),
        ({"test_time_augmentation": TTA(flip=True)}, r"test_time_augmentation\.flip=false"),
        ({"proposals": replace(Proposals(anchor_sizes=(8.0, 16.0, 24.0, 32.0)), norm=True)}, r"proposals\.norm=false"),
    ],
)
def test_what_detectron2_cannot_do_is_refused(make_coco: Any, tmp_path: Path, changes: Any, why: str) -> None:
    config = config_for(make_coco(2), loss_weights="image")
    with pytest.raises(ValueError, match=f"detectron2 cannot train this recipe: .*{why}"):
        written(replace(config, **changes), tmp_path)
    assert not list(tmp_path.glob("lazy*"))


def test_without_detectron2_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("detectron2", "hydra") else name)
    with pytest.raises(ValueError, match=r"needs detectron2, hydra-core, not installed here.* pip install"):
        installed.require()


def test_metrics_get_our_names() -> None:
    found = {"bbox": {"AP": 1.5, "APs": float("nan"), "APl": -100.0, "AP-dog": 3.0}, "segm": {"AP50": 2.0, "APr": 4.0}}
    assert named(found) == {"box_ap": 1.5, "mask_ap50": 2.0, "mask_ap_rare": 4.0}


# --------------------------------------------------------------------------------------------- with detectron2 itself


def instantiated(file: Path) -> tuple[Any, Any]:
    """The LazyConfig, and its model with the start's weights, loaded strictly."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyConfig, instantiate

    lazy = LazyConfig.load(str(file))
    model = instantiate(lazy.model)
    report = DetectionCheckpointer(model)._load_model(torch.load(file.with_suffix(".pth"), weights_only=True))
    assert not report.missing_keys
    assert not report.unexpected_keys
    model.load_state_dict(torch.load(file.with_suffix(".pth"), weights_only=True)["model"], strict=True)
    return lazy, model


@pytest.fixture(autouse=True)
def _no_data_sets_left() -> Any:
    yield
    if not installed.missing():
        from detectron2.data import DatasetCatalog, MetadataCatalog

        for name in [name for name in DatasetCatalog.list() if name.startswith("mimbench")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@with_detectron2
@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_detect_the_same(make_coco: Any, tmp_path: Path, case: str) -> None:
    config = config_for(make_coco(3), CASES[case])
    ours, file = written(config, tmp_path)
    _, theirs = instantiated(file)
    split = splits_of(config)[1]
    for index in range(len(split)):
        size = split.size(index)
        image = render(split.read_image(index), fitted(size, config.image))
        seen = (image.shape[1], image.shape[2])
        found = ours.eval().detect(image[None], [seen])[0].rescaled(seen, size)
        with torch.no_grad():
            wanted = theirs.eval()([{"image": image, "height": size[0], "width": size[1]}])[0]["instances"]
        assert len(found.scores) == len(wanted) > 0
        assert torch.allclose(found.boxes, wanted.pred_boxes.tensor, atol=1e-3, rtol=0)
        assert torch.allclose(found.scores, wanted.scores, atol=1e-4, rtol=0)
        assert torch.equal(found.labels, wanted.pred_classes)
        if config.heads.masks:
            drawn = paste(found.masks, found.boxes, size)
            union = (drawn | wanted.pred_masks).sum()
            assert (drawn & wanted.pred_masks).sum() > 0.999 * union


@with_detectron2
@pytest.mark.parametrize("case", ["cascade", "federated"])
def test_losses_of_its_own_batches(make_coco: Any, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.config import instantiate
    from detectron2.utils.events import EventStorage

    config = config_for(make_coco(3), CASES[case])
    ours, file = written(config, tmp_path)
    lazy, theirs = instantiated(file)
    items = next(iter(instantiate(lazy.dataloader.train)))
    monkeypatch.setattr(torch, "randperm", fixed_permutation)
    torch.manual_seed(0)
    with EventStorage():
        wanted = theirs.train()(items)
    torch.manual_seed(0)
    given = ours.train()(as_batch(items))
    assert {key: given[key].item() for key in wanted} == pytest.approx(
        {key: value.item() for key, value in wanted.items()}, rel=1e-4
    )


def as_batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    """detectron2's batch as ours."""
    from mimbench.det.data.batches import padded
    from mimbench.det.model.masks import InstanceMasks

    images, sizes = padded([item["image"] for item in items])
    targets = [
        {
            "boxes": item["instances"].gt_boxes.tensor,
            "labels": item["instances"].gt_classes,
            "masks": InstanceMasks(list(item["instances"].gt_masks.tensor.numpy())),
        }
        for item in items
    ]
    return {"images": images, "sizes": sizes, "targets": targets}


@with_detectron2
def test_training_images_are_distributed_as_its_are(make_coco: Any, edit: Any, tmp_path: Path) -> None:
    """Sizes, boxes and brightness of the same image, drawn many times by either side."""
    import numpy as np
    from detectron2.config import instantiate

    config = config_for(make_coco(1), augment=Augment(smallest=0.1, largest=2.0))
    edit(Path(config.data) / "annotations" / "instances_train2017.json", polygons_alone)
    _, file = written(config, tmp_path)
    lazy, _ = instantiated(file)
    dataset, mapper = instantiate(lazy.dataloader.train.dataset), instantiate(lazy.dataloader.train.mapper)
    images = TrainingImages(splits_of(config)[0], config.augment, config.image, masks=True)
    random.seed(0)
    np.random.seed(0)
    ours, theirs = [], []
    for _ in range(DRAWS):
        image, target = images[0]
        ours.append(facts_of(image, target["boxes"]))
        record = mapper(dataset[0])
        theirs.append(facts_of(record["image"], record["instances"].gt_boxes.tensor))
    for one, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert furthest(np.array(one), np.array(other)) < 1.95 * (2 / DRAWS) ** 0.5  # one in a thousand is further


def polygons_alone(content: dict[str, Any]) -> None:
    """Regions go, whose boxes detectron2 rounds to pixels with all others'."""
    content["annotations"] = [one for one in content["annotations"] if isinstance(one["segmentation"], list)]


def facts_of(image: torch.Tensor, boxes: torch.Tensor) -> list[float]:
    """Height, width, objects, mean corner and size of their boxes, brightness."""
    corners = boxes.double().mean(0).tolist() if len(boxes) else [-1.0] * 4
    return [*image.shape[1:], len(boxes), *corners, image.double().mean().item()]


def furthest(one: Any, other: Any) -> float:
    """Kolmogorov and Smirnov's distance of two samples' distributions."""
    import numpy as np

    values = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


@with_detectron2
@pytest.mark.parametrize("decay_norms", [False, True])
def test_optimiser_groups_and_rates(make_coco: Any, tmp_path: Path, decay_norms: bool) -> None:
    from detectron2.config import instantiate

    config = config_for(make_coco(2), decay_norms=decay_norms, steps=40, warmup=5.5, milestones=(20, 33))
    ours, file = written(config, tmp_path)
    lazy, theirs = instantiated(file)
    lazy.optimizer.params.model = theirs
    wanted, names = {}, {weight: name for name, weight in theirs.named_parameters()}
    for group in instantiate(lazy.optimizer).param_groups:
        for weight in group["params"]:
            wanted[names[weight]] = (pytest.approx(group["lr"]), group["weight_decay"])
    given, names = {}, {weight: name for name, weight in ours.named_parameters()}
    for group in groups(ours, config, depth=4):
        for weight in group["params"]:
            given[names[weight]] = (config.lr * group.get("lr_scale", 1.0), group["weight_decay"])
    assert given == wanted
    schedule = instantiate(lazy.lr_multiplier)
    rates = [config.lr * schedule(step / config.steps) for step in range(config.steps)]
    assert [learning_rate(config, step) for step in range(config.steps)] == pytest.approx(rates, rel=1e-9)


@with_detectron2
def test_a_run_within_detectron2(make_coco: Any, tmp_path: Path) -> None:
    heads = replace(HEADS, score_threshold=0.0)
    config = config_for(make_coco(3), engine="detectron2", heads=heads, shown=2, steps=12, milestones=(9,), lr=1e-2)
    directory = RunDir.create(tmp_path / "run", to_text(config), {"recipe": "det/t", "stage": "det", "identity": "0"})
    outcome = run(config, directory)
    results = json.loads((directory.path / "predictions.json").read_bytes())
    assert {result["category_id"] for result in results} <= {4, 9}
    annotations = splits_of(config)[1].files.annotations
    assert outcome.metrics == pytest.approx(CocoMetrics(annotations)(results), rel=1e-12)  # its evaluator's, and ours
    assert outcome.metrics["box_ap"] > 0
    assert outcome.facts["engine"] == "detectron2"
    assert {file.stem for file in directory.plots.glob("*.png")} >= {"detections", "precision_recall", "errors"}
    there = torch.load(directory.path / "detectron2" / "model_final.pth", weights_only=True)["model"]
    opened = open_detector(directory.detector)
    assert opened.about.categories == ("bar", "disc")
    assert all(torch.equal(value, there[key]) for key, value in opened.model.state_dict().items())
    start = torch.load(directory.path / "detectron2" / "config.pth", weights_only=True)["model"]
    assert any(not torch.equal(value, start[key]) for key, value in there.items())
    again = run(config, directory)  # from its last checkpoint: nothing is left to train
    assert again.metrics == outcome.metrics


@with_detectron2
@pytest.mark.skipif(bool(installed.missing("lvis")), reason="detectron2 measures LVIS with the package lvis")
def test_lvis_within_detectron2(edit: Any, tmp_path: Path) -> None:
    data = write_lvis(tmp_path / "lvis")
    heads = replace(HEADS, score_threshold=0.0, class_loss="federated", federated=3, detections=300)
    config = config_for(data, heads, engine="detectron2", benchmark="lvis", repeat=0.5)
    directory = RunDir.create(tmp_path / "run", to_text(config), {"recipe": "det/t", "stage": "det", "identity": "0"})
    with pytest.raises(ValueError, match="category ids to be 1 to 6"):
        run(config, directory)
    for split in ("train", "val"):
        edit(data / "annotations" / f"lvis_v1_{split}.json", without_gaps)
    outcome = run(config, directory)
    results = json.loads((directory.path / "predictions.json").read_bytes())
    ours = CocoMetrics(data / "annotations" / "lvis_v1_val.json", benchmark="lvis")(results)
    assert outcome.metrics == pytest.approx(ours, abs=1e-9)


def without_gaps(content: dict[str, Any]) -> None:
    """LVIS's categories 3, 5, 7 ... become 1, 2, 3 ..."""
    for category in content["categories"]:
        category["id"] //= 2
    for annotation in content["annotations"]:
        annotation["category_id"] //= 2
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [identity // 2 for identity in image[key]]


@with_detectron2
def test_its_own_training_script_takes_the_config(make_coco: Any, tmp_path: Path) -> None:
    """`tools/lazyconfig_train_net.py`, which lies in detectron2's checkout and not in its package."""
    import detectron2
    from detectron2.engine import default_argument_parser

    script = Path(detectron2.__file__).resolve().parents[1] / "tools" / "lazyconfig_train_net.py"
    if not script.is_file():
        pytest.skip(f"detectron2 is installed without its checkout: there is no {script}")
    config = config_for(make_coco(3))
    _, file = written(config, tmp_path)
    run_path(str(script))["main"](default_argument_parser().parse_args(["--config-file", str(file)]))
    start, end = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("lazy.pth", "model_final.pth"))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[key], end[key]) for key in start)
    told = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert told[-1]["iteration"] == config.steps
    assert "bbox/AP" in told[-1]


@with_detectron2
def test_what_is_trained_here_is_loaded_there(make_coco: Any, tmp_path: Path) -> None:
    config = config_for(make_coco(3), CASES["cascade"])
    directory = RunDir.create(tmp_path / "run", to_text(config), {"recipe": "det/t", "stage": "det", "identity": "0"})
    run(config, directory)
    _, file = written(config, tmp_path)
    _, theirs = instantiated(file)
    state = torch.load(directory.detector, weights_only=True)["model"]
    theirs.load_state_dict(state, strict=True)
    assert config_of(state, "f").heads.cascade

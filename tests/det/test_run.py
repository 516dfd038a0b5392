"""A whole detection run, small: from a COCO directory and an encoder to metrics, predictions and a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.det.config import TTA, Augment, Heads, MaskRCNNConfig, Proposals, ViTDetConfig
from mimbench.det.data.check import check_coco
from mimbench.det.data.coco import read_split
from mimbench.det.data.splits import shared_images
from mimbench.det.evaluation.draw import detected, draw_objects
from mimbench.det.evaluation.predict import Seen, from_run
from mimbench.det.model.build import build_detector
from mimbench.det.recipes.mask_rcnn import mask_rcnn_handwritten
from mimbench.det.run import run
from mimbench.engine.data.datasets import coco_files
from mimbench.engine.run.config import Compute, to_text
from mimbench.engine.run.rundir import RunDir

ENCODER = ViT(16, 2, 2, patch=4, image=16)


def _config(data: Path, **changes) -> MaskRCNNConfig:
    config = MaskRCNNConfig(
        data=str(data),
        encoder=ENCODER,
        vitdet=ViTDetConfig(window=4, drop_path=0.1, channels=16, scales=(1.0, 0.5)),
        proposals=Proposals(
            convs=1, anchor_sizes=(16.0, 24.0, 32.0), samples=32, before_nms=(50, 50), after_nms=(40, 20)
        ),
        heads=Heads(samples=16, convs=1, channels=16, fc=32, score_threshold=0.01, detections=10),
        augment=Augment(smallest=0.8, largest=1.25),
        image=64,
        steps=3,
        batch=2,
        lr=1e-3,
        warmup=1.0,
        milestones=(2,),
        shown=2,
        eval_batch=2,
        compute=Compute(precision="fp32", workers=0, threads=1, device="cpu"),
    )
    return replace(config, **changes)


def _run_dir(path: Path, config: MaskRCNNConfig) -> RunDir:
    return RunDir.create(path, to_text(config), {"recipe": "det/test", "stage": "det", "identity": "0"})


def test_from_data_to_numbers(make_coco, tmp_path) -> None:
    config = _config(make_coco(4), evaluate_every=2)
    directory = _run_dir(tmp_path / "run", config)
    outcome = run(config, directory)
    assert not directory.plots.exists() or not any(directory.plots.iterdir())  # the result comes first
    outcome.draw()
    assert {"box_ap", "mask_ap", "box_ap50", "mask_ap75"} <= set(outcome.metrics)
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert outcome.facts["rel_pos"] is True
    assert outcome.facts["epochs"] == pytest.approx(1.5)
    assert outcome.family is None
    results = json.loads((directory.path / "predictions.json").read_text())
    assert {result["category_id"] for result in results} <= {4, 9}
    assert (directory.plots / "detections.png").stat().st_size > 10_000
    assert {file.stem for file in directory.plots.iterdir()} >= {"detections", "precision_recall", "errors", "worst"}
    categories = json.loads((directory.path / "categories.json").read_text())
    assert [(one["id"], one["name"]) for one in categories] == [(4, "bar"), (9, "disc")]
    assert sum(one["box_ap"] for one in categories) / 2 == pytest.approx(outcome.metrics["box_ap"])
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "box_ap" in line] == [2, 3]
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} <= set(lines[-2]) | set(lines[-1])


def test_data_without_masks_trains_boxes(make_coco, edit, tmp_path) -> None:
    root = make_coco(4)

    def strip(content) -> None:
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    for split in ("train", "val"):
        edit(coco_files(root, split).annotations, strip)
    with pytest.raises(ValueError, match=r"heads\.masks=false"):
        run(_config(root), _run_dir(tmp_path / "masks", _config(root)))
    config = _config(root, heads=replace(_config(root).heads, masks=False))
    directory = _run_dir(tmp_path / "boxes", config)
    outcome = run(config, directory)
    assert "box_ap" in outcome.metrics
    assert "mask_ap" not in outcome.metrics
    results = json.loads((directory.path / "predictions.json").read_text())
    assert results
    assert not any("segmentation" in result for result in results)
    assert "loss_mask" not in directory.metrics.read_text()
    report = check_coco(root)
    assert not report.failed
    assert any("no masks" in finding.what for finding in report.findings)


def test_a_run_finds_objects_in_any_image(make_coco, tmp_path) -> None:
    root = make_coco(4)
    config = _config(root, heads=replace(_config(root).heads, score_threshold=0.0))
    directory = _run_dir(tmp_path / "run", config)
    run(config, directory)
    detector = from_run(directory)
    assert detector.categories == ("bar", "disc")
    file = root / "val2017" / "2.png"
    [seen] = detector.predict([file], torch.device("cpu"))
    assert isinstance(seen, Seen)
    assert seen.image.shape == (3, 48, 64)
    written = [one for one in json.loads((directory.path / "predictions.json").read_text()) if one["image_id"] == 2]
    assert len(seen.results) == len(written) > 0
    for one, other in zip(seen.results, written, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        next(detector.predict([file, tmp_path / "nowhere.png"], torch.device("cpu")))
    half = replace(detector, config=replace(detector.config, evaluate_precision="bf16"))
    [rounded] = half.predict([file], torch.device("cpu"))
    assert isinstance(rounded, Seen)
    scores = [[one["score"] for one in shown.results] for shown in (rounded, seen)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    directory.detector.unlink()  # as while it is trained
    [again] = from_run(directory).predict([file], torch.device("cpu"))
    assert isinstance(again, Seen)
    assert again.results == seen.results
    image = seen.image.permute(1, 2, 0).numpy()
    draw_objects(image, detected(seen.results, detector.category_ids, detector.categories, 0.0), tmp_path / "seen.png")
    assert Image.open(tmp_path / "seen.png").size == (64, 48)


def test_a_detector_is_evaluated_as_it_is(make_coco, tmp_path) -> None:
    encoder, file = VisionTransformer(ENCODER), tmp_path / "gray.safetensors"
    half = (0.5, 0.5, 0.5)
    save_encoder(file, encoder.state_dict(), EncoderInfo("mimbench", ENCODER, False, mean=half, std=half))
    config = _config(make_coco(3), checkpoint=str(file))
    trained = _run_dir(tmp_path / "trained", config)
    outcome = run(config, trained)
    alone = replace(config, checkpoint=str(trained.detector), steps=0, test_time_augmentation=TTA(sizes=(64,)))
    again = run(alone, _run_dir(tmp_path / "alone", alone))
    assert again.metrics == pytest.approx(outcome.metrics)
    assert (again.facts["epochs"], again.images_per_second) == (0, None)
    rounded = replace(alone, evaluate_precision="bf16")
    half_outcome = run(rounded, _run_dir(tmp_path / "rounded", rounded))
    assert half_outcome.metrics.keys() == outcome.metrics.keys()
    assert half_outcome.facts["evaluate_precision"] == "bf16"
    for model in (from_run(trained), from_run(RunDir(tmp_path / "alone"))):
        assert torch.equal(model.model.pixel_mean, torch.tensor([0.5] * 3).view(3, 1, 1) * 255)
    other = replace(alone, checkpoint=str(file))
    with pytest.raises(ValueError, match=r"gray\.safetensors is not one"):
        run(other, _run_dir(tmp_path / "other", other))
    with pytest.raises(ValueError, match="whole detector"):
        replace(config, steps=0, checkpoint=None)


def test_a_whole_detector_is_what_its_file_says_not_the_recipe(make_coco, edit, tmp_path, caplog) -> None:
    """Other anchors, thresholds and sizes in the recipe change nothing; what is asked for is done and named."""
    root = make_coco(3)
    config = _config(root, heads=replace(_config(root).heads, score_threshold=0.0))
    trained = _run_dir(tmp_path / "trained", config)
    expected = run(config, trained).metrics
    base = mask_rcnn_handwritten()
    recipe = replace(base, data=str(root), single_class=False, checkpoint=str(trained.detector), steps=0, shown=0)
    recipe = replace(recipe, compute=config.compute, eval_batch=2)
    about = {"recipe": "det/mask_rcnn_handwritten", "stage": "det", "identity": "0"}
    caplog.set_level("INFO")
    outcome = run(recipe, RunDir.create(tmp_path / "recipe", to_text(recipe), about))
    assert outcome.metrics == pytest.approx(expected)
    assert outcome.facts["settings"] == "the checkpoint's"
    assert "departures" not in outcome.facts
    assert f"proposals.anchor_sizes=(16.0, 24.0, 32.0), not the recipe's {base.proposals.anchor_sizes}" in caplog.text
    assert f"heads.score_threshold=0.0, not the recipe's {base.heads.score_threshold}" in caplog.text
    asked = replace(recipe, heads=replace(recipe.heads, detections=1))
    outcome = run(asked, RunDir.create(tmp_path / "asked", to_text(asked), about))
    (departure,) = outcome.facts["departures"]
    assert departure == "heads.detections=1, which was asked for; the detector was stored with 10"
    assert from_run(RunDir(tmp_path / "asked")).config.proposals == config.proposals
    for split in ("train", "val"):
        edit(coco_files(root, split).annotations, lambda content: content["categories"][0].update(name="sphere"))
    with pytest.raises(ValueError, match=r"instances_val2017\.json: category 9 is 'sphere', but 'disc' in .*\.pth"):
        run(recipe, RunDir.create(tmp_path / "names", to_text(recipe), about))


def test_an_encoder_is_loaded_and_named(make_coco, tmp_path) -> None:
    encoder, file = VisionTransformer(ENCODER), tmp_path / "encoder.safetensors"
    info = EncoderInfo(family="mimbench", vit=ENCODER, final_norm=False, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    save_encoder(file, encoder.state_dict(), info)
    config = _config(make_coco(2), checkpoint=str(file), encoder=ViT(32, 4, 2, patch=16, image=32), steps=1)
    model, found = build_detector(config, classes=2)
    assert found == info
    net = model.backbone.net
    assert torch.equal(net.blocks[1].mlp.fc1.weight, encoder.blocks[1].mlp.fc1.weight)
    assert torch.equal(net.pos_embed, encoder.pos_embed)
    assert model.pixel_mean.flatten().tolist() == [127.5] * 3
    assert run(config, _run_dir(tmp_path / "run", config)).family == "mimbench"


def test_an_encoder_of_another_patch_is_resampled(tmp_path) -> None:
    shape = ViT(16, 2, 2, patch=14, image=112)
    encoder, file = VisionTransformer(shape), tmp_path / "encoder.safetensors"
    save_encoder(file, encoder.state_dict(), EncoderInfo(family="mimbench", vit=shape, final_norm=False))
    config = _config(Path(), checkpoint=str(file))
    model, _ = build_detector(replace(config, vitdet=replace(config.vitdet, patch=16), image=128), classes=2)
    assert model.backbone.net.patch_embed.proj.weight.shape == (16, 3, 16, 16)
    assert model.backbone.net.pos_embed.shape == (1, 50, 16)
    with pytest.raises(ValueError, match="multiple of 28"):
        build_detector(config, classes=2)


def test_splits_must_agree_on_categories(make_coco, edit, tmp_path) -> None:
    root = make_coco(2)
    edit(coco_files(root, "val").annotations, lambda content: content["categories"].append({"id": 11, "name": "x"}))
    config = _config(root)
    with pytest.raises(ValueError, match=r"ids \[11\]"):
        run(config, _run_dir(tmp_path / "run", config))


def test_a_batch_beyond_the_data_is_refused(make_coco, tmp_path) -> None:
    config = _config(make_coco(2), batch=8)
    with pytest.raises(ValueError, match="lower the batch"):
        run(config, _run_dir(tmp_path / "run", config))


def test_validation_images_that_are_training_images_are_said(make_coco, tmp_path, caplog) -> None:
    root = make_coco(4)
    train, val = (read_split(root, split) for split in ("train", "val"))
    assert shared_images(train, val) == "val split"
    (root / "val2017" / "2.png").write_bytes((root / "train2017" / "2.png").read_bytes())
    assert shared_images(train, val) == "1 of 4 are training images"
    copy = root / "annotations" / "instances_val2017.json"
    copy.write_bytes((root / "annotations" / "instances_train2017.json").read_bytes())
    for image in (root / "train2017").iterdir():
        (root / "val2017" / image.name).unlink()
        (root / "val2017" / image.name).symlink_to(image)
    config = _config(root, checkpoint=None, steps=1, shown=0)
    outcome = run(config, _run_dir(tmp_path / "run", config))
    assert outcome.facts["validation"] == "the training images: the val split is a copy"
    assert "the validation images are training images" in caplog.text


def test_pictures_come_after_the_result_and_never_fail_it(make_coco, tmp_path, caplog) -> None:
    config = _config(make_coco(3), steps=1)
    directory = _run_dir(tmp_path / "run", config)
    outcome = run(config, directory)
    assert not list(directory.plots.glob("*"))
    assert (directory.path / "predictions.json").is_file()
    for image in (Path(config.data) / "val2017").iterdir():
        image.unlink()
    outcome.draw()
    assert "drawing its pictures failed" in caplog.text
    assert (directory.plots / "precision_recall.png").is_file()  # needs no image


@pytest.mark.slow
def test_it_learns(make_coco, tmp_path) -> None:
    """Four images by heart: discs and bars found in their place, with their masks."""
    root = make_coco(4)
    for split in ("annotations/instances_{}2017.json", "{}2017"):
        (root / split.format("val")).rename(root / "unseen").rename(root / split.format("unused"))
        (root / split.format("val")).symlink_to(root / split.format("train"))
    config = _config(root, steps=250, batch=4, lr=3e-3, warmup=20.0, milestones=(200,), shown=0, grad_clip=1.0)
    config = replace(config, augment=Augment(flip=0.5, smallest=0.9, largest=1.1))
    outcome = run(config, _run_dir(tmp_path / "run", config))
    assert outcome.metrics["box_ap"] > 60
    assert outcome.metrics["mask_ap"] > 60

"""Classifiers from files: measured again, on other sets, and refused where classes are not the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from mimbench.backbones.checkpoint import load_encoder
from mimbench.backbones.classifier import Classifier, build_classifier, load_encoder_into
from mimbench.backbones.classifier_file import ClassifierInfo, load_classifier, save_classifier
from mimbench.backbones.config import Traits, ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.classify import crop_share, require_same_classes
from mimbench.cls.config import Classify, Finetune
from mimbench.cls.data.crops import CentreCrops
from mimbench.cls.data.imagenet import imagenet_a_wnids, imagenet_r_wnids
from mimbench.cls.predictions import Predictions
from mimbench.cls.run import run
from mimbench.engine.data.images import ImageFolder, normalise
from mimbench.engine.run.config import Compute
from mimbench.jobs.cli.main import app
from mimbench.jobs.runs.predictions import read
from tests.cls.conftest import TINY
from tests.engine.layouts.made import jpeg, tar_of

SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu")
COLOURS = ("blue", "green", "red")


def _classifier(vit: ViT, outputs: int) -> Classifier:
    model = build_classifier(vit, outputs, 0.0, "avg", vit.image)
    load_encoder_into(model, VisionTransformer(vit).state_dict())
    return model


def _saved(path: Path, classes: tuple[str, ...] = COLOURS, **about: Any) -> Path:
    torch.manual_seed(1)
    model = _classifier(TINY, len(classes))
    torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    save_classifier(path, model, ClassifierInfo("mae", TINY, "avg", len(classes), classes, **about))
    return path


def test_a_classifier_is_measured_as_image_by_image(
    folder: Path, tmp_path: Path, new_run: Callable[[Any], Any]
) -> None:
    file = _saved(tmp_path / "classifier.safetensors", eval_crop=1.0)
    config = Classify(
        data=str(folder), checkpoint=str(file), compute=SMALL, eval_batch=4, save_predictions=True, save_logits=True
    )
    directory = new_run(config)
    outcome = run(config, directory)
    model, _ = load_classifier(file)
    crops = CentreCrops(ImageFolder(folder, "val"), 16, 1.0)
    with torch.no_grad():
        logits = torch.cat([model(normalise(crops[place][0][None])) for place in range(21)])
    labels = crops.folder.labels
    assert outcome.metrics["val_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert outcome.metrics["val_top5"] == 100
    assert (outcome.family, outcome.facts["eval_resize"]) == ("mae", 16)
    kept = load_file(directory.predictions)
    torch.testing.assert_close(kept["logits"], logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(kept["label"], labels)
    assert torch.equal(kept["top5"].long(), logits.topk(3).indices)
    torch.testing.assert_close(kept["score"], logits.softmax(1).topk(3).values, rtol=1e-4, atol=1e-5)


def test_logits_are_kept_on_request_only(folder: Path, tmp_path: Path) -> None:
    images = ImageFolder(folder, "val")
    kept = Predictions()
    kept.add(torch.eye(21, 3), images.labels)
    kept.write(tmp_path / "p.safetensors", images, "colours")
    assert load_file(tmp_path / "p.safetensors").keys() == {"label", "top5", "score"}


def test_first_guesses_are_those_that_are_counted_however_sure_they_are(folder: Path, tmp_path: Path) -> None:
    images = ImageFolder(folder, "val")
    # in float32 all scores but one are 0
    logits = torch.tensor([[5.0, 400.0, 60.0, 30.0, 20.0, 50.0, 40.0]]).repeat(21, 1)
    kept = Predictions()
    kept.add(logits, images.labels)
    kept.write(tmp_path / "p.safetensors", images, "colours")
    saved = load_file(tmp_path / "p.safetensors")
    assert saved["top5"][0].tolist() == [1, 2, 5, 6, 3]
    assert saved["score"][0].tolist() == [1, 0, 0, 0, 0]


def test_predictions_of_shards_in_two_directories(tmp_path: Path) -> None:
    for place, label in (("one", 0), ("two", 1)):
        (tmp_path / place).mkdir()
        for split in ("train", "val"):
            files = [(f"{place}{split}.jpg", jpeg(label)), (f"{place}{split}.cls", str(label).encode())]
            tar_of(files, tmp_path / place / f"{split}.tar")
    images = ImageFolder("::".join(f"{tmp_path}/{place}/{{train,val}}.tar" for place in ("one", "two")), "val")
    kept = Predictions()
    kept.add(torch.eye(2), images.labels)
    kept.write(tmp_path / "p.safetensors", images, "shards")
    names = read(tmp_path / "p.safetensors").names
    assert names == ["val.tar/oneval.jpg", f"{tmp_path}/two/val.tar/twoval.jpg"]


def test_a_fine_tunings_directory_stands_for_its_classifier(folder: Path) -> None:
    made = _mimbench(
        "run", "cls/finetune_handwritten", f"data={folder}", "image=16", "encoder.width=16", "encoder.depth=2",
        "encoder.heads=2", "encoder.image=16", "batch=12", "compute.threads=1", "save_predictions=true",
    )  # fmt: skip
    again = _mimbench(
        "run", "cls/classify", f"checkpoint={made['run']}", f"data={folder}", "save_predictions=true",
        "compute.precision=fp32", "compute.workers=0",
    )  # fmt: skip
    assert again["metrics"]["val_top1"] == made["metrics"]["finetune_top1"]
    assert again["facts"]["eval_resize"] == made["facts"]["eval_resize"] == 16
    assert again["checkpoint"]["path"] == f"{made['run']}/classifier.safetensors"
    assert _mimbench("compare-predictions", made["run"], again["run"])["changed"] == []


def _mimbench(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.fixture
def renditions(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """Four images of two classes of ImageNet-R; a classifier's classes: those, others of it, and one that is not."""
    inside = sorted(imagenet_r_wnids())[:4]
    outside = sorted(set(imagenet_a_wnids()) - set(imagenet_r_wnids()))[:1]
    generator = np.random.default_rng(1)
    for wnid in inside[1:3]:
        (tmp_path / "imagenet-r" / wnid).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "imagenet-r" / wnid / f"{number}.png")
    return tmp_path / "imagenet-r", tuple(sorted([*inside, *outside]))


def test_a_robustness_set_lets_its_own_classes_compete_alone(
    renditions: tuple[Path, tuple[str, ...]], tmp_path: Path, new_run: Callable[[Any], Any]
) -> None:
    root, classes = renditions
    file = _saved(tmp_path / "classifier.safetensors", classes)
    config = Classify(data=str(root), checkpoint=str(file), test="imagenet-r", compute=SMALL, eval_batch=3)
    outcome = run(config, new_run(config))
    model, _ = load_classifier(file)
    folder = ImageFolder(root, "train")
    crops, right = CentreCrops(folder, 16), 0
    allowed = torch.tensor([name in imagenet_r_wnids() for name in classes])
    for place in range(4):
        with torch.no_grad():
            logits = model(normalise(crops[place][0][None]))[0].masked_fill(~allowed, -torch.inf)
        right += classes[logits.argmax()] == folder.classes[crops[place][1]]
    assert outcome.metrics == {"imagenet_r_top1": 25.0 * right}
    exact = replace(config, jpeg_decoder="pil")
    assert run(exact, new_run(exact)).facts["decoder"] == "pil"


def test_a_fine_tuned_classifier_is_an_encoder_too(folder: Path, tmp_path: Path) -> None:
    from mimbench.backbones.content import content_hash

    wide = ViT(width=96, depth=2, heads=4, patch=8, image=16)  # no shape tells the heads
    model = _classifier(wide, 3)
    file = tmp_path / "classifier.safetensors"
    save_classifier(file, model, ClassifierInfo("mae", wide, "avg", 3, COLOURS))
    state, info = load_encoder(file)
    assert (info.family, info.vit, info.final_norm, info.positions) == ("finetuned", wide, False, "learned")
    assert torch.equal(state["blocks.1.mlp.fc2.weight"], model.state_dict()["blocks.1.mlp.fc2.weight"])
    encoder, classifier = content_hash(file), content_hash(file, role="classifier")
    torch.nn.init.ones_(model.head.bias)  # type: ignore[arg-type]
    save_classifier(file, model, ClassifierInfo("mae", wide, "avg", 3, COLOURS))
    assert content_hash(file) == encoder != content_hash(file, role="classifier") != classifier


@pytest.mark.parametrize(
    "traits",
    [Traits(positions="relative", layer_scale=True), Traits(layer_scale=True, registers=2), Traits(positions="rope")],
    ids=["beit", "dinov2", "dinov3"],
)
def test_a_classifier_with_traits_comes_back_the_same(traits: Traits, tmp_path: Path) -> None:
    vit = ViT(width=32, depth=2, heads=2, patch=8, image=16)
    model = build_classifier(vit, 4, 0.0, "cls", 16, traits).eval()
    torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    save_classifier(tmp_path / "c.safetensors", model, ClassifierInfo("dinov2", vit, "cls", 4, traits=traits))
    loaded, info = load_classifier(tmp_path / "c.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))
    assert info.traits == traits
    state, encoder = load_encoder(tmp_path / "c.safetensors")
    assert (encoder.vit, encoder.traits, encoder.final_norm) == (vit, traits, True)
    assert torch.equal(state["norm.weight"], model.norm.weight)  # type: ignore[arg-type]


def test_another_image_size_resizes_the_positions_and_leaves_the_papers_crop(folder: Path, tmp_path: Path) -> None:
    file = _saved(tmp_path / "classifier.safetensors", eval_crop=1.0)
    model, info = load_classifier(file, 32)
    assert model.pos_embed.shape == (1, 17, 16)
    config = Classify(checkpoint=str(file))
    assert crop_share(config, info) == 1.0
    assert crop_share(replace(config, image=32), info) is None
    assert crop_share(replace(config, eval_crop=0.9), info) == 0.9


@pytest.mark.parametrize(
    ("classes", "complaint"),
    [
        (("blue", "green"), "the classifier has 2 classes, but .* has 3"),
        (("red", "green", "blue"), r"differ from those of .* at 2 places \(0: red in .*, blue in the data, 2: blue in"),
    ],
)
def test_classes_that_are_not_the_datas_are_refused(
    folder: Path, tmp_path: Path, new_run: Callable[[Any], Any], classes: tuple[str, ...], complaint: str
) -> None:
    config = Classify(data=str(folder), checkpoint=str(_saved(tmp_path / "c.safetensors", classes)), compute=SMALL)
    with pytest.raises(ValueError, match=complaint):
        run(config, new_run(config))


def test_a_file_that_does_not_name_its_classes_is_judged_by_their_number() -> None:
    require_same_classes(ClassifierInfo("mae", TINY, "avg", 3), COLOURS, "colours")


def test_what_is_no_classifier_is_refused(folder: Path, checkpoint: Path, new_run: Callable[[Any], Any]) -> None:
    config = Classify(data=str(folder), checkpoint=str(checkpoint), compute=SMALL)
    with pytest.raises(ValueError, match=r"head.bias.*fine-tune it") as error:
        run(config, new_run(config))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="checkpoint=none: "):
        run(replace(config, checkpoint=None), new_run(config))


def test_a_classifier_of_few_unnamed_classes_cannot_take_robustness_sets(
    tmp_path: Path, new_run: Callable[[Any], Any]
) -> None:
    model = _classifier(TINY, 3)
    save_classifier(tmp_path / "c.safetensors", model, ClassifierInfo("mae", TINY, "avg", 3))
    config = Classify(data=str(tmp_path), checkpoint=str(tmp_path / "c.safetensors"), test="imagenet-a", compute=SMALL)
    with pytest.raises(ValueError, match=r"c\.safetensors has 3 classes .* test=imagenet-a"):
        run(config, new_run(config))


def test_predictions_are_of_a_validation_split() -> None:
    with pytest.raises(ValueError, match="test=imagenet-c"):
        Classify(test="imagenet-c", save_predictions=True)
    assert not Finetune().save_predictions


def test_logits_that_overflow_in_half_precision_are_no_result(
    folder: Path, tmp_path: Path, new_run: Callable[[Any], Any]
) -> None:
    file = _saved(tmp_path / "c.safetensors")
    model, info = load_classifier(file)
    torch.nn.init.constant_(model.head.weight, 6e4)  # type: ignore[arg-type]
    torch.nn.init.constant_(model.fc_norm.bias, 3.0)  # type: ignore[arg-type]
    save_classifier(file, model, info)
    config = Classify(data=str(folder), checkpoint=str(file), compute=replace(SMALL, precision="fp16"))
    with pytest.raises(ValueError, match=r"val_loss is nan: .*precision=fp16.* try compute.precision=bf16"):
        run(config, new_run(config))
    assert run(replace(config, compute=SMALL), new_run(config)).metrics["val_loss"] >= 0


@pytest.mark.parametrize("damage", ["nan", "metadata", "cut"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    file = _saved(tmp_path / "c.safetensors")
    if damage == "nan":
        model, info = load_classifier(file)
        torch.nn.init.constant_(model.head.bias, torch.nan)  # type: ignore[arg-type]
        save_classifier(file, model, info)
    elif damage == "metadata":
        file.write_bytes(file.read_bytes().replace(b'\\"outputs\\"', b'\\"0utputs\\"'))
    else:
        file.write_bytes(file.read_bytes()[:-100])
    complaint = {
        "nan": "head.bias are NaN",
        "metadata": "a different version of mimbench",
        "cut": "c.safetensors",
    }
    with pytest.raises(ValueError, match=complaint[damage]):
        load_classifier(file)

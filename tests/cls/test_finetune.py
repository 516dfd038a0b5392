"""Fine-tuning: groups, schedule, loss, and small runs from beginning to end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.classifier import build_classifier
from mimbench.backbones.classifier_file import load_classifier, read_info
from mimbench.backbones.config import SIZES
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import Finetune
from mimbench.cls.data.crops import open_splits
from mimbench.cls.finetune import Best, groups, prepare, schedule
from mimbench.cls.recipes import published as recipes
from mimbench.cls.run import run
from mimbench.engine.data.images import normalise
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import seed_all
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu", log_every=3)


def _config(folder: Path, **changes: Any) -> Finetune:
    base = Finetune(
        data=str(folder), encoder=TINY, image=16, epochs=3, warmup_epochs=1, batch=12, base_lr=5e-2, layer_decay=0.9,
        drop_path=0.1, compute=SMALL, evaluate_every=None,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("size", "recipe", "count", "layer0", "block0"),
    [  # measured on the official code
        ("S", recipes.finetune_vits, 28, 0.00369721, 0.00568801),
        ("B", recipes.finetune_vitb, 28, 0.00369721, 0.00568801),
        ("L", recipes.finetune_vitl, 52, 0.000752543, 0.00100339),
    ],
)
def test_groups_are_those_of_the_original(
    size: str, recipe: Callable[[], Finetune], count: int, layer0: float, block0: float
) -> None:
    with torch.device("meta"):
        model = build_classifier(SIZES[size], 1000, 0.1, "avg", 224)
    found = groups(model, recipe())
    scales = {group["name"]: group["lr_scale"] for group in found}
    assert len(found) == count
    assert found[0]["name"] == "layer0_no_decay"  # cls_token comes first
    assert scales["layer0_decay"] == scales["layer0_no_decay"] == pytest.approx(layer0, rel=1e-5)
    assert scales["layer1_decay"] == pytest.approx(block0, rel=1e-5)
    depth = SIZES[size].depth
    assert scales[f"layer{depth}_decay"] == recipe().layer_decay  # the last block
    assert scales[f"layer{depth + 1}_decay"] == scales[f"layer{depth + 1}_no_decay"] == 1
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in found}
    assert grouped["layer0_no_decay"] == {"cls_token", "pos_embed", "patch_embed.proj.bias"}
    assert grouped["layer0_decay"] == {"patch_embed.proj.weight"}
    assert grouped[f"layer{depth + 1}_decay"] == {"head.weight"}
    assert grouped[f"layer{depth + 1}_no_decay"] == {"head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert sum(len(members) for members in grouped.values()) == len(names)
    assert {group["weight_decay"] for group in found if group["name"].endswith("no_decay")} == {0.0}
    assert {group["weight_decay"] for group in found if not group["name"].endswith("no_decay")} == {0.05}


def test_the_learning_rate_is_the_published_one() -> None:
    rate = schedule(recipes.finetune_vitb(), steps_per_epoch=1251)  # 1,281,167 images in batches of 1024
    assert rate(0) == 0
    assert rate(1) == pytest.approx(2e-3 / 5 / 1251)
    assert rate(5 * 1251) == pytest.approx(2e-3)
    assert rate(int(52.5 * 1251)) == pytest.approx((2e-3 + 1e-6) / 2, rel=1e-3)
    assert rate(100 * 1251 - 1) == pytest.approx(1e-6, rel=1e-2)


def test_without_mixing_the_loss_is_timms_smoothed_one(folder: Path) -> None:
    model, images, labels = _model(_config(folder, mixup=0, cutmix=0, erasing=0, label_smoothing=0.2))
    expected = LabelSmoothingCrossEntropy(0.2)(model.classifier(normalise(images)), labels)
    torch.testing.assert_close(model((images, labels))["loss"], expected)


def test_with_mixing_the_loss_is_timms_soft_one(folder: Path) -> None:
    model, images, labels = _model(_config(folder, erasing=0))
    seed_all(5)
    mixed, targets = model.augment(images, labels)
    expected = SoftTargetCrossEntropy()(model.classifier(mixed), targets)
    seed_all(5)
    torch.testing.assert_close(model((images, labels))["loss"], expected)


def test_the_classifier_starts_as_published(folder: Path) -> None:
    model, _, _ = _model(_config(folder))
    assert 0 < model.classifier.head.weight.abs().max() < 1e-4  # truncated normal of std 2e-5
    assert model.classifier.pos_embed.requires_grad
    drops = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.classifier.blocks]
    assert drops == pytest.approx([0.0, 0.1])


def test_the_checkpoint_goes_in_whole(folder: Path, checkpoint: Path) -> None:
    training = prepare(_config(folder, checkpoint=str(checkpoint), pool="cls"), CPU).training
    torch.manual_seed(7)  # as the checkpoint was made
    expected = VisionTransformer(TINY, final_norm=True).state_dict()
    found = training.model.classifier.state_dict()
    for name in expected.keys() - {"norm.weight"}:
        assert torch.equal(found[name], expected[name]), name
    assert not torch.equal(found["norm.weight"], expected["norm.weight"])  # the checkpoint's are not ones


def test_other_image_sizes_resize_the_positions(folder: Path, checkpoint: Path) -> None:
    training = prepare(_config(folder, checkpoint=str(checkpoint), image=32), CPU).training
    assert training.model.classifier.pos_embed.shape == (1, 17, 16)
    images = next(training.batches.starting_at(0))[0]
    assert images.shape == (12, 3, 32, 32)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_run_learns_colours_and_counts_every_image(
    folder: Path, checkpoint: Path, new_run: Callable[[Any], Any], pool: Any
) -> None:
    config = _config(
        folder, checkpoint=str(checkpoint), pool=pool, epochs=12, mixup=0, cutmix=0, randaugment=None, erasing=0,
        evaluate_every=6,
    )  # fmt: skip
    directory = new_run(config)
    outcome = run(config, directory)
    assert outcome.metrics["finetune_top1"] > 80
    hits = outcome.metrics["finetune_top1"] * 21 / 100  # 21 images in batches of 12: the rest is not lost or repeated
    assert hits == pytest.approx(round(hits))
    assert outcome.facts["pool"] == pool
    assert outcome.facts["val_images"] == 21
    assert outcome.family == "mae"
    assert outcome.images_per_second is not None
    evaluations = [line for line in directory.metrics.read_text().splitlines() if "finetune_top1" in line]
    assert len(evaluations) == 2


def test_the_measured_accuracy_is_that_of_one_image_at_a_time(folder: Path) -> None:
    training = prepare(_config(folder), CPU).training
    model = training.model.eval()
    torch.nn.init.normal_(model.classifier.head.weight)
    assert training.evaluate is not None
    found = training.evaluate(model)["finetune_top1"]
    val = open_splits(str(folder)).val
    with torch.no_grad():
        right = sum(model.logits(image[None]).argmax().item() == label for image, label in _crops(training, val))
    assert found == 100 * right / 21


def test_the_full_augmentation_and_accumulation_run(folder: Path, new_run: Callable[[Any], Any]) -> None:
    compute = replace(SMALL, accumulate=2, workers=1, precision="bf16")
    config = _config(folder, epochs=1, ema=0.9, grad_clip=1.0, compute=compute)
    outcome = run(config, new_run(config))
    assert 0 <= outcome.metrics["finetune_top1"] <= 100
    assert outcome.facts["weights"] == "random"


def test_a_run_taken_up_again_ends_the_same(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, compute=replace(SMALL, save_every=10, keep=9))
    directory = new_run(config)
    whole = run(config, directory)
    sorted(directory.checkpoints.glob("*.pt"))[-1].unlink()  # as if killed between the last two
    again = run(config, directory)
    assert again.metrics == whole.metrics


def test_the_best_of_an_earlier_attempt_stays_until_it_is_reached_again(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "classifier-best.safetensors"
    prepared = prepare(_config(folder), CPU)
    model, info = prepared.training.model, prepared.info
    Best(file, info)(model, 5, _scores(90.0, loss=float("nan")))  # diverged, or overflowed
    assert not file.exists()
    Best(file, info)(model, 10, _scores(70.0))
    again = Best(file, info)  # as after a restart
    again(model, 20, _scores(65.0))
    assert (read_info(file).step, again.held and again.held.metrics["finetune_top1"]) == (10, 70.0)
    again(model, 30, _scores(70.0))  # of equal ones the last, as in CrossMAE's script
    assert read_info(file).step == 30
    file.write_bytes(file.read_bytes()[:100])
    damaged = Best(file, info)
    assert damaged.held is None
    damaged(model, 40, _scores(60.0))
    assert read_info(file).step == 40


def _scores(top1: float, loss: float = 1.0) -> dict[str, float]:
    return {"finetune_top1": top1, "finetune_loss": loss}


def test_a_run_leaves_its_weights_and_predictions(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, epochs=2, mixup=0, cutmix=0, evaluate_every=1, save_predictions=True)
    directory = new_run(config)
    outcome = run(config, directory)
    assert outcome.metrics["finetune_best_top1"] >= outcome.metrics["finetune_top1"]
    model, info = load_classifier(directory.classifier)
    assert (info.classes, info.recipe, info.step) == (("blue", "green", "red"), "cls/finetune", 12)
    assert (info.vit.image, info.family, info.metrics) == (16, "random", {
        name: value for name, value in outcome.metrics.items() if name != "finetune_best_top1"
    })  # fmt: skip
    kept = load_file(directory.predictions)
    assert 100 * (kept["top5"][:, 0] == kept["label"]).double().mean().item() == outcome.metrics["finetune_top1"]
    assert kept["label"].shape == (21,)
    assert directory.best_classifier.exists()
    assert not model.training


def test_the_exact_mode_says_so_and_runs(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, epochs=1, jpeg_decoder="pil")
    outcome = run(config, new_run(config))
    assert outcome.facts["decoder"] == "pil"


def test_the_same_wherever_it_begins(folder: Path) -> None:
    prepared = prepare(_config(folder, start_lr=1e-4), CPU)
    assert prepared.training.rate(0, 0.5) == 0.5e-4
    simmim = prepare(_config(folder, start_lr=1e-4, min_lr=2e-4, schedule="simmim_cosine"), CPU).training
    assert simmim.rate(0, 0.5) == simmim.rate(1, 0.5) == simmim.rate(0, 1.0) == 1e-4


def test_encoders_without_final_norm_are_said_to_get_a_new_one(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "crossmae.safetensors"
    save_encoder(path, VisionTransformer(TINY).state_dict(), EncoderInfo("crossmae", TINY, final_norm=False))
    facts = prepare(_config(folder, checkpoint=str(path), pool="cls"), CPU).facts
    assert facts["feature"] == "class token after the final norm, which is trained from scratch"
    assert (facts["weights"], facts["final_norm"]) == ("crossmae checkpoint", False)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"data": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"checkpoint": "missing.pth"}, FileNotFoundError, "missing.pth does not exist"),
        ({"image": 20}, ValueError, "use image=16"),
        ({"batch": 100}, ValueError, "72 training samples do not fill"),
    ],
)
def test_bad_input_is_refused(folder: Path, changes: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        prepare(_config(folder, **changes), CPU)


def test_an_empty_class_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "grey").mkdir()
    with pytest.raises(ValueError, match=r"train/grey: holds no images to train on; add some, or remove the class"):
        prepare(_config(tmp_path / "data"), CPU)


def test_an_odd_share_of_the_batch_cannot_be_mixed(folder: Path) -> None:
    four = patch("mimbench.cls.data.crops.rank_and_world", return_value=(0, 4))
    with four, pytest.raises(ValueError, match="3 images per micro-batch"):
        prepare(_config(folder), CPU)
    with patch("mimbench.cls.data.crops.rank_and_world", return_value=(0, 4)):
        assert prepare(_config(folder, mixup=0, cutmix=0), CPU).training.batches.batch == 3


def test_an_overflow_in_half_precision_ends_with_advice(folder: Path, new_run: Callable[[Any], Any]) -> None:
    config = _config(folder, base_lr=1e6, compute=replace(SMALL, precision="fp16"), warmup_epochs=0)
    with pytest.raises(ValueError, match=r"compute.precision=fp32"):
        run(config, new_run(config))


def _model(config: Finetune) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A model whose head is not near zero, and a batch."""
    seed_all(0)
    prepared = prepare(replace(config, drop_path=0.0) if config.mixup == 0 else config, CPU)
    model = prepared.training.model.eval()
    images, labels = next(prepared.training.batches.starting_at(0))
    return model, images, labels


def _crops(training: Any, val: Any) -> Any:
    from mimbench.cls.data.crops import CentreCrops

    crops = CentreCrops(val, 16)
    return (crops[index] for index in range(len(crops)))

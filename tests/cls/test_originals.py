"""Fine-tuning, evaluation crop, heads and accuracy against the authors' code, scikit-learn and torchvision."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from mimbench.backbones.classifier import build_classifier
from mimbench.backbones.classifier_file import load_classifier
from mimbench.backbones.config import SIZES, ViT
from mimbench.cls.accuracy import accuracy
from mimbench.cls.config import Finetune
from mimbench.cls.data.crops import BatchAugmentation, CentreCrops, ProbeCrops, finetune_crops, resized_side
from mimbench.cls.finetune import FinetuneModel, groups, offset, schedule
from mimbench.cls.frozen.linear import Probe
from mimbench.cls.recipes import published as recipes
from mimbench.cls.recipes.amt import finetune_simmim_amt_vitb
from mimbench.engine.data.batches import Batches
from mimbench.engine.data.images import ImageFolder, cut, draw_box
from mimbench.engine.run.config import Compute
from mimbench.engine.run.process import seed_all
from mimbench.engine.training.optim import adamw
from mimbench.engine.training.step import Stepper
from mimbench.engine.training.train import Training
from tests.backbones.golden.sine import filled
from tests.cls.golden import finetune as original

GOLDEN = json.loads(Path(original.__file__).with_suffix(".json").read_text())
CPU = torch.device("cpu")
TINY = ViT(width=48, depth=3, heads=4, patch=8, image=32)
SAVED = ViT(width=128, depth=2, heads=2, patch=8, image=32)


@pytest.mark.parametrize("size", SIZES)
def test_groups_of_every_size(size: str) -> None:
    recipe = getattr(recipes, f"finetune_vit{size.lower()}")()
    assert _groups(recipe, size) == {members: tuple(values) for *values, members in GOLDEN["groups"][size]}


def test_groups_of_simmims_script() -> None:
    found = _groups(finetune_simmim_amt_vitb(), "B")
    assert found == {members: tuple(values) for *values, members in GOLDEN["simmim_groups"]}


def _groups(recipe: Finetune, size: str) -> dict[str, tuple[float, float, int]]:
    """Of each group, by a digest of its names: layer-decay scale, weight decay, number of parameters."""
    with torch.device("meta"):
        model = build_classifier(SIZES[size], 1000, 0.1, recipe.pool, 224)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        original.digest([names[id(p)] for p in group["params"]]): (
            group["lr_scale"], group["weight_decay"], len(group["params"])
        )
        for group in groups(model, recipe)
    }  # fmt: skip


def test_the_rate_of_every_step() -> None:
    config = _config()
    steps = original.STEPS // original.RUN.epochs
    rate = schedule(config, steps)
    found = [[rate(step) * scale for scale in (1.0, 0.65**4)] for step in range(original.STEPS)]
    np.testing.assert_allclose(found, GOLDEN["rates"], rtol=1e-14)
    assert offset(config, steps) is None


@pytest.mark.parametrize(("accumulate", "name"), [(1, "simmim"), (2, "simmim_accumulated")])
def test_the_rate_of_every_step_by_simmims_schedule(accumulate: int, name: str) -> None:
    given = original.SIMMIM
    recipe = finetune_simmim_amt_vitb()
    assert recipe.peak_lr == given["base"]
    config = replace(
        recipe, epochs=given["epochs"], warmup_epochs=float(given["warmup"]), compute=Compute(accumulate=accumulate)
    )
    training = _training(config, int(given["steps"]))
    steps = int(given["epochs"] * given["steps"])
    found = [[training.rate(step, scale) for scale in (1.0, given["decay"] ** 13)] for step in range(steps)]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-12)


def test_mixed_batches_of_three_seeds() -> None:
    config = replace(_config(), erasing=0.0)
    augment = BatchAugmentation(config, 10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU)
    images, labels = (batch[0] for batch in original.fixed_batches())
    for seed, expected in GOLDEN["mixed"].items():
        seed_all(int(seed))
        floats, targets = augment(images, labels)
        np.testing.assert_allclose(targets[:3], expected["targets"], rtol=1e-6)
        np.testing.assert_allclose(floats[:, 1, 16, ::8].flatten(), expected["pixels"], rtol=2e-6, atol=1e-7)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for width, height, _ in original.PHOTOS:
        (root / "val" / f"{width}x{height}").mkdir(parents=True)
        original.photo(width, height).save(root / "val" / f"{width}x{height}" / "photo.png")
    return root


def test_the_evaluation_crop_in_exact_mode_is_the_authors_to_the_bit(photos: Path) -> None:
    folder = ImageFolder(photos, "val", decoder="pil")
    for width, height, side in original.PHOTOS:
        pixels = CentreCrops(folder, side)[folder.classes.index(f"{width}x{height}")][0]
        found = hashlib.sha256(pixels.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
        assert found == GOLDEN["crops"][f"{width}x{height} to {side}"], (width, height, side)


def test_the_training_crop_in_exact_mode_is_the_authors_to_the_bit(photos: Path) -> None:
    folder = ImageFolder(photos, "val", decoder="pil")
    crops = finetune_crops(replace(recipes.finetune_vitb(), image=64), folder)
    for seed, (width, height, _) in enumerate(original.PHOTOS):
        place = folder.classes.index(f"{width}x{height}")
        seed_all(seed)
        found = hashlib.sha256(crops[place][0].permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
        assert found == GOLDEN["train_crops"][f"{width}x{height}"], (width, height)


def test_amts_probe_draws_again_until_a_crop_fits(photos: Path) -> None:
    folder = ImageFolder(photos, "val")
    again, once = (ProbeCrops(folder, 32, smallest=0.08, flip=True, again=again) for again in (True, False))
    place = folder.classes.index("97x341")
    for seed in range(3):
        seed_all(seed)
        box = draw_box(341, 97, (0.08, 1.0), (3 / 4, 4 / 3))
        seed_all(seed)
        crop = again[place][0]
        assert torch.equal(crop, cut(folder[place][0], box, 32))
    assert not torch.equal(once[place][0], crop)


def test_the_evaluation_crop_in_exact_mode_is_torchvisions_of_pil_images(photos: Path) -> None:
    folder = ImageFolder(photos, "val", decoder="pil")
    for place, name in enumerate(folder.classes):
        with Image.open(photos / "val" / name / "photo.png") as image:
            whole = image.convert("RGB")
        for side in (224, 256, 448):
            resize = Resize(resized_side(side, None), interpolation=InterpolationMode.BICUBIC)
            expected = torch.from_numpy(np.array(Compose([resize, CenterCrop(side)])(whole))).permute(2, 0, 1)
            assert torch.equal(CentreCrops(folder, side)[place][0], expected), (name, side)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_logits_with_either_head(pool: Any) -> None:
    model = build_classifier(SAVED, 10, 0.0, pool, 32).double().eval()
    model.load_state_dict(filled({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    images = torch.sin(0.011 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    np.testing.assert_allclose(model(images).detach().flatten(), GOLDEN["logits"][pool], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_a_file_of_the_authors_script_gives_their_logits(pool: Any, tmp_path: Path) -> None:
    model = build_classifier(SAVED, 10, 0.0, pool, 32)  # names and shapes are the authors', and so is the layout below
    weights = filled({name: tuple(value.shape) for name, value in model.state_dict().items()})
    saved = {"model": weights, "optimizer": {}, "epoch": 99, "scaler": {}, "args": Namespace(model="vit_base_patch16")}
    torch.save(saved, tmp_path / "checkpoint-99.pth")
    loaded, info = load_classifier(tmp_path / "checkpoint-99.pth")
    assert (info.pool, info.outputs, info.vit, info.classes) == (pool, 10, SAVED, ())
    images = torch.sin(0.011 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    found = loaded.double()(images).detach().flatten()
    np.testing.assert_allclose(found, GOLDEN["logits"][pool], rtol=1e-9, atol=1e-12)


def test_the_probes_head() -> None:
    head = Probe(6, 4).double()
    weight = 0.3 * torch.sin(torch.arange(24.0, dtype=torch.float64)).view(4, 6)
    head.linear.load_state_dict({"weight": weight, "bias": torch.arange(4.0, dtype=torch.float64)})
    features = torch.cos(torch.arange(60.0, dtype=torch.float64) ** 1.5).view(10, 6)
    with torch.no_grad():
        train = [head.train().logits(part).flatten().tolist() for part in features.split(5)]
        np.testing.assert_allclose(train, GOLDEN["probe"]["train"], rtol=1e-12)
        np.testing.assert_allclose(head.eval().logits(features).flatten(), GOLDEN["probe"]["eval"], rtol=1e-12)


def test_accuracy_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(203, 12)).astype(np.float32), generator.integers(0, 12, 203)
    scores[np.arange(203), labels] += 1
    whole = torch.from_numpy(scores), torch.from_numpy(labels)
    batches = zip(whole[0].split(50), whole[1].split(50), strict=True)
    found = accuracy("test", lambda logits: logits, batches, CPU)
    for count in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=count, labels=np.arange(12))
        assert found[f"test_top{count}"] == pytest.approx(100 * expected, rel=1e-12)


def test_ten_steps_are_those_of_the_authors_loop() -> None:
    training = _training(_config(), original.STEPS // original.RUN.epochs)
    stepper = Stepper(training, CPU)
    stepper.model.train()
    images, labels = original.fixed_batches()
    batches = zip(images, labels, strict=True)
    losses = [scalars["loss"].item() for step in range(original.STEPS) for scalars in stepper.step(step, batches)]
    np.testing.assert_allclose(losses, GOLDEN["trajectory"]["losses"], rtol=1e-4)
    assert isinstance(training.model, FinetuneModel)
    norms = {name: value.norm().item() for name, value in training.model.classifier.state_dict().items()}
    for name, expected in GOLDEN["trajectory"]["norms"].items():
        # a bias of the keys has no gradient, and AdamW makes steps of the rounding that is there instead
        assert norms[name] == pytest.approx(expected, rel=1e-3 if name.endswith("qkv.bias") else 1e-4), name


def _config() -> Finetune:
    """The run of the golden trajectory."""
    run, accumulate = original.RUN, original.RUN.accum_iter
    batch = original.MICRO * accumulate
    return Finetune(
        encoder=TINY, image=32, epochs=run.epochs, warmup_epochs=run.warmup_epochs, batch=batch,
        base_lr=run.lr * 256 / batch, min_lr=run.min_lr, layer_decay=0.65, drop_path=0.2, erasing=0.0,
        seed=original.SEED,
        compute=Compute(precision="fp32", accumulate=accumulate, workers=0, threads=1, device="cpu"),
    )  # fmt: skip


def _training(config: Finetune, steps_per_epoch: int) -> Training:
    classifier = build_classifier(TINY, 10, config.drop_path, "avg", 32)
    classifier.load_state_dict(filled({name: tuple(value.shape) for name, value in classifier.state_dict().items()}))
    augment = BatchAugmentation(config, 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), CPU)
    accumulate = config.compute.accumulate
    return Training(
        model=FinetuneModel(classifier, augment, config.label_smoothing),
        optimizer=adamw(groups(classifier, config), config.peak_lr, config.betas),
        batches=Batches(range(steps_per_epoch * accumulate), 1, config.seed, accumulate=accumulate),
        steps=config.epochs * steps_per_epoch,
        learning_rate=schedule(config, steps_per_epoch),
        offset=offset(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
        grad_clip=config.grad_clip,
    )

"""A MaskAlign run from its config to its files, with an encoder of ours for a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mimbench.backbones.checkpoint import EncoderInfo, load_encoder, save_encoder
from mimbench.backbones.config import ViT
from mimbench.backbones.vit import VisionTransformer
from mimbench.engine.run.config import Compute, to_text, with_overrides
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.state import load_state, newest_valid
from mimbench.pretrain.config import CrossMAEConfig, KeepMasking, MaskAlignConfig, Pretrain, RandomMasking
from mimbench.pretrain.recipes.maskalign import (
    maskalign_handwritten,
    maskalign_vitb,
    maskalign_vitl,
    maskalign_vitl_clipl,
)
from mimbench.pretrain.run import build_step, run

TEACHER = ViT(width=24, depth=3, heads=2, patch=4, image=16)
TINY = Pretrain(
    encoder=ViT(width=16, depth=2, heads=2, patch=4, image=16),
    method=MaskAlignConfig(teacher=None, layers="top2"),
    masking=KeepMasking(),
    epochs=2,
    warmup_epochs=0.5,
    batch=4,
    base_lr=1e-1,
    lr_factor="none",
    compute=Compute(precision="fp32", workers=0, device="cpu", log_every=2, save_every=3),
)


@pytest.fixture
def config(tmp_path: Path) -> Pretrain:
    """The tiny config on 12 training and 6 validation images, with a teacher of another depth and width."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 12), ("val", 6)):
        folder = tmp_path / "images" / split / "cat"
        folder.mkdir(parents=True)
        for index in range(number):
            pixels = torch.randint(0, 256, (20 + index, 24, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    torch.manual_seed(1)
    teacher = VisionTransformer(TEACHER)
    save_encoder(tmp_path / "teacher.safetensors", teacher.state_dict(), EncoderInfo("crossmae", TEACHER, False))
    return replace(TINY, data=str(tmp_path / "images"), checkpoint=str(tmp_path / "teacher.safetensors"))


def directory(path: Path, config: Pretrain) -> RunDir:
    about = {"recipe": "pretrain/tiny", "stage": "pretrain", "identity": "0123456789", "checkpoint": None}
    return RunDir.create(path, to_text(config), about)


def test_a_run_leaves_an_encoder_and_no_teacher(tmp_path: Path, config: Pretrain) -> None:
    where = directory(tmp_path / "run", config)
    outcome = run(config, where)
    state, info = load_encoder(where.encoder)
    assert (info.family, info.vit, info.final_norm) == ("maskalign", config.encoder, False)
    assert len(state) == 4 + 2 * 12
    assert 0 < outcome.metrics["loss"] < 5
    assert outcome.facts["teacher"] == "the checkpoint"
    assert (where.plots / "reconstructions.png").stat().st_size > 1000
    newest = newest_valid(where.checkpoints)
    assert newest is not None
    names = [name for name in load_state(newest)["stepper"]["model"] if name.startswith("method.")]
    kept = {name.split(".")[1] for name in names}
    assert kept == {"cls_token", "pos_embed", "patch_embed", "blocks", "distill_heads", "distill_weights"}
    again = directory(tmp_path / "again", config)
    run(config, again)
    assert again.encoder.read_bytes() == where.encoder.read_bytes()


def test_any_masking_will_do(config: Pretrain) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for masking, shown in ((RandomMasking(mask_ratio=0.7, predict=0.7), 4), (KeepMasking(mask_ratio=0.0), 16)):
        step = build_step(replace(config, masking=masking))
        inputs = step.normalised(images)
        masked, context = step.choose(inputs, torch.rand(2, 16), None, 0.0)
        assert masked.shown.shape == (2, shown)
        assert step.method(inputs, masked, context).isfinite()


def test_settings_that_do_not_go_together_are_said(config: Pretrain) -> None:
    with pytest.raises(ValueError, match=r"method.teacher=none .*checkpoint=FILE"):
        build_step(replace(config, checkpoint=None))
    with pytest.raises(ValueError, match=r"method.kind=crossmae starts from random weights"):
        replace(config, method=CrossMAEConfig(), masking=RandomMasking())
    with pytest.raises(ValueError, match=r"4 x 4 patches .* the student has 8 x 8: use method.teacher_image=32"):
        build_step(replace(config, encoder=replace(config.encoder, image=32)))
    with pytest.raises(ValueError, match="layers=top5 exceeds the teacher's 3 layers"):
        build_step(replace(config, method=MaskAlignConfig(teacher=None)))
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 must lie in \[0, 1\)"):
        KeepMasking(mask_ratio=1.0)


def test_published_settings() -> None:
    config = maskalign_vitb()
    assert config.learning_rate == pytest.approx(6e-4)
    assert (config.epochs, config.warmup_epochs, config.min_lr, config.method) == (200, 20, 1e-5, MaskAlignConfig())
    large, larger = maskalign_vitl().method, maskalign_vitl_clipl().method
    assert isinstance(large, MaskAlignConfig)
    assert isinstance(larger, MaskAlignConfig)
    assert (large.fusion, large.drop_path, larger.teacher_image) == ("sum", 0.2, 196)
    chosen = with_overrides(
        maskalign_handwritten(), ["checkpoint=runs/x", "method.order=adapt_mix", "masking.mask_ratio=0.5"]
    )
    assert (chosen.checkpoint, chosen.method.order, chosen.masking.mask_ratio) == ("runs/x", "adapt_mix", 0.5)  # type: ignore[union-attr]

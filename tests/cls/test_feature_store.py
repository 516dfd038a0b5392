"""Stored features: those of the encoder, made once, never taken for others, whole whatever kills their making."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.backbones.checkpoint import EncoderInfo, save_encoder
from mimbench.backbones.vit import VisionTransformer
from mimbench.cls.config import FastLinear, Knn
from mimbench.cls.data.crops import Splits, open_splits
from mimbench.cls.frozen import feature_store
from mimbench.cls.frozen.encoders import FrozenViT, frozen_vit, sources
from mimbench.cls.frozen.feature_store import FeatureStore, View
from mimbench.cls.frozen.features import Source, features_of
from mimbench.engine.run.config import Compute
from tests.cls.conftest import TINY

CPU = torch.device("cpu")
SMALL = Compute(precision="fp32", workers=0, threads=1, device="cpu")
LAST, CLASS, EARLIER = Source("avg", 2, "tokens"), Source("cls", 2, "tokens"), Source("avg", 1, "pooled")
VIEW = View(16, 1.0)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, the last one smaller, no multiple of what is encoded at a time."""
    monkeypatch.setattr(feature_store, "PART", 16)


@pytest.fixture
def encoder(checkpoint: Path) -> FrozenViT:
    """With the class token."""
    return frozen_vit(Knn(checkpoint=str(checkpoint), image=16, pool="cls", compute=SMALL, eval_batch=10), CPU)


@pytest.fixture
def splits(folder: Path) -> Splits:
    """The colours."""
    return open_splits(str(folder))


@pytest.mark.parametrize("stored", ["fp16", "fp32"])
def test_features_are_those_of_the_encoder_in_the_order_of_the_images(
    tmp_path: Path, encoder: FrozenViT, splits: Splits, stored: str
) -> None:
    store = FeatureStore(tmp_path, encoder, splits, replace(VIEW, stored=stored))
    both = Source("both", 2, "tokens")
    store.make([LAST, EARLIER, both])
    for split, folder in (("train", splits.train), ("val", splits.val)):
        for source in (LAST, CLASS, EARLIER, both):
            expected, labels = features_of(replace(encoder, source=source), folder, 16, 1.0, 0)
            found = store.read(split, source)
            assert torch.equal(store.labels(split), labels)
            assert found.dtype == (torch.float16 if stored == "fp16" else torch.float32)
            torch.testing.assert_close(found.float(), expected, rtol=1e-3 if stored == "fp16" else 1e-6, atol=1e-4)
    assert store.encoded == len(splits.train) + len(splits.val)
    assert not any((store.directory / "parts").iterdir())


def test_what_is_there_is_not_made_again(tmp_path: Path, encoder: FrozenViT, splits: Splits) -> None:
    first = FeatureStore(tmp_path, encoder, splits, VIEW)
    first.make([LAST])
    again = FeatureStore(tmp_path, encoder, splits, VIEW)
    again.make([LAST])
    assert again.encoded == 0
    waits = first.encoding.loading(CPU)
    assert waits["waiting_seconds"] > 0
    assert waits["starting_seconds"] > 0
    assert 0 < waits["waiting"] < 1
    assert again.encoding.loading(CPU) is None
    again.make([LAST, EARLIER])  # what is lacking alone
    assert again.encoded == len(splits.train) + len(splits.val)
    assert len(list(again.directory.glob("*.safetensors"))) == 4


def _changed(encoder: FrozenViT) -> FrozenViT:
    state = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    model = VisionTransformer(TINY, final_norm=True)
    model.load_state_dict(state)
    model.blocks[1].mlp.fc2.bias.data[3] += 1e-3
    return replace(encoder, model=model)


def test_other_features_have_another_place(tmp_path: Path, encoder: FrozenViT, splits: Splits, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.copytree(folder, tmp_path / "changed")
    red, blue = (tmp_path / "changed" / "train" / name / "0.png" for name in ("red", "blue"))
    red.write_bytes(blue.read_bytes())
    assert encoder.info is not None
    base = FeatureStore(tmp_path, encoder, splits, VIEW).key
    assert FeatureStore(tmp_path, encoder, open_splits(str(tmp_path / "elsewhere")), VIEW).key == base
    others = [
        FeatureStore(tmp_path, _changed(encoder), splits, VIEW),
        FeatureStore(tmp_path, replace(encoder, dtype=torch.bfloat16), splits, VIEW),
        FeatureStore(tmp_path, replace(encoder, info=replace(encoder.info, mean=(0.5,) * 3)), splits, VIEW),
        FeatureStore(tmp_path, encoder, splits, replace(VIEW, eval_crop=0.5)),
        FeatureStore(tmp_path, encoder, splits, replace(VIEW, stored="fp32")),
        FeatureStore(tmp_path, encoder, open_splits(str(tmp_path / "changed")), VIEW),
    ]
    assert len({base, *(store.key for store in others)}) == 7


def test_features_of_another_encoder_or_other_images_are_refused(
    tmp_path: Path, checkpoint: Path, encoder: FrozenViT, splits: Splits, folder: Path
) -> None:
    made = FeatureStore(tmp_path, encoder, splits, VIEW)
    made.make([LAST])
    fixed = made.directory
    FeatureStore(tmp_path, encoder, splits, VIEW, fixed=fixed).make([LAST])
    with pytest.raises(ValueError, match=r"train-avg-2-tokens.* of another encoder \(.{10}, but this run has .{10}\)"):
        FeatureStore(tmp_path, _changed(encoder), splits, VIEW, fixed=fixed).make([LAST])
    shutil.copytree(folder, tmp_path / "fewer")
    (tmp_path / "fewer" / "train" / "red" / "0.png").unlink()
    other = open_splits(str(tmp_path / "fewer"))
    with pytest.raises(ValueError, match="holds features of other images"):
        FeatureStore(tmp_path, encoder, other, VIEW, fixed=fixed).make([LAST])
    with pytest.raises(ValueError, match="short=16, but this run has short=32"):
        FeatureStore(tmp_path, encoder, splits, replace(VIEW, eval_crop=0.5), fixed=fixed).make([LAST])
    larger = frozen_vit(Knn(checkpoint=str(checkpoint), image=32, pool="cls", compute=SMALL), CPU)
    with pytest.raises(ValueError, match="image=16, but this run has image=32"):
        FeatureStore(tmp_path, larger, splits, View(32, 1.0), fixed=fixed).make([LAST])
    with pytest.raises(FileNotFoundError, match=r"train-cls-2-tokens.* holds train-avg-2-tokens, val-avg-2-tokens"):
        FeatureStore(tmp_path, encoder, splits, VIEW, fixed=fixed).make([CLASS])


@pytest.mark.parametrize("damage", ["short", "text", "renamed"])
def test_a_damaged_file_is_refused(tmp_path: Path, encoder: FrozenViT, splits: Splits, damage: str) -> None:
    store = FeatureStore(tmp_path, encoder, splits, VIEW)
    store.make([LAST, CLASS])
    file = store.path("train", LAST)
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "text":
        file.write_text("features")
    else:
        file.write_bytes(store.path("train", CLASS).read_bytes())
    with pytest.raises(ValueError, match=r"train-avg-2-tokens.*: delete it"):
        store.make([LAST])


def _with_features(encoder: FrozenViT, size: float) -> FrozenViT:
    """Its final norm gives features of about `size`."""
    changed = _changed(encoder)
    changed.model.norm.bias.data[5] = size
    return changed


def test_what_does_not_fit_fp16_is_found_and_said(tmp_path: Path, encoder: FrozenViT, splits: Splits) -> None:
    large = _with_features(encoder, 1e5)
    with pytest.raises(ValueError, match=r"avg-2-tokens of .*0\.png reaches 1000\d\d, .* 65504: use stored=fp32"):
        FeatureStore(tmp_path, large, splits, VIEW).make([LAST])
    store = FeatureStore(tmp_path, large, splits, replace(VIEW, stored="fp32"))
    store.make([LAST])
    assert store.read("val", LAST).max() > 9e4
    with pytest.raises(ValueError, match=r"avg-2-tokens of .* is NaN or infinite: try compute.precision=fp32"):
        FeatureStore(tmp_path, _with_features(encoder, float("nan")), splits, VIEW).make([LAST])


@pytest.mark.parametrize("moment", ["part", "assembly"])
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    tmp_path: Path, encoder: FrozenViT, splits: Splits, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FeatureStore(tmp_path / "whole", encoder, splits, VIEW)
    whole.make([LAST, CLASS])
    store = FeatureStore(tmp_path / "killed", encoder, splits, VIEW)
    child = os.fork()
    if not child:
        _make_and_die(store, moment)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = list((store.directory / "parts").glob("train-*.safetensors"))
    assert len(left) == (3 if moment == "part" else 5)
    if moment == "part":
        assert list(store.directory.rglob(".*.tmp"))
    store.make([LAST, CLASS])
    assert store.encoded == len(splits.val) + (72 - 3 * 16 if moment == "part" else 0)
    for split in ("train", "val"):
        for source in (LAST, CLASS):
            assert store.path(split, source).read_bytes() == whole.path(split, source).read_bytes()
    assert not list(store.directory.rglob(".*.tmp"))


def _make_and_die(store: FeatureStore, moment: str) -> None:
    """Killed when the fourth part is written but not yet in place, or when the first file is put together."""
    count, replace_file = 0, Path.replace

    def dying(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == (4 if moment == "part" else 6):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace_file(self, target)

    Path.replace = dying  # type: ignore[method-assign, assignment]
    try:
        store.make([LAST, CLASS])
    finally:
        os._exit(0)


def test_more_blocks_than_there_are_cannot_be_had() -> None:
    config = FastLinear(encoder=TINY, image=16, layers=3, compute=SMALL)
    with pytest.raises(ValueError, match=r"layers=3 exceeds .* 2 blocks; use layers=2"):
        sources(config, frozen_vit(config, CPU))


def test_an_encoder_without_a_final_norm_is_standardised_where_tokens_are_normed(tmp_path: Path) -> None:
    state = VisionTransformer(TINY).state_dict()
    save_encoder(tmp_path / "e.safetensors", state, EncoderInfo("crossmae", TINY, final_norm=False))
    encoder = frozen_vit(Knn(checkpoint=str(tmp_path / "e.safetensors"), image=16, compute=SMALL), CPU)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    [features] = encoder.read(images, [LAST])
    [tokens] = encoder.read(images, [CLASS])
    torch.testing.assert_close(tokens.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert features.shape == (4, 16)

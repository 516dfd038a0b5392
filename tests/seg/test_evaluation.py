"""Metrics, sliding windows and frozen heads against mmsegmentation 1.2.2 and 0.11, DINOv3's head and CAPI's k-NN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.backbones.config import ViT
from mimbench.seg.config import Heads, Inference
from mimbench.seg.data.batches import View
from mimbench.seg.evaluation.inference import logits_of, predict, slide, window_starts
from mimbench.seg.evaluation.metric import Confusion
from mimbench.seg.frozen.neighbours import capi_miou, learnable, nearest_patches, vote
from mimbench.seg.model.enlarge import enlarged
from mimbench.seg.model.linear import LinearHead, centre_padded
from mimbench.seg.model.loss import pixel_loss
from mimbench.seg.model.segmenter import UPerNet
from mimbench.seg.model.vit import SegmentationViT
from tests.seg.rules import feature_maps, fill, golden, image, labels, same, sha

GOLDEN, MODEL = golden("evaluation"), golden("model")
RGB = (0.5, 0.5, 0.5)


def _maps() -> list[tuple[Tensor, Tensor]]:
    draw, made = np.random.RandomState(7), []
    for index in range(6):
        size = (40 + 7 * index, 60 + 5 * index)
        truth = np.minimum(draw.geometric(0.05, size) - 1, 149)
        chance = draw.rand(*size)
        predicted = np.where(chance < 0.6, truth, np.minimum(draw.geometric(0.03, size) - 1, 149))
        truth = np.where(draw.rand(*size) < 0.1, 255, truth)
        made.append((torch.from_numpy(predicted), torch.from_numpy(truth)))
    return made


def test_metrics() -> None:
    wanted, confusion = GOLDEN["metric"], Confusion(150)
    shares = [confusion.add(predicted, truth) for predicted, truth in _maps()]
    assert int(confusion.counts.diagonal().sum()) == wanted["totals"]["intersect"]
    assert int(confusion.counts.sum()) == wanted["totals"]["label"]
    metrics = confusion.metrics()
    for name, key in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
        assert metrics[name] / 100 == pytest.approx(wanted["mmseg_0_11"][key], rel=1e-12)  # in double precision
        assert metrics[name] / 100 == pytest.approx(wanted[key], rel=1e-7)  # in single
        assert round(metrics[name], 2) == round(100 * wanted[key], 2)
    assert np.isnan(confusion.iou()).sum() == wanted["classes_with_nan_iou"]
    assert np.isnan(confusion.accuracy()).sum() == wanted["classes_with_nan_acc"]
    assert confusion.iou()[:8] == pytest.approx(wanted["iou_first8"], rel=1e-6)
    whole = confusion.counts.diagonal().sum() / confusion.counts.sum()
    assert min(shares) < float(whole) < max(shares)
    rows = confusion.of_each([str(index) for index in range(150)])
    assert sum(row["iou"] is None for row in rows) == wanted["classes_with_nan_iou"]


def test_a_set_without_a_labelled_pixel() -> None:
    confusion = Confusion(3)
    assert np.isnan(confusion.add(torch.zeros(2, 2), torch.full((2, 2), 255)))
    with pytest.raises(ValueError, match="label maps are ignored"):
        confusion.metrics()


def _segmenter(amplitude: float) -> UPerNet:
    backbone = SegmentationViT(ViT(32, 4, 4, patch=16, image=64), image=64, outputs=(0, 1, 2, 3))
    heads = Heads(channels=24, aux_channels=20)
    model = UPerNet(backbone, 150, heads, fused=False, mean=RGB, std=RGB).double().eval()
    fill(model, MODEL["slide_parameters"], amplitude)
    return model


@pytest.mark.parametrize(
    ("key", "amplitude", "size"),
    [("slide", 0.02, (64, 100)), ("slide_amp0.2_64x100", 0.2, (64, 100)), ("slide_amp0.2_64x64", 0.2, (64, 64))],
)
def test_sliding_windows(key: str, amplitude: float, size: tuple[int, int]) -> None:
    wanted, model = MODEL[key], _segmenter(amplitude)
    images = image(1, *size)
    with torch.no_grad():
        logits = slide(model, images, (64, 64), 42)
    same(logits, wanted["logits_at_input_size"])
    whole = enlarged(logits, wanted["ori_shape"])
    same(whole, wanted["logits_at_ori"])
    predicted = whole[0].argmax(0)
    counts = torch.bincount(predicted.flatten(), minlength=150)
    for number, pixels in wanted["pred_top"] if isinstance(wanted["pred_top"][0], list) else [wanted["pred_top"]]:
        assert counts[number] == pixels
    assert wanted["pred_sha"] in {sha(predicted.numpy().astype(kind)) for kind in (np.int64, np.uint8)}


def test_windows_are_mmsegmentations() -> None:
    assert window_starts(100, 64, 42) == [0, 36]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]


def test_an_image_smaller_than_the_window_is_padded_for_relative_positions() -> None:
    model = _segmenter(0.2)
    small = image(1, 40, 100)
    with torch.no_grad():
        made = logits_of(model, small, Inference(stride=42), 64)
        padded = torch.cat([small, torch.zeros(1, 3, 24, 100, dtype=torch.float64)], dim=2)
        torch.testing.assert_close(made, slide(model, padded, (64, 64), 42)[:, :, :40])
        with pytest.raises(ValueError, match=r"inference\.mode=whole.*64 x 64 pixels"):
            logits_of(model, small, Inference(mode="whole"), 64)


def test_several_views_average_the_softmax() -> None:
    model = _segmenter(0.2).float()
    torch.manual_seed(0)
    pixels = [torch.randint(256, (3, 64, 80)).byte(), torch.randint(256, (3, 96, 120)).byte()]
    views = [View(pixels[0], 3), View(pixels[1], 1)]
    made = predict(model, views, (50, 60), Inference(flip=True), 64)
    total = torch.zeros(1, 150, 50, 60)
    with torch.no_grad():
        for view, weight in zip(pixels, (3, 1), strict=True):
            normalised = (view[None].float() / 255 - 0.5) / 0.5
            for flipped in (False, True):
                logits = slide(model, normalised.flip(3) if flipped else normalised, (64, 64), 42)
                scores = enlarged(logits, (50, 60)).softmax(1)
                total += weight * (scores.flip(3) if flipped else scores)
    assert (made == total[0].argmax(0)).float().mean() > 0.999


def test_a_linear_head_is_dinov3s() -> None:
    wanted = GOLDEN["dinov3_linear_head"]
    head = LinearHead(32, 150).double()
    theirs = {"batchnorm_layer.": "bn.", "conv.": "conv_seg."}
    names = {name: name for _, name, _ in wanted["parameters"]}
    for old, new in theirs.items():
        names = {name: ours.replace(old, new) for name, ours in names.items()}
    fill(head, [(number, names[name], shape) for number, name, shape in wanted["parameters"]])
    features, target = feature_maps(2, 32, 4, 4)[0], labels(2, 64, 64)
    same(enlarged(head.eval().logits(features), (64, 64)), wanted["eval_predict_64"])
    logits = head.train().logits(features)
    same(logits, wanted["train_logits"])
    loss = pixel_loss(logits, target)
    assert loss.item() == pytest.approx(wanted["train_loss"], rel=1e-9)
    loss.backward()
    for name, parameter in head.named_parameters():
        [other] = [theirs for theirs, ours in names.items() if ours == name]
        assert parameter.grad.norm().item() == pytest.approx(wanted["grad_l2"][other], rel=1e-9)


def test_padding_around_the_middle() -> None:
    padded = centre_padded(torch.ones(1, 3, 20, 28), 14)
    assert padded.shape == (1, 3, 28, 28)
    assert padded[0, 0, :4].sum() == 0
    assert padded[0, 0, 4:24].min() == 1


def _patches() -> list[tuple[Tensor, Tensor]]:
    draw = np.random.RandomState(3)
    centres, made = draw.randn(6, 8), []
    for count in (400, 60):
        kind = draw.randint(0, 6, count)
        features = centres[kind] + 0.8 * draw.randn(count, 8)
        cells = kind[:, None].repeat(16, 1)
        flipped = draw.rand(count, 16) < 0.25
        cells = np.where(flipped, draw.randint(0, 6, (count, 16)), cells)
        cells = np.where(draw.rand(count, 16) < 0.05, 255, cells)
        made.append((torch.from_numpy(features.astype(np.float32)), torch.from_numpy(cells)))
    return made


@pytest.mark.parametrize("setting", list(GOLDEN["capi_knn"]["results"]))
def test_patch_knn_is_capis(setting: str) -> None:
    wanted, ignore = GOLDEN["capi_knn"]["results"][setting], GOLDEN["capi_knn"]["ignore_labels"]
    (train, cells), (query, truth) = _patches()
    kept = learnable(cells, ignore)
    assert int(kept.sum()) == wanted["n_train_after_filter"]
    count, distance = setting.removeprefix("k=").split()
    nearest = nearest_patches(query, train[kept], 30, ("cosine", "L2"))
    made = vote(cells[kept], nearest[distance][:, : int(count)])
    assert int(made.sum()) == wanted["sum"]
    assert wanted["sha"] in {sha(made.numpy().astype(kind)) for kind in (np.int64, np.uint8, np.int32)}
    assert capi_miou(made, truth, ignore) == pytest.approx(wanted["mIoU"], rel=1e-12)


def test_capis_miou_is_sklearns() -> None:
    predicted, truth = (torch.cat([one.flatten() for one in maps]) for maps in zip(*_maps(), strict=True))
    wanted = GOLDEN["metric"]
    assert capi_miou(predicted, truth, [255]) == pytest.approx(wanted["capi_sklearn_macro"], rel=1e-12)
    of_both = capi_miou(predicted, truth, [0, 255])
    assert of_both == pytest.approx(wanted["capi_sklearn_macro_ignoring_0_and_255_pred_0_still_a_class"], rel=1e-12)


def test_neighbours_block_by_block_are_the_nearest(monkeypatch) -> None:
    from mimbench.seg.frozen import neighbours

    monkeypatch.setattr(neighbours, "TRAINING", 37)
    monkeypatch.setattr(neighbours, "QUERIES", 11)
    (train, _), (query, _) = _patches()
    found = nearest_patches(query, train, 30, ("cosine", "L2"))
    query, train = query.double(), train.double()
    assert torch.equal(found["L2"], torch.cdist(query, train).topk(30, largest=False).indices)
    closeness = F.normalize(query, dim=1) @ F.normalize(train, dim=1).T
    assert torch.equal(found["cosine"], closeness.topk(30).indices)

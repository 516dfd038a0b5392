"""Which recipe each protocol means, and who gets which override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.backbones.checkpoints.info import EncoderInfo
from mimbench.backbones.config import SIZES, Traits, ViT
from mimbench.engine.run.task import ANY
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import resolve
from mimbench.jobs.runs.tasks import protocols
from mimbench.jobs.studies.evaluate import Request, evaluation
from mimbench.jobs.studies.study import Run

FILE = Path("/x/encoder.safetensors")
ALL = ("knn", "linear", "linear_fast", "fewshot", "finetune", "coco")
KNOWN = {name: protocol for name, (_, protocol) in protocols().items() if name in ALL}
PUBLISHED: dict[str, Mapping[str, str]] = {
    name: dict.fromkeys(SIZES, protocol.recipes) if isinstance(protocol.recipes, str) else protocol.recipes
    for name, protocol in KNOWN.items()
}
TWINS = {name: protocol.handwritten or "" for name, protocol in KNOWN.items()}


def _runs(vit: ViT, *protocols: str, **request: tuple[str, ...]) -> dict[str, Run]:
    return {run.name: run for run in evaluation(FILE, vit, Request(protocols, **request)).runs}


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_recipe_for_each_size(size: str) -> None:
    protocols = [protocol for protocol in ALL if size in PUBLISHED[protocol]]
    runs = _runs(SIZES[size], *protocols)
    assert {name: run.recipe for name, run in runs.items()} == {p: PUBLISHED[p][size] for p in protocols}
    assert all(run.checkpoint == FILE for run in runs.values())
    finetune = find(runs["finetune"].recipe).build()
    assert finetune.encoder == SIZES[size]
    assert _runs(replace(SIZES[size], image=448), "finetune")["finetune"].recipe == runs["finetune"].recipe


def test_every_recipe_named_here_exists() -> None:
    for name in {*TWINS.values(), *(name for sizes in PUBLISHED.values() for name in sizes.values())}:
        assert "checkpoint" in vars(find(name).build())


def test_handwritten_means_the_demos_recipes() -> None:
    tiny = find(TWINS["knn"]).build().encoder
    assert {name: run.recipe for name, run in _runs(tiny, *ALL).items()} == TWINS
    assert _runs(SIZES["B"], "finetune", data=("handwritten",))["finetune"].recipe == TWINS["finetune"]


def test_a_size_no_paper_has_asks_for_a_recipe() -> None:
    odd = ViT(width=512, depth=8, heads=8)
    with pytest.raises(ValueError, match="ade20k has no recipe for an encoder of width 384, depth 12"):
        _runs(SIZES["S"], "ade20k")
    with pytest.raises(ValueError, match="--recipe finetune=STAGE/NAME"):
        _runs(odd, "finetune")
    same = {name: run.recipe for name, run in _runs(odd, "knn", "linear", "linear_fast", "fewshot").items()}
    assert same == {name: PUBLISHED[name].get(ANY, PUBLISHED[name]["B"]) for name in same}, "frozen: of every size"
    assert same["linear"] == "cls/linear", "and not the recipe of another size"
    assert (find("cls/linear").build(), find("cls/linear_vits").build().encoder) == (
        find("cls/linear_vitb").build(), SIZES["S"]
    )  # fmt: skip
    runs = _runs(odd, "finetune", recipes=("finetune=cls/finetune_vits",))
    assert runs["finetune"].recipe == "cls/finetune_vits"
    with pytest.raises(ValueError, match="is not PROTOCOL=RECIPE"):
        _runs(odd, "finetune", recipes=("cls/finetune_vits",))


SOME = Traits(layer_scale=True, registers=4)
DINOV2_L, ODD = ViT(1024, 24, 16, patch=14, image=518), ViT(width=512, depth=18, heads=8)
CHOSEN: dict[str, tuple[ViT, str, Traits, str, tuple[str, ...], str]] = {  # case: shape, family, traits, recipe ...
    "published": (DINOV2_L, "dinov2", SOME, "vitdet_dinov2_l_pe", (), "Perception Encoder's Table 14 has this recipe"),
    "mae": (SIZES["L"], "mae", Traits(), "mask_rcnn_vitdet_l_100ep", (), "published recipe for ViT-L, made for MAE's"),
    "no class token": (
        SIZES["B"], "vit", Traits(class_token=False), "mask_rcnn_vitdet_b_100ep", (), "published recipe for ViT-B",
    ),
    "unlike MAE": (
        ViT(patch=14, image=518), "dinov2", SOME, "mask_rcnn_vitdet_b_100ep", ("vitdet.window=none",),
        "no ViTDet recipe is published for dinov2, so ViTDet's for ViT-B with windows of 16",
    ),
    "small": (SIZES["S"], "dino", Traits(), "vitdet_scaled_12_blocks_100ep", (), "not a published protocol"),
    "odd": (ODD, "mae", Traits(), "vitdet_scaled_24_blocks_100ep", (), "for width 512, depth 18 and 8 heads, so"),
    "deep": (ViT(128, 40, 2), "vit", SOME, "vitdet_scaled_40_blocks_75ep", (), "not a published protocol"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
def test_coco_is_by_family_traits_and_size(case: str) -> None:
    shape, family, traits, recipe, overrides, why = CHOSEN[case]
    about = EncoderInfo(family, shape, final_norm=True, traits=traits)
    study = evaluation(FILE, shape, Request(("knn", "coco", "coco_frozen")), about)
    knn, coco, frozen = study.runs
    assert (knn.recipe, coco.recipe, coco.overrides) == ("cls/knn", f"det/{recipe}", overrides)
    assert (frozen.recipe, frozen.overrides) == ("det/mask_rcnn_frozen_12ep", ())
    assert [line.partition(": ")[0] for line in study.notes] == ["coco"]
    assert why in study.notes[0]
    study.check()
    built = resolve(coco.recipe, coco.overrides)[1]
    assert built.shape_for(shape).width == shape.width, "the file fits the recipe"
    assert evaluation(FILE, shape, Request(("coco",), overrides=("vitdet.window=7",)), about).runs[0].overrides == (
        "vitdet.window=7",
    )


def test_a_frozen_protocol_leaves_out_what_the_encoder_lacks() -> None:
    lacking = EncoderInfo("pe", SIZES["B"], final_norm=False, traits=Traits(positions="relative", registers=2))
    study = evaluation(FILE, SIZES["B"], Request(("coco_frozen",)), lacking)
    assert study.runs[0].overrides == ("vitdet.norm=off", "vitdet.prefix=drop")
    assert "vitdet.norm=off, because the encoder has no final norm" in study.notes[0]


def test_scratch_is_the_same_from_random_weights_of_the_same_shape() -> None:
    odd = replace(SIZES["S"], image=448)
    study = evaluation(FILE, odd, Request(("knn", "finetune", "linear_fast"), scratch=True, overrides=("seed=4",)))
    study.check()
    names = ["knn", "knn, random weights", "finetune", "finetune, random weights"]
    assert [run.name for run in study.runs][:4] == names
    for given, random in zip(study.runs[::2], study.runs[1::2], strict=True):
        assert (given.recipe, given.checkpoint, random.checkpoint) == (random.recipe, FILE, None)
        config = resolve(random.recipe, random.overrides)[1]
        assert (config.encoder, config.seed, config.checkpoint) == (odd, 4, None)
    tiny = find(TWINS["knn"]).build().encoder
    assert evaluation(FILE, tiny, Request(("knn",), scratch=True)).runs[1].overrides == ()


def test_data_for_all_or_for_one_stage() -> None:
    runs = _runs(SIZES["B"], "knn", "coco", data=("/d/both",))
    assert [run.overrides for run in runs.values()] == [("data=/d/both",)] * 2
    runs = _runs(SIZES["B"], "knn", "coco", data=("cls=imagenet", "coco=/d/coco"))
    assert [run.overrides for run in runs.values()] == [("data=imagenet",), ("data=/d/coco",)]
    runs = _runs(SIZES["B"], "knn", "coco", data=("imagenet=/d/in", "coco=/d/coco"))
    assert [run.overrides for run in runs.values()] == [("data=/d/in",), ("data=/d/coco",)]
    assert _runs(SIZES["B"], "knn")["knn"].overrides == ()


def test_an_override_goes_to_whoever_has_its_key() -> None:
    runs = _runs(SIZES["B"], *ALL, overrides=("epochs=3", "seed=1", "coco.steps=5", "finetune.base_lr=1e-3"))
    assert runs["knn"].overrides == ("seed=1",)
    assert runs["linear"].overrides == ("epochs=3", "seed=1")
    assert runs["finetune"].overrides == ("epochs=3", "seed=1", "base_lr=1e-3")
    assert runs["coco"].overrides == ("seed=1", "steps=5")


def test_an_override_for_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"coco\.steps=5 is for coco, which is not in --on knn"):
        _runs(SIZES["B"], "knn", overrides=("coco.steps=5",))
    with pytest.raises(ValueError, match="unknown key 'sed'; did you mean"):
        evaluation(FILE, SIZES["B"], Request(("knn", "linear"), overrides=("sed=5",))).check()


def test_an_unknown_protocol_lists_them() -> None:
    with pytest.raises(ValueError, match=r"--on lvis .*knn, linear, linear_fast, fewshot, finetune, coco"):
        _runs(SIZES["B"], "lvis")
    assert set(protocols()) >= set(ALL)

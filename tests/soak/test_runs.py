"""Every published recipe runs to its end: training, evaluations on the way, `result.json`, and a cell of the table.

As tiny twins (twins.py), which keep everything of a recipe but its sizes and its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.cls.config import Classify, Knn
from mimbench.det.config import MaskRCNNConfig
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.recipes import find
from mimbench.jobs.runs.store import create_or_find, runs_root
from mimbench.jobs.tables.table import rows
from mimbench.pretrain.config import MaskAlignConfig
from mimbench.seg.config import Segmentation
from tests.soak.twins import Twin, published, tiny, twins

pytestmark = pytest.mark.slow
TWINS = twins()
CLASSIFIER = "cls/finetune_vitb"  # what leaves the classifier that others evaluate


def test_no_recipe_is_forgotten() -> None:
    named = [name for twin in TWINS for name in twin.recipes]
    assert sorted(named) == sorted(published())
    assert len(named) >= 96


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_recipe_runs_to_its_end(
    twin: Twin, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    run = _done(twin.recipes[0], twin.config, request)
    record_property("recipes", len(twin.recipes))
    result = run.read_result()
    assert result is not None
    assert result["recipe"] == twin.recipes[0]
    metrics = result["metrics"]
    if twin.stage == "pretrain":
        assert metrics["loss"] > 0
        assert run.encoder.is_file()
        assert any(row.recipe.startswith(twin.recipes[0].partition("/")[2]) for row in rows(runs_root()))
        return
    assert all(0 <= metrics[name] <= 100 for name in metrics if "loss" not in name), metrics
    if not isinstance(twin.config, Classify):  # a classifier's accuracy is in no column
        cells = [cell for row in rows(runs_root()) for name, cell in row.cells.items() if name in metrics]
        assert cells
        assert all(run.path.name in Path(one).name for cell in cells for one in cell.runs)


def _done(recipe: str, config: Any, request: pytest.FixtureRequest) -> RunDir:
    """The run of a twin, after it has run; with the data and the checkpoint that it wants."""
    if isinstance(config, MaskRCNNConfig):
        config = replace(config, data=str(request.getfixturevalue("lvis" if config.benchmark == "lvis" else "coco")))
    elif isinstance(config, Segmentation):
        config = replace(config, data=str(request.getfixturevalue("ade")))
    else:
        images = "many_images" if isinstance(config, Knn) else "images"
        config = replace(config, data=str(request.getfixturevalue(images)))
    if isinstance(config, Classify):
        classifier = _done(CLASSIFIER, tiny(find(CLASSIFIER).build()), request)
        data = config.data if config.test == "val" else str(Path(config.data) / "val")
        config = replace(config, data=data, checkpoint=str(classifier.path))
    elif isinstance(getattr(config, "method", None), MaskAlignConfig):
        config = replace(config, checkpoint=str(request.getfixturevalue("teacher")))
    run = create_or_find(recipe, config, runs_root())
    assert execute(run) == 0, run.attempts()[-1].get("why")
    return run

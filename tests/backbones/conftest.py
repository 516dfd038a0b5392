"""What tests of several files share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    """Each case's model and the folder that `save_pretrained` makes of it."""
    from tests.backbones.transformers_cases import CASES, made

    root = tmp_path_factory.mktemp("transformers")
    models = {name: made(case.kind, case.config) for name, case in CASES.items()}
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: (model, root / name) for name, model in models.items()}

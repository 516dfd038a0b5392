"""mimbench: pretrain, evaluate and compare masked-image-modelling vision encoders.

    import mimbench

    encoder = mimbench.load_encoder("crossmae_vitb.pth")
    pooled, grid = encoder.features(photographs, size=224)

The names in `__all__` are the public Python API; docs/python.md shows each in use. Everything else may change from one
version to the next. Names are imported at first use, so that `import mimbench` is fast and does not load torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimbench.backbones.contract import Features as Features
    from mimbench.detection import Backbone as Backbone
    from mimbench.detection import evaluate_coco as evaluate_coco
    from mimbench.detection import load_backbone as load_backbone
    from mimbench.encoders import ImageEncoder as ImageEncoder
    from mimbench.encoders import inspect as inspect
    from mimbench.encoders import load_encoder as load_encoder
    from mimbench.jobs.runs.records import Record as Record
    from mimbench.jobs.studies.study import Run as Run
    from mimbench.jobs.studies.study import Study as Study
    from mimbench.records import Results as Results
    from mimbench.records import results as results
    from mimbench.records import run as run
    from mimbench.tables import Table as Table
    from mimbench.tables import table as table

    __version__: str

__all__ = [
    "Backbone",
    "Features",
    "ImageEncoder",
    "Record",
    "Results",
    "Run",
    "Study",
    "Table",
    "evaluate_coco",
    "inspect",
    "load_backbone",
    "load_encoder",
    "results",
    "run",
    "table",
]

_MODULES = {
    "Backbone": "mimbench.detection",
    "Features": "mimbench.backbones.contract",
    "ImageEncoder": "mimbench.encoders",
    "Record": "mimbench.jobs.runs.records",
    "Results": "mimbench.records",
    "Run": "mimbench.jobs.studies.study",
    "Study": "mimbench.jobs.studies.study",
    "Table": "mimbench.tables",
    "evaluate_coco": "mimbench.detection",
    "inspect": "mimbench.encoders",
    "load_backbone": "mimbench.detection",
    "load_encoder": "mimbench.encoders",
    "results": "mimbench.records",
    "run": "mimbench.records",
    "table": "mimbench.tables",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mimbench")
    if name not in _MODULES:
        raise AttributeError(f"module 'mimbench' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

"""Whether detectron2 can be used here, and what is missing for it, without importing it.

detectron2 is in no package registry, its last release is of 2021, and its metadata asks for versions of iopath and
omegaconf that are gone. Its Python part is all that ViTDet needs, and works uncompiled.
"""

from __future__ import annotations

import importlib.util

NEEDS = ("detectron2", "fvcore", "iopath", "omegaconf", "hydra", "cloudpickle", "pycocotools", "PIL", "tabulate")
PACKAGE = {"hydra": "hydra-core", "PIL": "pillow"}  # where a package is called otherwise than its module
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
INSTALL = (
    "pip install --no-deps --no-build-isolation "
    f"git+https://github.com/facebookresearch/detectron2@{COMMIT} && pip install omegaconf hydra-core cloudpickle"
)


def missing(benchmark: str = "coco") -> list[str]:
    """The packages that `engine=detectron2` wants and that are not here; none if it can run `benchmark`."""
    needs = (*NEEDS, "lvis") if benchmark == "lvis" else NEEDS
    return [PACKAGE.get(name, name) for name in needs if importlib.util.find_spec(name) is None]


def require(benchmark: str = "coco") -> None:
    """Stop if detectron2 cannot be used.

    Raises:
        ValueError: naming what is missing, and how to install it.
    """
    if lacking := missing(benchmark):
        how = "pip install lvis" if lacking == ["lvis"] else INSTALL
        raise ValueError(f"engine=detectron2 needs {', '.join(lacking)}, not installed here: {how}")

"""Check whether detectron2 can be used, and which packages are missing, without importing it.

detectron2 is in no package registry, its last release is from 2021, and its metadata requires versions of iopath and
omegaconf that no longer exist. ViTDet needs only its Python part, which works without compilation.
"""

from __future__ import annotations

import importlib.util

NEEDS = ("detectron2", "fvcore", "iopath", "omegaconf", "hydra", "cloudpickle", "pycocotools", "PIL", "tabulate")
PACKAGE = {"hydra": "hydra-core", "PIL": "pillow"}  # packages whose name differs from their module
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
INSTALL = (
    "pip install --no-deps --no-build-isolation "
    f"git+https://github.com/facebookresearch/detectron2@{COMMIT} && pip install omegaconf hydra-core cloudpickle"
)


def missing(benchmark: str = "coco") -> list[str]:
    """Return the packages that `engine=detectron2` needs for `benchmark` and that are not installed."""
    needs = (*NEEDS, "lvis") if benchmark == "lvis" else NEEDS
    return [PACKAGE.get(name, name) for name in needs if importlib.util.find_spec(name) is None]


def require(benchmark: str = "coco") -> None:
    """Check that detectron2 can be used.

    Raises:
        ValueError: if not; names the missing packages and the install command.
    """
    if lacking := missing(benchmark):
        how = "pip install lvis" if lacking == ["lvis"] else INSTALL
        raise ValueError(f"engine=detectron2 needs {', '.join(lacking)}, not installed here; install with: {how}")

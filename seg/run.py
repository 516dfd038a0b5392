"""Run a segmentation config; its type selects the protocol."""

from __future__ import annotations

from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.seg import upernet
from mimbench.seg.config import LinearSegmentationConfig, PatchKnnConfig, Segmentation, UPerNetConfig
from mimbench.seg.frozen import knn, linear, logistic


def run(config: Segmentation, run: RunDir) -> Outcome:
    """Run `config` in the directory `run`.

    Raises:
        OSError: if the data set, the checkpoint or the run directory cannot be read or written.
        ValueError: if the data set or the checkpoint is invalid, or the loss becomes NaN.
    """
    if isinstance(config, UPerNetConfig):
        return upernet.run(config, run)
    if isinstance(config, LinearSegmentationConfig):
        return linear.run(config, run)
    if isinstance(config, PatchKnnConfig):
        return knn.run(config, run)
    return logistic.run(config, run)

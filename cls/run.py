"""Start a classification run; the type of its config selects the protocol."""

from __future__ import annotations

from mimbench.cls import classify, finetune
from mimbench.cls.config import Classification, Classify, FastLinear, FewShot, Finetune, Linear
from mimbench.cls.frozen import fast_linear, fewshot, knn, linear
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir


def run(config: Classification, run: RunDir) -> Outcome:
    """Run `config` in the directory `run`.

    Raises:
        OSError: if the data set, the checkpoint or the run directory cannot be read or written.
        ValueError: if the data or the checkpoint does not fit, or the loss becomes NaN.
    """
    if isinstance(config, Finetune):
        return finetune.run(config, run)
    if isinstance(config, Linear):
        return linear.run(config, run)
    if isinstance(config, Classify):
        return classify.run(config, run)
    if isinstance(config, FastLinear):
        return fast_linear.run(config, run)
    if isinstance(config, FewShot):
        return fewshot.run(config, run)
    return knn.run(config, run)

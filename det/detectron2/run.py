"""Train and evaluate a recipe inside detectron2: its data loader, model, optimiser, trainer and evaluator.

Its inputs are the file of `det.detectron2.lazyconfig` and the detector's initial weights, both written into detectron2/
in the run directory, like its checkpoints and metrics. An interrupted run continues from the last checkpoint. It works
under torchrun. The loop is that of detectron2's `tools/lazyconfig_train_net.py`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mimbench.backbones.vitdet import detectron2_reason
from mimbench.det.config import MaskRCNNConfig
from mimbench.det.data.coco import CocoSplit, of_one_category, read_annotations, read_split
from mimbench.det.data.image_files import with_images
from mimbench.det.data.splits import same_categories
from mimbench.det.detectron2.installed import require
from mimbench.det.detectron2.lazyconfig import Source, lazyconfig, refusal
from mimbench.det.model.build import build_detector
from mimbench.det.model.mask_rcnn import MaskRCNN
from mimbench.engine.data import datasets
from mimbench.engine.data.datasets import CocoFiles, locate
from mimbench.engine.run.atomic import write_json, write_text, write_with
from mimbench.engine.run.process import peak_memory, rank_and_world

KINDS = {"bbox": "box", "segm": "mask"}
NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
         "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent"}  # fmt: skip


@dataclass(frozen=True)
class Within:
    """The result of a run within detectron2."""

    metrics: dict[str, float]  # its evaluator's, in percent, by mimbench's names; empty without detections
    results: list[dict[str, Any]]  # every detection, in COCO's form, in the first process
    images_per_second: float
    peak_memory: int  # bytes
    loading: None = None  # not measured


def lazyconfig_of(config: MaskRCNNConfig, file: Path) -> None:
    """Write the LazyConfig of `config` for a GPU, with a run's data and initial weights; see `write_lazyconfig`."""
    _require_trainable(config)  # before anything is read or written
    directory = locate(config.data)
    train, val = (
        read_split(directory, split, config.single_class, masks=config.heads.masks, benchmark=config.benchmark)
        for split in ("train", "val")
    )
    datasets.require(same_categories(train, val))
    seen = train.images_showing().tolist()
    model, _ = build_detector(config, len(seen), seen)
    write_lazyconfig(config, model, (train, val), file, file.with_suffix(""), "cuda")


def write_lazyconfig(
    config: MaskRCNNConfig, model: MaskRCNN, splits: tuple[CocoSplit, CocoSplit], file: Path, output: Path, device: str
) -> None:
    """Write the LazyConfig of `config` to `file` (.py), and the initial weights of `model` beside it (.pth).

    Args:
        splits: training and validation.
        output: detectron2's output directory.
        device: cuda or cpu.

    Raises:
        ValueError: if detectron2 cannot train this recipe or use this data; says why.
        OSError: if a file cannot be written.
    """
    _require_trainable(config)
    _require_plain(config, model)
    train = splits[0]
    if config.benchmark == "lvis" and train.category_ids != tuple(range(1, len(train.category_ids) + 1)):
        raise ValueError(
            f"{train.files.annotations}: detectron2 needs LVIS's category ids to be 1 to {len(train.category_ids)}, "
            "but this file has others; renumber them, or use engine=mimbench"
        )
    if any(not 0 <= int(identity) < 2**63 for split in splits for identity in (*split.image_ids, *split.category_ids)):
        raise ValueError(
            f"{train.files.annotations} or its validation split has negative ids or ids beyond 63 bits, which "
            "detectron2's evaluator does not support; renumber them, or use engine=mimbench"
        )
    files = [_files(split, file, config.single_class) for split in splits]
    source = Source(
        train=files[0],
        val=files[1],
        images_showing=train.images_showing().tolist(),
        bitmaps=bool((train.parts[1:] == train.parts[:-1])[~train.crowd].any()),
        shape=model.backbone.net.vit,
        mean=(model.pixel_mean.flatten() / 255).tolist(),
        std=(model.pixel_std.flatten() / 255).tolist(),
        start=file.with_suffix(".pth").absolute(),
        output=output.absolute(),
        device=device,
    )
    text = lazyconfig(config, source)
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    write_with(source.start, lambda temporary: torch.save({"model": weights}, temporary))
    write_text(file, text)


def _require_trainable(config: MaskRCNNConfig) -> None:
    """Check that detectron2 can train this recipe."""
    if (reason := refusal(config)) is not None:
        raise ValueError(f"detectron2 cannot train this recipe: {reason}")


def _require_plain(config: MaskRCNNConfig, model: MaskRCNN) -> None:
    """Check that detectron2's ViT supports the model's encoder."""
    if (reason := detectron2_reason(model.backbone.net.traits)) is not None:
        raise ValueError(f"{config.checkpoint}: {reason}")


def _files(split: CocoSplit, file: Path, single_class: bool) -> CocoFiles:
    """Return the split's files in a form that detectron2 can read, if needed with annotations written beside `file`.

    detectron2 joins image names to their folder, and its evaluator treats annotation id 0 as no match.
    """
    plain = read_annotations(split.files.annotations)
    content, files, _ = with_images(plain, split.files)
    if any(annotation["id"] == 0 for annotation in content["annotations"]):
        numbered = [{**one, "id": number} for number, one in enumerate(content["annotations"], start=1)]
        content = {**content, "annotations": numbered}
    content = of_one_category(content) if single_class else content
    if content is plain:
        return files
    annotations = file.with_name(f"{files.annotations.stem}{'_single' if single_class else '_read'}.json").absolute()
    write_json(annotations, content)
    return replace(files, annotations=annotations)


def train_within(
    config: MaskRCNNConfig, model: MaskRCNN, splits: tuple[CocoSplit, CocoSplit], directory: Path, device: torch.device
) -> Within:
    """Train `model` in detectron2, evaluate it there, and load the trained weights into `model`.

    Raises:
        ValueError: if detectron2 is not installed, or cannot train this recipe; says why.
        OSError: if a file cannot be written.
    """
    require(config.benchmark)
    _require_plain(config, model)
    file = directory / "config.py"
    if rank_and_world()[0] == 0 and not file.exists():
        write_lazyconfig(config, model, splits, file, directory, device.type)
    if dist.is_initialized():
        dist.barrier()
    return _Session(config, file, directory, device).run(model)


class _Session:
    """detectron2's objects built from a LazyConfig; imported here, so that importing this module stays cheap."""

    def __init__(self, config: MaskRCNNConfig, file: Path, directory: Path, device: torch.device) -> None:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import LazyConfig, instantiate
        from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model
        from detectron2.utils import comm

        logging.getLogger("detectron2").setLevel(logging.INFO)
        logging.getLogger("fvcore").setLevel(logging.INFO)
        if dist.is_initialized() and comm._LOCAL_PROCESS_GROUP is None:
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        self.config, self.directory, self.device = config, directory, device
        self.lazy = LazyConfig.load(str(file))
        self.plain = instantiate(self.lazy.model).to(device)
        self.lazy.optimizer.params.model = self.plain
        optimizer = instantiate(self.lazy.optimizer)
        self.lazy.optimizer.params.model = None
        self.model = create_ddp_model(self.plain, **self.lazy.train.ddp)
        loader = instantiate(self.lazy.dataloader.train)
        kind = AMPTrainer if self.lazy.train.amp.enabled else SimpleTrainer
        self.trainer = kind(self.model, loader, optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, str(directory), trainer=self.trainer)

    def run(self, model: MaskRCNN) -> Within:
        """Train, evaluate, and load the weights into `model`."""
        self.trainer.register_hooks(self._hooks())
        self.checkpointer.resume_or_load(self.lazy.train.init_checkpoint, resume=True)
        begin = self.trainer.iter + 1 if self.checkpointer.has_checkpoint() else 0
        _require_one_start(begin, self.directory)
        started = time.perf_counter()
        self.trainer.train(begin, self.config.steps)
        seconds = time.perf_counter() - started
        metrics = self._evaluate()
        results = list(self.directory.joinpath("inference").glob("*_instances_results.json"))
        model.load_state_dict({key: value.cpu() for key, value in self.plain.state_dict().items()})
        return Within(
            metrics=metrics,
            results=json.loads(results[0].read_bytes()) if results and rank_and_world()[0] == 0 else [],
            images_per_second=(self.config.steps - begin) * self.config.batch / seconds,
            peak_memory=peak_memory(self.device),
        )

    def _hooks(self) -> list[Any]:
        from detectron2.config import instantiate
        from detectron2.engine import hooks
        from detectron2.utils import comm

        period = self.config.evaluate_every or 0
        shared = [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(self.lazy.lr_multiplier)),
            hooks.EvalHook(period, self._evaluate, eval_after_train=False),
        ]
        if not comm.is_main_process():
            return shared
        from detectron2.engine import default_writers

        writers = default_writers(str(self.directory), self.config.steps)
        saving = hooks.PeriodicCheckpointer(self.checkpointer, **self.lazy.train.checkpointer)
        return [*shared, saving, hooks.PeriodicWriter(writers, period=self.lazy.train.log_period)]

    def _evaluate(self) -> dict[str, float]:
        from detectron2.config import instantiate
        from detectron2.evaluation import inference_on_dataset

        found = inference_on_dataset(
            self.model, instantiate(self.lazy.dataloader.test), instantiate(self.lazy.dataloader.evaluator)
        )
        return named(found)


def _require_one_start(begin: int, directory: Path) -> None:
    """Check that all processes continue from the same step; each of them looked for the last checkpoint itself.

    Raises:
        ValueError: in all processes, if they do not.
    """
    if not dist.is_initialized():
        return
    begins: list[Any] = [None] * rank_and_world()[1]
    dist.all_gather_object(begins, begin)
    if len(set(begins)) > 1:
        raise ValueError(
            f"processes found checkpoints of different steps in {directory} ({begins}): use a run directory on a file "
            "system shared by all nodes, and restart when all nodes see the same files"
        )


def named(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return detectron2's metrics by mimbench's names, without those that are not numbers."""
    return {
        f"{prefix}_{NAMES[name]}": float(value)
        for kind, prefix in KINDS.items()
        for name, value in found.get(kind, {}).items()
        if name in NAMES and value >= 0  # NaN and -100 without objects
    }

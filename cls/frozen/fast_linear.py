"""The fast linear probe: a grid of classifiers on stored features, trained together in about the time of one.

    mimbench run cls/linear_fast checkpoint=encoder.safetensors data=imagenet
    mimbench evaluate encoder.safetensors --on linear_fast --data imagenet

Every image is encoded once (cls/frozen/feature_store.py). Each pool of each of the last blocks is then tried with every
learning rate and weight decay (cls/frozen/heads.py). There is no augmentation: the papers' probe sees a new crop of
every image in each of its 90 epochs. The result records this; compare its numbers only with others of this protocol.
Effect of the missing augmentation: on 1,000 images of handwritten, 90 epochs, the demo's encoder reaches 64.1 % with
centre crops and 63.7 % with crops of 60 to 100 %, a difference within chance (1,400 validation images). It has not
been measured on ImageNet.

The reported head is not selected on the validation split. A share of the training images (`held_out`) is held out,
the head with the highest accuracy on them is trained again on all training images, and then evaluated:

    linear_fast_top1              of the head selected on the held-out training images
    linear_fast_held_out_top1     its accuracy on the held-out images, trained without them
    linear_fast_val_best_top1     as in papers: the higher validation accuracy of that head and of the head that was
                                  best on the validation split in the search

With a single head nothing is selected, and the probe equals `cls/frozen/linear.py` with views=cached.

    RUN/search/heads.json    every head: feature, learning rate, weight decay, accuracies
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.cls.config import FastLinear
from mimbench.cls.data.crops import micro_batch
from mimbench.cls.frozen.encoders import describe_source, sources
from mimbench.cls.frozen.features import RowBatches, Source
from mimbench.cls.frozen.heads import DIVERGED, HeadOptimizer, Heads
from mimbench.cls.frozen.stored import Frozen, open_frozen
from mimbench.engine.run.atomic import write_json
from mimbench.engine.run.process import announced, derived_seed, meet, part_of_rank, rank_and_world, seed_all, summed
from mimbench.engine.run.result import Outcome
from mimbench.engine.run.rundir import RunDir
from mimbench.engine.training.schedule import warmup_cosine
from mimbench.engine.training.train import Training, train

log = logging.getLogger(__name__)

# B image of a batch, N image of a split, H head, C class, D feature

TRUST = 0.001  # LARS's trust coefficient, as in MAE's probe
EVALUATED = 4096  # maximum number of images per forward pass through the heads


@dataclass(frozen=True)
class Head:
    """One combination of the grid."""

    source: Source
    base_lr: float
    weight_decay: float


class Tally(NamedTuple):
    """The accuracies and losses of each head."""

    top1: list[float]  # percent
    top5: list[float]
    loss: list[float]


@dataclass(frozen=True)
class Rows:
    """Features of images by source, and their labels; `index` (N,) selects images, None for all."""

    features: dict[Source, Tensor]
    labels: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels) if self.index is None else len(self.index)

    def at(self, place_B: Tensor, wanted: Sequence[Source]) -> tuple[list[Tensor], Tensor]:
        """Return the features (B, D) of each wanted source, and labels (B,)."""
        index_B = place_B if self.index is None else self.index[place_B]
        return [self.features[source][index_B] for source in wanted], self.labels[index_B]


class Grid(nn.Module):
    """The heads of a grid, stacked by source."""

    def __init__(self, heads: Sequence[Head], widths: dict[Source, int], classes: int, seed: int) -> None:
        super().__init__()
        self.by_source: dict[Source, list[Head]] = {}
        for head in heads:
            self.by_source.setdefault(head.source, []).append(head)
        self._stacks = nn.ModuleList()
        for source, mine in self.by_source.items():
            seed_all(seed)  # every source starts from the same weights as if it were alone
            self._stacks.append(Heads(widths[source], classes, len(mine)))

    @property
    def stacks(self) -> list[Heads]:
        """The stacked heads of each source."""
        return [stack for stack in self._stacks if isinstance(stack, Heads)]

    @property
    def heads(self) -> list[Head]:
        """The heads in the order of their results."""
        return [head for mine in self.by_source.values() for head in mine]

    def forward(self, batch: tuple[Sequence[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the mean over sources of the heads' mean loss; each head receives the gradient of its own loss."""
        features, label_B = batch
        losses = [stack((each, label_B))["loss"] for stack, each in zip(self.stacks, features, strict=True)]
        own = sum(losses)  # each stack receives the gradient of its own loss
        mean = torch.stack([loss.detach() for loss in losses]).mean()
        return {"loss": own - own.detach() + mean}

    def optimizer(self, config: FastLinear) -> HeadOptimizer:
        """Return an optimiser with a learning rate and weight decay for every head."""
        trust = TRUST if config.optimizer == "lars" else None
        groups = [
            (
                list(stack.parameters()),
                [head.base_lr * config.batch / 256 for head in mine],
                [head.weight_decay for head in mine],
            )
            for stack, mine in zip(self.stacks, self.by_source.values(), strict=True)
        ]
        optimizer = HeadOptimizer(*groups[0], trust)
        for group in groups[1:]:
            optimizer.add_heads(*group)
        return optimizer

    @torch.no_grad()
    def diverged(self) -> list[Head]:
        """Return the heads that `HeadOptimizer` stopped because their weights grew without bound."""
        norms = [norm for stack in self.stacks for norm in stack.weight.flatten(1).norm(dim=1).tolist()]
        return [head for head, norm in zip(self.heads, norms, strict=True) if norm >= DIVERGED]

    @torch.no_grad()
    def measure(self, rows: Rows, device: torch.device) -> Tally:
        """Return the accuracy of every head on `rows`, which are divided among the processes."""
        heads = self.heads
        right, loss = torch.zeros(2, len(heads), dtype=torch.int64), torch.zeros(len(heads), dtype=torch.float64)
        right, loss = right.to(device), loss.to(device)
        mine = part_of_rank(len(rows))
        for place_B in torch.arange(mine.start, mine.stop, device=rows.labels.device).split(EVALUATED):
            features, label_B = rows.at(place_B, list(self.by_source))
            start = 0
            for stack, each in zip(self.stacks, features, strict=True):
                counted = slice(start, start + len(stack.bias))
                right_2H, loss_H = _count(stack.logits(each.to(device)), label_B.to(device))
                right[:, counted] += right_2H
                loss[counted] += loss_H
                start = counted.stop
        top1, top5 = ([100 * count / len(rows) for count in counts] for counts in summed(right).tolist())
        return Tally(top1, top5, (summed(loss) / len(rows)).tolist())


def _count(logits_BHC: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the counts of correct top-1 and top-5 (2, H), and the sums of the losses (H,)."""
    guesses = logits_BHC.topk(min(5, logits_BHC.shape[2])).indices == label_B[:, None, None]
    right_2H = torch.stack([guesses[..., 0].sum(0), guesses.any(2).sum(0)])
    labels = label_B[:, None].expand(logits_BHC.shape[:2])
    loss_BH = F.cross_entropy(logits_BHC.transpose(1, 2), labels, reduction="none")
    return right_2H, loss_BH.double().sum(0)


# --------------------------------------------------------------------------------------------------------- the run


def run(config: FastLinear, run: RunDir) -> Outcome:
    """Train the grid and evaluate its best head: the metrics above, `linear_fast_top5` and `linear_fast_loss`.

    Raises:
        FileNotFoundError: if the data set or the checkpoint does not exist.
        ValueError: if the data or the checkpoint does not fit, a feature cannot be stored, the loss becomes NaN, or
            the chosen head diverges.
    """
    frozen = open_frozen(config, run)
    wanted = sources(config, frozen.encoder)
    require_batch(config, len(frozen.splits.train))
    frozen.store.make(wanted)
    train_rows, val_rows = (_rows(frozen, split, wanted) for split in ("train", "val"))
    heads = [
        Head(source, base_lr, decay)
        for source in wanted for base_lr in config.base_lrs for decay in config.weight_decays
    ]  # fmt: skip
    found = _search(config, frozen, heads, train_rows, val_rows, run) if len(heads) > 1 else [{}]
    chosen = _best(found, "held_out_top1", "held_out_loss") if len(heads) > 1 else 0
    on_val = _best(found, "val_top1", "val_loss") if len(heads) > 1 else 0
    last = list(dict.fromkeys([heads[chosen], heads[on_val]]))
    training = prepare(config, frozen, last, train_rows)
    tallies: list[Tally] = []
    training.evaluate = _evaluation(last, val_rows, frozen.encoder.device, tallies)
    trained = train(run, training)
    assert isinstance(trained.model, Grid)
    if heads[chosen] in trained.model.diverged():
        raise ValueError(f"the head of {_described(heads[chosen])} diverged: use smaller base_lrs")
    metrics = {**trained.metrics}
    if len(heads) > 1:
        metrics["linear_fast_held_out_top1"] = found[chosen]["held_out_top1"]
        metrics["linear_fast_val_best_top1"] = max(tallies[-1].top1)
    return frozen.outcome(metrics, facts(config, frozen, heads[chosen], heads[on_val], len(heads)))


def require_batch(config: FastLinear, images: int) -> None:
    """Check, before anything is encoded, that `images` training images without the held-out share fill a batch.

    Raises:
        ValueError: if they do not, or a micro-batch is a single image.
    """
    micro_batch(config)
    fitted = images - (_held_out_images(config, images) if config.heads > 1 else 0)
    if fitted < config.batch:
        held_out = f" without held_out={config.held_out}" if fitted < images else ""
        raise ValueError(
            f"batch={config.batch} exceeds the {fitted} training images{held_out}; use batch={fitted} or less"
        )


def prepare(config: FastLinear, frozen: Frozen, heads: Sequence[Head], rows: Rows) -> Training:
    """Return the training of `heads` on `rows`."""
    wanted = list(dict.fromkeys(head.source for head in heads))
    widths = {source: frozen.encoder.token_width * len(source.parts) for source in wanted}
    grid = Grid(heads, widths, frozen.splits.classes, config.seed)
    batches = RowBatches(
        lambda place_B: rows.at(place_B, wanted),
        len(rows), micro_batch(config), config.seed,
        accumulate=config.compute.accumulate, device=rows.labels.device,
    )  # fmt: skip
    steps_per_epoch = len(batches) // config.compute.accumulate
    return Training(
        model=grid,
        optimizer=grid.optimizer(config),
        batches=batches,
        steps=config.epochs * steps_per_epoch,
        learning_rate=schedule(config, steps_per_epoch),
        compute=config.compute,
        seed=config.seed,
    )


def schedule(config: FastLinear, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor of the heads' learning rates by optimiser step (0-based): warm-up, then a cosine to 0."""

    def rate(step: int) -> float:
        return warmup_cosine(step / steps_per_epoch, 1.0, 0.0, config.warmup_epochs, config.epochs)

    return rate


def _rows(frozen: Frozen, split: Any, wanted: Sequence[Source]) -> Rows:
    """Return a split's stored features, on the GPU if they fit into half of its free memory."""
    features = {source: frozen.store.read(split, source) for source in wanted}
    labels, device = frozen.store.labels(split), frozen.encoder.device
    size = sum(each.numel() * each.element_size() for each in features.values())
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
        return Rows({source: each.to(device) for source, each in features.items()}, labels.to(device))
    return Rows(features, labels)


def _evaluation(
    heads: Sequence[Head], rows: Rows, device: torch.device, tallies: list[Tally]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return the function that evaluates the heads on the validation split; it reports the first, `tallies` get all."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Grid)
        assert model.heads[0] == heads[0]
        tally = model.measure(rows, device)
        tallies.append(tally)
        values = {"top1": tally.top1[0], "top5": tally.top5[0], "loss": tally.loss[0]}
        return {f"linear_fast_{name}": value for name, value in values.items()}

    return evaluate


# -------------------------------------------------------------------------------------------------------- the search


def _search(
    config: FastLinear, frozen: Frozen, heads: Sequence[Head], train_rows: Rows, val_rows: Rows, run: RunDir
) -> list[dict[str, Any]]:
    """Train all heads without the held-out images; return their results on those and on the validation split."""
    inner = RunDir(run.path / "search")
    file = inner.path / "heads.json"
    if rank_and_world()[0] == 0 and not file.exists():
        RunDir.create(inner.path, run.config.read_text(encoding="utf-8"), run.read_about())
    meet()
    if (known := announced(json.loads(file.read_text()) if file.exists() else None)) is not None:
        return list(known)
    fitted, held_out = _held_out(config, train_rows)
    training = prepare(config, frozen, heads, fitted)
    train(inner, training)
    grid = training.model
    assert isinstance(grid, Grid)
    if diverged := grid.diverged():
        described = "; ".join(map(_described, diverged))
        log.warning("%d of %d heads diverged and were stopped: %s", len(diverged), len(heads), described)
    device = frozen.encoder.device
    found = list(_table(grid, grid.measure(held_out, device), grid.measure(val_rows, device)))
    if rank_and_world()[0] == 0:
        write_json(file, found)
        shutil.rmtree(inner.checkpoints, ignore_errors=True)
    return found


def _held_out(config: FastLinear, rows: Rows) -> tuple[Rows, Rows]:
    """Return the training images without the held-out share, and the held-out share; drawn from the seed alone.

    Raises:
        ValueError: if the share is less than one image.
    """
    count = _held_out_images(config, len(rows))
    generator = torch.Generator().manual_seed(derived_seed(config.seed, -2))
    order_N = torch.randperm(len(rows), generator=generator)
    parts = (order_N[count:].sort().values, order_N[:count].sort().values)
    fitted, held_out = (Rows(rows.features, rows.labels, part.to(rows.labels.device)) for part in parts)
    return fitted, held_out


def _described(head: Head) -> str:
    return f"{head.source.name} with base_lr={head.base_lr:g} weight_decay={head.weight_decay:g}"


def _held_out_images(config: FastLinear, images: int) -> int:
    count = round(config.held_out * images)
    if not count:
        raise ValueError(
            f"held_out={config.held_out} of {images} training images is less than one image; use a larger share"
        )
    return count


def _table(grid: Grid, held_out: Tally, val: Tally) -> Iterator[dict[str, Any]]:
    """Yield the results of each head; those that diverged have no accuracy, so that none of them is chosen."""
    diverged = grid.diverged()
    for place, head in enumerate(grid.heads):
        counts = head not in diverged
        yield {
            **asdict(head),
            "source": head.source.name,
            "held_out_top1": counts * held_out.top1[place],
            "held_out_loss": held_out.loss[place],
            "val_top1": counts * val.top1[place],
            "val_loss": val.loss[place],
        }


def _best(found: Sequence[dict[str, Any]], top1: str, loss: str) -> int:
    """Return the index of the head with the highest accuracy; of equal ones that of lowest loss, then the first."""
    return min(range(len(found)), key=lambda place: (-found[place][top1], found[place][loss], place))


def facts(config: FastLinear, frozen: Frozen, chosen: Head, on_val: Head, heads: int) -> dict[str, Any]:
    """Return the facts of the protocol that change the numbers."""
    how = f"the best of {heads} heads on held-out training images" if heads > 1 else "one head"
    return {
        "protocol": f"fast linear probe, {how}, on stored features without augmentation (not the papers')",
        "views": "stored",
        "feature": describe_source(chosen.source, frozen.encoder),
        "pool": chosen.source.pool,
        "block": chosen.source.block,
        "norm": config.norm,
        "base_lr": chosen.base_lr,
        "weight_decay": chosen.weight_decay,
        "val_best": {
            "feature": describe_source(on_val.source, frozen.encoder),
            "base_lr": on_val.base_lr,
            "weight_decay": on_val.weight_decay,
        },
        "heads": heads,
        "held_out": config.held_out if heads > 1 else 0.0,
        "optimizer": config.optimizer,
        "epochs": config.epochs,
        "batch": config.batch,
        "micro_batch": micro_batch(config),
        **frozen.facts(chosen.source),
    }

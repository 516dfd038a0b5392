"""Training in which every process keeps only its share of the weights, gradients and moments (torch's FSDP2).

    shard(model, optimizer, device)      # in every process, in place, before the first step
    with whole(model):                   # in every process: plain, whole weights, for evaluations and files
        ...

The blocks of the encoder (and of the method) are gathered one at a time for the forward and the backward pass; the rest
of the model is gathered once for both. Weights are gathered in single precision, so a step differs from DDP's only in
the order of its sums. Between shards and evaluations stands `whole`: all processes gather a plain copy of the weights
(4 bytes a parameter, without gradients and moments), and what runs on the first process alone needs no other process.

A shard is a DTensor. Norms, averages and checks for finite values use its local part.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mimbench.engine.run.process import rank_and_world, summed
from mimbench.engine.training.compiling import blocks_of
from mimbench.engine.training.distributed import has_running_statistics

HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # of torch's modules, where FSDP hooks itself in

_sharded: weakref.WeakKeyDictionary[nn.Module, Sharded] = weakref.WeakKeyDictionary()


class Sharded:
    """What turns a sharded model into a plain one and back."""

    def __init__(self, modules: Sequence[nn.Module], hooks: Sequence[dict[str, dict[int, Any]]]) -> None:
        self.modules = modules  # those whose parameters FSDP gathers together
        self.hooks = hooks  # of each of them, FSDP's own
        self.shards: list[tuple[nn.Module, str, nn.Parameter]] | None = None  # while the model is whole

    @torch.no_grad()
    def open(self, model: nn.Module) -> None:
        """Give `model` plain, whole weights, and take FSDP's hooks away. Every process calls it."""
        if has_running_statistics(model):
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
        for module in self.modules:
            module.reshard()  # type: ignore[operator]
        shards: list[tuple[nn.Module, str, nn.Parameter]] = []
        gathered: dict[nn.Parameter, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if parameter not in gathered:
                    gathered[parameter] = nn.Parameter(whole_tensor(parameter), requires_grad=parameter.requires_grad)
                shards.append((module, name, parameter))
                setattr(module, name, gathered[parameter])
        self.shards = shards
        for module, own in zip(self.modules, self.hooks, strict=True):
            for kind, hooks in own.items():
                for number in hooks:
                    del getattr(module, kind)[number]

    def close(self) -> None:
        """Give the model its shards back."""
        assert self.shards is not None
        for module, name, parameter in self.shards:
            setattr(module, name, parameter)
        self.shards = None
        for module, own in zip(self.modules, self.hooks, strict=True):
            for kind, hooks in own.items():
                getattr(module, kind).update(hooks)


def shard(model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
    """Leave each process its share of `model`'s parameters, and let `optimizer` update the shares.

    The weights are those of rank 0. Every process calls this, before the first step and outside `whole`.

    Raises:
        ValueError: if the optimiser is not AdamW; others, such as LARS, need the norm of each whole weight.
            On a CPU, if torch is so old (2.6) that its FSDP needs a GPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not isinstance(optimizer, AdamW):
        raise ValueError(
            f"compute.shard=true works with AdamW, not {type(optimizer).__name__}, which needs whole weights: "
            "use compute.shard=false"
        )
    if not hasattr(torch.get_device_module(device).Stream, "record_event"):
        raise ValueError(
            f"compute.shard=true needs a GPU or a newer torch than {torch.__version__}, whose FSDP does not work on "
            f"the {device.type.upper()}: use compute.shard=false"
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no others
        dist.broadcast(parameter.data, src=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (rank_and_world()[1],))
    modules = [*dict.fromkeys(blocks_of(model)), model]
    before = [{kind: set(getattr(module, kind)) for kind in HOOKS} for module in modules]
    for module in modules:
        fully_shard(module, mesh=mesh)
    hooks = [
        {
            kind: {number: hook for number, hook in getattr(module, kind).items() if number not in known[kind]}
            for kind in HOOKS
        }
        for module, known in zip(modules, before, strict=True)
    ]
    shards = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [shards[names[parameter]] for parameter in group["params"]]
    _sharded[model] = Sharded(modules, hooks)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `model` is in shards now."""
    return model in _sharded and _sharded[model].shards is None


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Give every process plain, whole weights inside the `with` block; every process enters it.

    Nothing happens to a model that is not in shards. Weights that are changed inside are changed back.
    """
    if not is_sharded(model):
        yield
        return
    _sharded[model].open(model)
    try:
        yield
    finally:
        _sharded[model].close()


def make_whole(model: nn.Module) -> None:
    """Give every process plain, whole weights, for good: the end of a training."""
    if is_sharded(model):
        _sharded[model].open(model)
        del _sharded[model]


def is_shard(value: Any) -> bool:
    """Return whether `value` is a share of a larger tensor (a DTensor)."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole_tensor(shard: Tensor) -> Tensor:
    """Return the tensor of a shard, without the padding of its shares. Every process calls this."""
    plain: Tensor = shard.detach().full_tensor()  # type: ignore[attr-defined]
    return plain.clone() if plain.untyped_storage().nbytes() > plain.nbytes else plain


def local_part(value: Tensor) -> Tensor:
    """Return this process's share of a shard, without a copy; other tensors as they are."""
    return value.detach().to_local() if is_shard(value) else value  # type: ignore[attr-defined, no-any-return]


def as_shard(local: Tensor, like: Tensor) -> Tensor:
    """Return this process's share `local` as a shard of a tensor of `like`'s shape; unchanged if `like` is no shard."""
    if not is_shard(like):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """Return a copy of this process's share of the whole tensor `value`, divided as the shard `like` is.

    `value` itself is returned where `like` is no shard, or has another shape.
    """
    if not is_shard(like) or value.shape != like.shape:
        return value
    mesh = like.device_mesh  # type: ignore[attr-defined]
    pieces = value.chunk(mesh.size())  # FSDP divides the first axis so
    mine = pieces[mesh.get_local_rank()] if mesh.get_local_rank() < len(pieces) else value[:0]
    return as_shard(mine.to(like.device, like.dtype, copy=True), like)


def norm_over_processes(shards: Iterable[Tensor]) -> Tensor:
    """Return the norm of all values of `shards`, in every process."""
    mine = nn.utils.get_total_norm([local_part(value) for value in shards])
    return summed(mine.square()).sqrt()


def scale_to_norm(shards: Iterable[Tensor], norm: Tensor, most: float) -> None:
    """Multiply `shards`, whose norm is `norm`, so that it is at most `most`; as torch's `clip_grads_with_norm_`."""
    torch._foreach_mul_([local_part(value) for value in shards], (most / (norm + 1e-6)).clamp(max=1.0))

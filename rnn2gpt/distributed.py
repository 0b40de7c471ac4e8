"""Several processes, one run: every process its share of each batch, started by `torchrun`.

Data parallel (DDP, Li et al. 2020): each process holds the whole model and the gradients are
averaged while the backward pass goes on. Sharded (FSDP2, Zhao et al. 2023): each holds a part of
every weight, of its gradient and of the optimizer's moments, and gathers a block's weights when the
block needs them: for models that one device cannot hold.

A batch is a function of (seed, step), so each process draws the whole one and takes its rows. On
CPUs the processes talk over gloo, on CUDA over NCCL, one process a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from rnn2gpt.devices import pick_device


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them. Alone, it is a team of one, and sends nothing.

    Every process must make the calls below that talk (`largest`, `mean`, `whole`), in one order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The named device; of several GPUs in a machine, each process takes its own."""
        device = pick_device(name)
        if self.size > 1 and device == torch.device("cuda"):
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        return device

    def largest(self, *values: float) -> list[float]:
        """The largest that any process gave, for each value: how clocks and signals agree."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    def mean(self, numbers: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The mean over the processes."""
        if self.size > 1:
            dist.all_reduce(numbers)  # their sum, in place
        return numbers / self.size

    def rows(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch (B, ...). `size` must divide B."""
        return batch.tensor_split(self.size)[self.rank]

    def share(self, module: nn.Module, sharded: bool) -> nn.Module:
        """The module with its gradients averaged over the processes, if there are several."""
        if self.size == 1 or sharded:  # a sharded model does it itself
            return module
        return nn.parallel.DistributedDataParallel(module)


ALONE = Team()


@contextmanager
def team() -> Iterator[Team]:
    """The processes that `torchrun` started, joined for as long as the context lasts."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Team(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()


def shard(model: Any, device: torch.device, size: int) -> None:
    """Cut every weight into `size` parts and keep this process's; a block is gathered at a time."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(device.type, (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what stands outside the blocks


def average_gradients(module: nn.Module, on: bool) -> None:
    """Whether the coming backward pass ends in averaged gradients.

    Of several micro-batches only the last need do that: until then each process sums its own.
    """
    for part in module.modules():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            part.require_backward_grad_sync = on
        set_sync: Any = getattr(part, "set_requires_gradient_sync", None)  # of a sharded part
        if set_sync is not None:
            set_sync(on, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts, if it is sharded. All processes must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def as_sharded(tensor: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, if `like` is sharded."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

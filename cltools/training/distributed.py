"""One coupled run on several processes, with one GPU each: `torchrun … cltools train …`.

These processes are called ranks. Each holds complete copies of all networks and makes the views of
its part of the batch. Several ranks compute the same as one process, up to the order of sums:

- Normalized projections z are gathered. Every rank then computes the loss L of the whole batch,
  with all anchors and all negatives. So L is the same on all ranks.
- The backward pass of the gathering returns the rank's own slice of dL/dz. This slice is complete,
  because L on each rank contains all anchors. (If the loss of a rank had its own anchors only, the
  slices from the other ranks would have to be added. This is often forgotten.)
- BatchNorm uses the values of all ranks, in the backward pass too (see `batchnorm`).
- The parameter gradient on a rank is therefore the part of dL that comes from its own images. The
  full gradient is the sum over ranks, not the mean.

Nothing is sent at the start: initial weights depend on the seed only, and a resumed run reads the
same file on every rank. Only rank 0 writes files.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cltools.runtime.devices import automatic_device, choose_device
from cltools.runtime.errors import InputError
from cltools.training.batchnorm import share_statistics


class Ranks:
    """A run of one process, where nothing is communicated: rank 0 of 1."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part (B/size, ...) of a batch (B, ...); parts are in the order of ranks."""
        return batch

    def gather(self, own: Tensor) -> Tensor:
        """Join the parts (K, B/size, ...) of all ranks to (K, B, ...); differentiable.

        The gradient is correct if every rank computes the same loss from the result.
        """
        return own

    def couple(self, network: nn.Module) -> None:
        """Make every BatchNorm of `network` use the statistics of the whole batch."""

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its sum over ranks."""

    def identical(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the tensors are equal on all ranks, bit by bit; all ranks get the same answer."""
        return True

    def largest(self, number: int) -> int:
        """The largest of the numbers that the ranks pass; all ranks get it."""
        return number

    def leave(self) -> None:
        """End the communication. Nothing can be gathered or summed afterwards."""


class SeveralRanks(Ranks):
    """One of `size` processes, after `torch.distributed` was initialized."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, batch: Tensor) -> Tensor:
        return batch.chunk(self.size)[self.rank]

    def gather(self, own: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(own, self)
        return gathered

    def couple(self, network: nn.Module) -> None:
        share_statistics(network, self)

    def sum_gradients(self, network: nn.Module) -> None:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        # One message for all: most tensors are so small that the overhead of a message dominates.
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def identical(self, tensors: Iterable[Tensor]) -> bool:
        own = torch.cat([t.detach().flatten().view(torch.uint8) for t in tensors])
        first = own.clone()
        self._together(dist.broadcast, first, 0)
        same = torch.tensor([torch.equal(own, first)], dtype=torch.int32, device=own.device)
        self._together(dist.all_reduce, same, dist.ReduceOp.MIN)
        return bool(same)

    def largest(self, number: int) -> int:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        found = torch.tensor([number], device=device)
        self._together(dist.all_reduce, found, dist.ReduceOp.MAX)
        return int(found)

    def leave(self) -> None:
        dist.destroy_process_group()

    def stack(self, own: Tensor) -> Tensor:
        """(size, ...) of all ranks from each rank's (...), without a gradient."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._together(dist.all_gather, parts, own)
        return torch.stack(parts)

    def sum(self, own: Tensor) -> Tensor:
        """Sum over ranks, bit for bit the same on all, without a gradient; `own` is kept."""
        total = own.clone()
        self._together(dist.all_reduce, total)
        return total

    def _together(self, collective: Callable[..., Any], *arguments: Any) -> None:
        """Run a collective operation; raises InputError when another rank has ended.

        This works with gloo. With nccl the operation waits until torchrun ends this process.
        """
        try:
            collective(*arguments)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"rank {self.rank} of {self.size} lost the connection to the other ranks "
                f"({reason}): see their error messages"
            ) from error


class _Gather(torch.autograd.Function):
    """See `Ranks.gather`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: SeveralRanks) -> Tensor:
        ctx.ranks = ranks
        return torch.cat(ranks.stack(own.contiguous()).unbind(), dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ranks: SeveralRanks = ctx.ranks
        return gradient.chunk(ranks.size, dim=1)[ranks.rank], None


def join_ranks(device_name: str) -> tuple[Ranks, torch.device]:
    """Connect to the other ranks that torchrun started; returns them and this rank's device.

    With "auto" or "cuda" every rank takes the GPU whose number is its local rank.

    Raises InputError for a device that the machine does not have, or not for every rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(), choose_device(device_name)
    needed = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [variable for variable in needed if variable not in os.environ]
    if missing:
        raise InputError(
            f"the environment asks for {size} ranks (WORLD_SIZE) but lacks {', '.join(missing)}: "
            "start them with torchrun, or unset WORLD_SIZE"
        )
    device = _own_device(device_name, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return SeveralRanks(), device


def _own_device(name: str, size: int) -> torch.device:
    if name.startswith("cuda:"):
        raise InputError(f"--device {name} is one GPU, but there are {size} ranks: use cuda")
    if name == "auto":
        name = automatic_device()
    if name != "cuda":
        return choose_device(name)
    ranks_here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if ranks_here > gpus:
        raise InputError(
            f"this machine has {gpus} GPUs, too few for {ranks_here} ranks: lower config key "
            "gpus_per_cell, or torchrun's --nproc-per-node"
        )
    return choose_device(f"cuda:{os.environ['LOCAL_RANK']}")

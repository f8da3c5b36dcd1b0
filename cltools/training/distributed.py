"""One coupled run on several processes, the ranks, with a GPU each: `torchrun … cltools train …`.

Every rank holds all networks whole and renders the views of its share of the batch. What makes W
ranks compute what one process computes, up to the order of sums:

- Normalised projections are gathered, so that every rank computes the loss L of the global batch:
  all negatives, all anchors, the same number everywhere.
- The gradient of gathering is the rank's own slice of dL/dz. Nothing is missing from it, because
  each rank's L counts every anchor. (Where a rank's loss is of its own anchors only, the slices
  that the other ranks hold must be added: leaving them out is the usual mistake.)
- BatchNorm counts the values of all ranks, in its derivative too (see `batchnorm`).
- So a rank's gradient of the parameters is the part of dL that flows through its own images, and
  their sum over ranks, not their mean, is the gradient.

Nothing is sent at the start: initial weights are a function of the seed, and a resumed run reads
the same file on every rank. Rank 0 writes for all.
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
    """A run of one process: rank 0 of 1, which has nobody to talk to."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch (B, ...), which is in the order of ranks: (B/size, ...)."""
        return batch

    def gather(self, own: Tensor) -> Tensor:
        """(K, B, ...) of all ranks from each rank's (K, B/size, ...); differentiable.

        The gradient is right where every rank computes the same loss of all that is gathered.
        """
        return own

    def couple(self, network: nn.Module) -> None:
        """Make the replicas of `network` normalise by the statistics of the global batch."""

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its sum over ranks."""

    def identical(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all ranks hold the same bits; every rank gets the same answer."""
        return True

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers, which every rank gets."""
        return number

    def leave(self) -> None:
        """End the communication: nothing is gathered or summed any more."""


class SeveralRanks(Ranks):
    """One of `size` processes, after `torch.distributed` was initialised."""

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
        # One message: most tensors are so small that sending takes longer than what is sent.
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
        """Sum over ranks, the same bits on all of them, without a gradient; `own` is kept."""
        total = own.clone()
        self._together(dist.all_reduce, total)
        return total

    def _together(self, collective: Callable[..., Any], *arguments: Any) -> None:
        """Raises InputError when another rank is gone (gloo; nccl waits until it is ended)."""
        try:
            collective(*arguments)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"rank {self.rank} of {self.size} lost touch with the others ({reason}): "
                "see what they say"
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
    """The ranks that torchrun started this process among, and the device of this one.

    With "auto" or "cuda" every rank takes the GPU of its number on its machine.

    Raises InputError for a device that cannot be had, or not by every rank.
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

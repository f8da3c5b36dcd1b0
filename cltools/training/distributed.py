"""One coupled run on several processes, with one GPU each: `torchrun … cltools train …`.

These processes are called ranks. They share the work of a cell in one of two ways.

**By objectives** (`ObjectiveRanks`), where there are at least as many objectives as ranks. An
objective does not depend on the others: its weights, batches and views follow from the seed, the
epoch and the step. So each rank trains some of the objectives, on whole batches. The results are
those of one process, byte for byte. Ranks send nothing in a step, and agree every few steps whether
to go on. What they made is put together where it is saved.

**By batch** (`SeveralRanks`), for more ranks than objectives, or where a whole batch does not fit
into the memory of one GPU. Each rank holds complete copies of all networks and makes the views of
its part of the batch. The ranks compute the same as one process, up to the order of sums:

- Normalized projections z are gathered. Every rank then computes the loss L of the whole batch,
  with all anchors and all negatives. So L is the same on all ranks.
- The backward pass of the gathering returns the rank's own slice of dL/dz. This slice is complete,
  because L on each rank contains all anchors. (If the loss of a rank had its own anchors only, the
  slices from the other ranks would have to be added. This is often forgotten.)
- BatchNorm uses the values of all ranks, in the backward pass too (see `batchnorm`).
- The parameter gradient on a rank is therefore the part of dL that comes from its own images. The
  full gradient is the sum over ranks, not the mean.

Nothing is sent at the start: initial weights depend on the seed only, and a resumed run reads the
same file on every rank. Rank 0 writes the states, the log and the manifest.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cltools.config.sharing import Share, splits_batch
from cltools.runtime.devices import automatic_device, choose_device
from cltools.runtime.errors import InputError, Stopped
from cltools.training.batchnorm import share_statistics

T = TypeVar("T")


class Ranks:
    """A run of one process, where nothing is communicated: rank 0 of 1.

    `parts` is the number of parts that a batch is split into.
    """

    rank = 0
    size = 1
    parts = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes states, log and manifest."""
        return self.rank == 0

    @property
    def writes_weights(self) -> bool:
        """Whether this rank writes the weights of its networks."""
        return True

    def objectives(self, costs: Mapping[str, int]) -> list[str]:
        """The objectives that this rank trains, in the order of `costs` (see `divided`)."""
        return list(costs)

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part (B/parts, ...) of a batch (B, ...); parts are in the order of ranks."""
        return batch

    def gather(self, own: Tensor) -> Tensor:
        """Join the parts (K, B/parts, ...) of all ranks to (K, B, ...); differentiable.

        The gradient is correct if every rank computes the same loss from the result.
        """
        return own

    def couple(self, network: nn.Module) -> None:
        """Make every BatchNorm of `network` use the statistics of the whole batch."""

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its sum over ranks."""

    def identical(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the tensors are equal on all ranks that hold them, bit by bit.

        All these ranks get the same answer.
        """
        return True

    def talk(self, stopped_by: int = 0, save: bool = False) -> tuple[int, bool]:
        """The largest number of a signal of all ranks, and whether any of them wants to save."""
        return stopped_by, save

    def exchange(self, own: T) -> list[T]:
        """What each rank with other objectives holds, in the order of ranks; all ranks get it."""
        return [own]

    def collect(self, own: T) -> list[T]:
        """The same for the first rank alone; the others get an empty list."""
        return [own]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Let an error in the block end all ranks with the same error, where they can be told."""
        yield

    def leave(self) -> None:
        """End the communication. Nothing can be sent afterwards."""


class _Connected(Ranks):
    """One of `size` processes, after `torch.distributed` was initialized."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def leave(self) -> None:
        dist.destroy_process_group()

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


class ObjectiveRanks(_Connected):
    """Ranks that train different objectives on whole batches.

    Every message begins with a `talk`. So a rank that fails can join whatever the others do next,
    and tell them its error there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = False

    def objectives(self, costs: Mapping[str, int]) -> list[str]:
        return divided(costs, self.size)[self.rank]

    def talk(self, stopped_by: int = 0, save: bool = False) -> tuple[int, bool]:
        """As `Ranks.talk`. Raises the error of a rank that has failed."""
        return self._talk(stopped_by, save, None)

    def exchange(self, own: T) -> list[T]:
        self.talk()
        found: list[Any] = [None] * self.size
        self._together(dist.all_gather_object, found, own)
        return found

    def collect(self, own: T) -> list[T]:
        self.talk()
        found: list[Any] | None = [None] * self.size if self.first else None
        self._together(dist.gather_object, own, found)
        return found or []

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        try:
            yield
        except Stopped:  # all ranks have stopped
            raise
        except Exception as error:
            if not self._ended:
                self._talk(0, False, error)
            raise

    def leave(self) -> None:
        self._ended = True
        super().leave()

    def _talk(self, stopped_by: int, save: bool, error: Exception | None) -> tuple[int, bool]:
        numbers = torch.tensor([error is not None, stopped_by, save], dtype=torch.int64)
        self._together(dist.all_reduce, numbers, dist.ReduceOp.MAX)
        failed, number, anyone = numbers.tolist()
        if failed:
            errors: list[Any] = [None] * self.size
            self._together(dist.all_gather_object, errors, error)
            self._ended = True
            if error is None:
                raise next(found for found in errors if found is not None)
        return number, bool(anyone)

    def _together(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            super()._together(collective, *arguments)
        except InputError:
            self._ended = True
            raise


def divided(costs: Mapping[str, int], ranks: int) -> list[list[str]]:
    """The objectives of each rank: the costliest that is left goes to the rank with the least cost.

    `costs` says for each objective how much work its step is, in any unit. Ranks keep the order of
    `costs`. With at least as many objectives as ranks, none is left without.
    """
    loads, owners = [0] * ranks, {}
    for objective in sorted(costs, key=lambda name: -costs[name]):
        owners[objective] = loads.index(min(loads))
        loads[owners[objective]] += costs[objective]
    return [[o for o in costs if owners[o] == rank] for rank in range(ranks)]


class SeveralRanks(_Connected):
    """Ranks that split each batch; all hold the same networks."""

    @property
    def parts(self) -> int:  # type: ignore[override]
        return self.size

    @property
    def writes_weights(self) -> bool:
        return self.first

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

    def talk(self, stopped_by: int = 0, save: bool = False) -> tuple[int, bool]:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        numbers = torch.tensor([stopped_by, save], dtype=torch.int64, device=device)
        self._together(dist.all_reduce, numbers, dist.ReduceOp.MAX)
        number, anyone = numbers.tolist()
        return number, bool(anyone)

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


def join_ranks(
    device_name: str, share: Share = "batch", objectives: int = 1
) -> tuple[Ranks, torch.device]:
    """Connect to the other ranks that torchrun started; returns them and this rank's device.

    With "auto" or "cuda" every rank takes the GPU whose number is its local rank. `objectives` is
    how many the cell has, which decides how the ranks share it (see `config.sharing`).

    Raises InputError for a device that the machine does not have, or not for every rank, and for
    more ranks than objectives if these are to be shared.
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
    if share == "objectives" and size > objectives:
        raise InputError(
            f"config key share is objectives, but there are {size} ranks for {objectives} "
            "objectives: lower gpus_per_cell, or set share to auto"
        )
    by_batch = splits_batch(share, size, objectives)
    device = _own_device(device_name, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if by_batch and device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:  # what ranks with other objectives send lies in main memory
        dist.init_process_group("gloo")
    return (SeveralRanks() if by_batch else ObjectiveRanks()), device


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

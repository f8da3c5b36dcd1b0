"""Batches of views from a caller's own data, and torch's own random numbers.

What callers write (data loaders, augmentations, modules) draws from torch's global generators. A
`Stream` makes what is drawn within it depend on a key alone, as in `cltools.maths.randomness`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cltools.maths.randomness import batch_order, seed_of
from cltools.runtime.devices import to_device

CPU = torch.device("cpu")
EXPECTED = (
    "give (view1, view2, labels) or, where no objective needs labels, (view1, view2), each view of "
    "shape (images, ...) and labels (images,); or (views, labels) with views (K, images, ...)"
)
_END = object()


class Stream:
    """A context in which torch's generators (of the CPU and of the device) are at a key's seed.

    They are as before when it is left. When it is entered again, they go on where it was left.
    `more` are further generators that it does the same with.
    """

    def __init__(
        self, device: torch.device, *key: str | int, more: Iterable[torch.Generator] = ()
    ) -> None:
        self._generators = [torch.default_generator, *more]
        if device.type == "cuda":
            number = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[number])
        self._seed = seed_of(*key)
        self._states: list[Tensor] = []  # none before it is first entered
        self._outside: list[Tensor] = []

    def __enter__(self) -> "Stream":
        self._outside = [generator.get_state() for generator in self._generators]
        if self._states:
            self._set(self._states)
        else:
            self.restart(self._seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._states = [generator.get_state() for generator in self._generators]
        self._set(self._outside)

    def restart(self, seed: int) -> None:
        """Within it, begin to draw from this seed."""
        for generator in self._generators:
            generator.manual_seed(seed)

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


class ViewLoader:
    """Batches of views of own images by an own transform, as a DataLoader would give them.

    An iteration is an epoch: every image at most once, in random order, in full batches; images
    left over differ from epoch to epoch. As a DataLoader does, an iteration draws one number from
    torch's generator, and the order and all views follow from it. The transform is called image by
    image under torch's generators, at a seed that depends on that number, the view and the image:
    so an image gets its view whatever batch it falls in. A transform that draws from NumPy or from
    `random` repeats only as far as its caller seeds these.

    Args:
        images: (N, ...) tensor or array, or a sequence of N images of any kind, such as PIL's.
        labels: (N,) integers, or None.
        transform: an image to a view of it, a tensor or array; all views have one shape.
        batch_size: B images, at most N.
        views: K ≥ 2 views of each image.

    Raises:
        ValueError: labels that are not one integer for each image, a batch size below 2 or above N,
            fewer than two views; while iterating, views that are not arrays of one shape.

    >>> import torch
    >>> from cltools import ViewLoader
    >>> images, labels = torch.rand(10, 1, 8, 8), torch.arange(10) % 2
    >>> noisy = lambda image: image + 0.1 * torch.randn_like(image)
    >>> for view1, view2, own in ViewLoader(images, labels, transform=noisy, batch_size=4):
    ...     print(*view1.shape, *own.shape)
    4 1 8 8 4
    4 1 8 8 4
    """

    def __init__(
        self,
        images: Sequence[Any] | Tensor | np.ndarray,
        labels: Sequence[int] | Tensor | np.ndarray | None = None,
        *,
        transform: Callable[[Any], Any],
        batch_size: int,
        views: int = 2,
    ) -> None:
        self.images = torch.as_tensor(images) if isinstance(images, np.ndarray) else images
        self.labels = None if labels is None else _labels(labels)
        self.transform, self.batch_size, self.views = transform, batch_size, views
        count = len(self.images)
        if self.labels is not None and self.labels.shape != (count,):
            raise ValueError(f"labels {tuple(self.labels.shape)} are not one for each of {count} "
                             "images")  # fmt: skip
        if not 2 <= batch_size <= count:
            raise ValueError(f"batch_size is {batch_size}: of {count} images, a batch can hold 2 "
                             f"to {count}")  # fmt: skip
        if views < 2:
            raise ValueError(f"views is {views}: contrastive objectives need at least two")

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        for positions in batch_order(seed, 0, len(self.images), self.batch_size):
            views = [self._view(seed, view, positions) for view in range(self.views)]
            own = [] if self.labels is None else [self.labels[positions]]
            yield (*views, *own)

    def _view(self, seed: int, view: int, positions: Tensor) -> Tensor:
        """(B, ...), one view of each of the images at these positions."""
        device = self.images.device if isinstance(self.images, Tensor) else CPU
        made = []
        with Stream(device, seed, view) as stream:
            for position in positions.tolist():
                stream.restart(seed_of("own view", seed, view, position))
                made.append(self.transform(self.images[position]))
        try:
            return torch.stack([torch.as_tensor(one) for one in made])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"transform must give tensors or arrays of one shape: {str(error).splitlines()[0]}"
            ) from None


class OwnBatches:
    """Epoch after epoch of a caller's data, under generators that depend on (seed, epoch) alone.

    It is at batch `taken` of epoch `epoch`. What is interrupted between `next` and `take` is begun
    again: the epoch is read once more from its start, up to the batches that were taken. `digest`
    is a hash of these, by which data that do not repeat are found.

    A generator that a DataLoader or its sampler has of its own is used in the same way: what it
    draws then depends on its seed too. Where there is a method `set_epoch`, it is called.
    """

    def __init__(self, data: Iterable[Any], seed: int, device: torch.device) -> None:
        if isinstance(data, Iterator):
            raise ValueError(
                "data is an iterator, which can be passed through once only: give a DataLoader or "
                "another object that can be iterated over again for each epoch"
            )
        if not isinstance(data, Iterable) or isinstance(data, dict | str):
            raise ValueError(
                f"data must be an iterable of batches, not {type(data).__name__}: {EXPECTED}"
            )
        self.data, self.seed, self.device = data, seed, device
        self.epoch, self.taken, self.digest = 0, 0, ""
        self._left: Iterator[Any] | None = None  # the rest of this epoch, once it is begun
        self._given = False  # whether a batch was asked for and is not yet taken
        self._next_digest = ""  # with that batch
        sampler, batches = (getattr(data, name, None) for name in ("sampler", "batch_sampler"))
        self._parts = [data, sampler, batches, getattr(batches, "sampler", None)]
        found = [getattr(part, "generator", None) for part in self._parts]
        own = {id(one): one for one in found if isinstance(one, torch.Generator)}
        self._generators = list(own.values())

    def next(self) -> tuple[list[Tensor], Tensor | None] | None:
        """The K views (B, ...) and labels (B,) of the next batch, as the data give them.

        None at the end of an epoch; the next one is of the epoch after. Raises ValueError for
        batches of another form, and for an epoch without batches.
        """
        if self._left is None or self._given:
            self.begin()
        self._given = True
        batch = self._read()
        if batch is _END:
            if not self.taken:
                raise ValueError(f"data gives no batch in epoch {self.epoch}")
            self.epoch, self.taken, self.digest = self.epoch + 1, 0, ""
            self._left, self._given = None, False
            return None
        try:
            views, labels = views_and_labels(batch)
        except ValueError as error:
            raise ValueError(f"batch {self.taken} of epoch {self.epoch}: {error}") from None
        self._next_digest = _chained(self.digest, views, labels)
        return views, labels

    def take(self) -> None:
        """The batch that `next` gave is done with."""
        self.taken, self.digest, self._given = self.taken + 1, self._next_digest, False

    def begin(self) -> None:
        """Begin the epoch, and pass over the batches of it that were taken.

        Raises ValueError when these are not the ones that were taken.
        """
        seeds = [one.initial_seed() for one in self._generators]
        self._stream = Stream(
            self.device, "own data", self.seed, self.epoch, *seeds, more=self._generators
        )
        for part in self._parts:
            if set_epoch := getattr(part, "set_epoch", None):
                set_epoch(self.epoch)
        with self._stream:
            self._left = iter(self.data)
        digest = ""
        for _ in range(self.taken):
            batch = self._read()
            digest = "" if batch is _END else _chained(digest, *views_and_labels(batch))
        if digest != self.digest:
            raise ValueError(
                f"data gives other batches in epoch {self.epoch} than when it was first read: draw "
                "from torch's generators alone, or give the data with which the run began"
            )
        self._given = False

    def _read(self) -> Any:
        assert self._left is not None
        with self._stream:
            return next(self._left, _END)

    def state(self) -> dict[str, Any]:
        """Where it is. Raises ValueError where an epoch's batches depend on those before it."""
        if getattr(self.data, "persistent_workers", False):
            raise ValueError(
                "persistent workers of a DataLoader keep random numbers from epoch to epoch, so "
                "that a run cannot be continued: set persistent_workers=False"
            )
        return {"epoch": self.epoch, "taken": self.taken, "digest": self.digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was. Raises ValueError as `begin` does."""
        self.epoch, self.taken, self.digest = state["epoch"], state["taken"], state["digest"]
        self.begin()


def views_and_labels(batch: Any) -> tuple[list[Tensor], Tensor | None]:
    """K ≥ 2 views (B, ...) and labels (B,) of a batch; raises ValueError for another form."""
    if not isinstance(batch, list | tuple) or not batch:
        raise ValueError(f"{_described(batch)} does not fit: {EXPECTED}")
    *parts, last = batch
    labels = None
    if getattr(last, "ndim", None) == 1:
        labels = last
    else:
        parts.append(last)
    if len(parts) == 1 and (labels is not None or isinstance(parts[0], list | tuple)):
        parts = list(parts[0])  # stacked views, or a list of them
    shapes = {tuple(getattr(part, "shape", ())) for part in parts}
    shape = next(iter(shapes), ())
    fits = len(parts) > 1 and len(shapes) == 1 and len(shape) > 1
    if not fits or (labels is not None and len(labels) != shape[0]):
        raise ValueError(f"{_described(batch)} does not fit: {EXPECTED}")
    if shape[0] < 2:
        raise ValueError("one image has no negatives: use larger batches")
    views = [torch.as_tensor(part) for part in parts]
    return views, None if labels is None else _labels(labels)


def to_views(views: list[Tensor], device: torch.device) -> Tensor:
    """(K*B, ...) on the device: first all first views, then all second ones."""
    return torch.cat([to_device(view, device) for view in views])


def _labels(labels: Any) -> Tensor:
    found = torch.as_tensor(labels)
    if found.is_floating_point() or found.is_complex():
        raise ValueError(f"labels are {found.dtype}: give the number of each image's class")
    return found.long()


def _described(batch: Any) -> str:
    if isinstance(batch, list | tuple):
        return f"({', '.join(map(_described, batch[:4]))}{', …' if len(batch) > 4 else ''})"
    shape = getattr(batch, "shape", None)
    return type(batch).__name__ if shape is None else f"{type(batch).__name__} {tuple(shape)}"


def _chained(digest: str, views: list[Tensor], labels: Tensor | None) -> str:
    """`digest`, continued by the first image of each view, and labels, where these are on a CPU.

    A whole batch would take as long as a small network, and the copy from a GPU would wait for it.
    """
    chain = hashlib.sha256(digest.encode())
    for tensor in (*(view[0] for view in views), *([] if labels is None else [labels])):
        if tensor.device.type == "cpu":
            chain.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return chain.hexdigest()

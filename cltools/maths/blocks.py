"""Features (N, d) read in blocks of rows, from memory or from a file, onto any device.

Measures of N images must not need memory for all of them. They take a `RowSource`, which can be
larger than memory, and read it block by block.
"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

CPU = torch.device("cpu")
BLOCK_BYTES = 64 << 20  # of one block of rows, as float64
# Of a block that several operations read in turn, or whose rows are only added up: it stays in the
# cache of a CPU.
CACHE_BYTES = 2 << 20


class RowSource(Protocol):
    """Rows (N, d) of numbers: an array, a tensor, or what reads them from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""

    @property
    def dtype(self) -> Any:
        """Of numpy or torch."""

    def __getitem__(self, rows: slice, /) -> Any:
        """These rows, as an array or tensor (n, d)."""


Features = ArrayLike | Tensor | RowSource  # (N, d) in memory or in a file


def as_rows(name: str, features: Features) -> RowSource:
    """The features as something that rows can be read from; what is in a file stays there.

    Raises:
        ValueError: unless they are real, (N, d) and not empty; the message has the name.
    """
    rows: RowSource = features if _is_source(features) else np.asarray(features)
    if len(rows.shape) != 2 or 0 in rows.shape or not _is_real(rows.dtype):
        raise ValueError(
            f"features of {name!r} must be a real array (images, features) with at least one of"
            f" each, not {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows


def _is_source(x: object) -> TypeGuard[RowSource]:
    return all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__"))


def _is_real(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return not dtype.is_complex and dtype != torch.bool
    return np.dtype(dtype).kind in "fiu"


def is_float32(x: RowSource) -> bool:
    """Whether the numbers are stored in float32 or in half precision, so that float32 does."""
    return str(x.dtype).endswith(("float16", "float32"))


def is_float64(x: RowSource) -> bool:
    """Whether the numbers are stored in float64."""
    return str(x.dtype).endswith("float64")


def blocks_of(n: int, d: int, block_bytes: int | None = None) -> list[slice]:
    """Slices that together cover n rows of d numbers (float64).

    Each has at most `block_bytes` bytes, by default `BLOCK_BYTES`, and at least one row.
    """
    rows = max(1, (block_bytes or BLOCK_BYTES) // (8 * d))
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def working_bytes(device: torch.device) -> int:
    """Bytes that several operations should read in turn: on a CPU, what stays in its cache."""
    return CACHE_BYTES if device.type == "cpu" else BLOCK_BYTES


def read(
    x: RowSource, rows: slice, device: torch.device = CPU, dtype: torch.dtype = torch.float64
) -> Tensor:
    """These rows (n, d) on the device. They may share memory with x: do not change them."""
    part = x[rows]
    if isinstance(part, np.ndarray):  # torch takes no reversed and no read-only arrays
        part = np.require(part, requirements=["C", "W"])
    return torch.as_tensor(part).to(device, dtype)


def take(
    x: RowSource,
    rows: NDArray[np.intp],
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Single rows (n, d) by their numbers, in ascending order, in one pass over x."""
    found = torch.empty(len(rows), x.shape[1], dtype=dtype, device=device)
    for part in blocks_of(*x.shape):
        first, last = np.searchsorted(rows, [part.start, part.stop])
        if first < last:
            found[first:last] = read(x, part)[torch.from_numpy(rows[first:last] - part.start)].to(
                device, dtype
            )
    return found


def each_block(
    x: RowSource,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float64,
    block_bytes: int | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """The rows of x in order, as (place, rows (n, d) on the device); blocks as in `blocks_of`."""
    for part in blocks_of(x.shape[0], x.shape[1], block_bytes):
        yield part, read(x, part, device, dtype)


class SomeRows:
    """Some rows of a source, by their numbers in ascending order; read when they are asked for."""

    def __init__(self, x: RowSource, rows: NDArray[np.intp]) -> None:
        self.shape = len(rows), x.shape[1]
        self.dtype = torch.float64
        self._x, self._rows = x, rows

    def __getitem__(self, rows: slice) -> Tensor:
        return take(self._x, self._rows[rows])

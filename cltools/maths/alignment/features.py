"""Checks of features (N, d) of N images and of their classes, and division of rows by norms."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cltools.maths.blocks import CACHE_BYTES, CPU, Features, RowSource, as_rows, blocks_of, read

Vector = NDArray[np.float64]


def zero_norm_rows(features: Mapping[str, Features]) -> dict[str, int]:
    """Number of rows of each (N, d) array with norm 0, which have no cosine: name -> count."""
    counts = {}
    for name, x in features.items():
        rows = as_rows(name, x)
        parts = chunks_of(*rows.shape)
        counts[name] = sum(int((~read(rows, part).any(dim=1)).sum()) for part in parts)
    return counts


def chunks_of(n: int, d: int) -> list[slice]:
    """Slices that together cover n rows of d numbers, for what takes little time for each row."""
    return blocks_of(n, d, CACHE_BYTES)


def squares(name: str, x: RowSource, device: torch.device = CPU) -> Tensor:
    """‖x_i‖² (N,) of the rows, on the device.

    Raises ValueError for NaN, infinity or numbers whose squares overflow; it has the name, if any.
    """
    found = torch.empty(x.shape[0], dtype=torch.float64, device=device)
    for part in chunks_of(*x.shape):
        block = read(x, part, device)
        torch.linalg.vecdot(block, block, out=found[part])
    if not torch.isfinite(found).all():
        of = f" of {name!r}" if name else ""
        raise ValueError(f"features{of} hold NaN, infinity or numbers above 1e150")
    return found


def inverse_norms(square: Tensor) -> Tensor:
    """1 / ‖x_i‖ of each row from its ‖x_i‖², and 0 for a row of norm 0."""
    return torch.where(square > 0, square.sqrt().reciprocal(), 0.0)


def unit_rows(x: Features) -> NDArray[np.float64]:
    """Divide each row of an (N, d) array by its norm; a row of norm 0 stays 0.

    Raises:
        ValueError: not a real (N, d) array, empty, or with numbers whose squares overflow.
    """
    rows = as_rows("x", x)
    scale = inverse_norms(squares("x", rows))
    unit = torch.empty(tuple(rows.shape), dtype=torch.float64)
    for part in chunks_of(*rows.shape):
        torch.mul(read(rows, part), scale[part, None], out=unit[part])
    found: NDArray[np.float64] = unit.numpy()
    return found


def same_images(features: Mapping[str, Features]) -> dict[str, RowSource]:
    """The features as sources of rows; raises ValueError unless all have the same N."""
    sources = {name: as_rows(name, x) for name, x in features.items()}
    counts = {name: x.shape[0] for name, x in sources.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"representations differ in their number of images: {counts}")
    return sources


def class_index(labels: ArrayLike, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Class number 0..C-1 of each image (N,), and number of images of each class (C,).

    Raises ValueError for labels that are not one per image.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels of shape {labels.shape} are not one for each of {n} images")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index, counts

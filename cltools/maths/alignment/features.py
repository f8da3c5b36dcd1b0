"""Checked features (N, d) of N images, unit rows, and the classes of images."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.floating | np.integer]  # (N, d), as they were given
BLOCK = 2048  # rows per matrix product


def zero_norm_rows(features: Mapping[str, ArrayLike]) -> dict[str, int]:
    """How many rows of each (N, d) array have norm 0, and so no cosine: name -> count."""
    return {name: int((~np.asarray(x).any(axis=1)).sum()) for name, x in features.items()}


def two_dimensional(name: str, features: ArrayLike) -> Matrix:
    x = np.asarray(features)
    if x.ndim != 2 or x.size == 0 or x.dtype.kind not in "fiu":
        raise ValueError(
            f"features of {name!r} must be a real array (images, features) with at least one of"
            f" each, not {x.dtype} of shape {x.shape}"
        )
    return x


def centre_rows(
    name: str, x: Matrix, blocks: list[slice], cosine: bool
) -> tuple[Vector, Vector, Vector]:
    """Mean over images of the scaled rows, the factor of each row, and their ‖x_i‖²."""
    square, scale = np.empty(len(x)), np.ones(len(x))
    total = np.zeros(x.shape[1])
    for part in blocks:
        values = x[part].astype(np.float64, copy=False)
        np.einsum("ij,ij->i", values, values, out=square[part])
        if not np.isfinite(square[part]).all():
            raise ValueError(f"features of {name!r} hold NaN, infinity or numbers above 1e150")
        if cosine:
            norm = np.sqrt(square[part])
            square[part] = norm > 0
            np.divide(square[part], norm, out=scale[part], where=norm > 0)
            scale[part][norm == 0] = 0
        total += scale[part] @ values
    return total / len(x), scale, square


def unit_rows(x: ArrayLike) -> NDArray[np.float64]:
    """Divide each row of an (N, d) array by its norm; a row of norm 0 stays 0.

    Raises:
        ValueError: not a real (N, d) array, empty, or with numbers that cannot be squared.
    """
    rows = two_dimensional("x", x)
    _, scale, _ = centre_rows("x", rows, blocks_of(len(rows)), cosine=True)
    unit: NDArray[np.float64] = rows * scale[:, None]
    return unit


def blocks_of(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def same_images(a: ArrayLike, b: ArrayLike) -> dict[str, Matrix]:
    arrays = {name: two_dimensional(name, x) for name, x in (("a", a), ("b", b))}
    if len(arrays["a"]) != len(arrays["b"]):
        raise ValueError(
            f"representations differ in their number of images:"
            f" {len(arrays['a'])} and {len(arrays['b'])}"
        )
    return arrays


def class_index(labels: ArrayLike, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Class number of each image (N,), and images of each class (C,)."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels of shape {labels.shape} are not one for each of {n} images")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index, counts

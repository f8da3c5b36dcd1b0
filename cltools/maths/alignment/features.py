"""Checks of features (N, d) of N images and of their classes, and division of rows by norms."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.floating | np.integer]  # (N, d), in the type that was given
BLOCK = 2048  # rows per matrix product


def zero_norm_rows(features: Mapping[str, ArrayLike]) -> dict[str, int]:
    """Number of rows of each (N, d) array with norm 0, which have no cosine: name -> count."""
    return {name: int((~np.asarray(x).any(axis=1)).sum()) for name, x in features.items()}


def two_dimensional(name: str, features: ArrayLike) -> Matrix:
    """The features as an array; raises ValueError unless it is real, (N, d) and not empty."""
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
    """(mean (d,) of the scaled rows, factor (N,) of each row, ‖x_i‖² (N,) of the scaled rows).

    With `cosine` the factors are 1 / ‖x_i‖, and 0 for a row of norm 0; otherwise they are 1. Raises
    ValueError for NaN, infinity or numbers whose squares overflow.
    """
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
        ValueError: not a real (N, d) array, empty, or with numbers whose squares overflow.
    """
    rows = two_dimensional("x", x)
    _, scale, _ = centre_rows("x", rows, blocks_of(len(rows)), cosine=True)
    unit: NDArray[np.float64] = rows * scale[:, None]
    return unit


def blocks_of(n: int) -> list[slice]:
    """Slices of at most `BLOCK` rows that together cover n rows."""
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def same_images(a: ArrayLike, b: ArrayLike) -> dict[str, Matrix]:
    """Both features as arrays, named "a" and "b"; raises ValueError unless they have equal N."""
    arrays = {name: two_dimensional(name, x) for name, x in (("a", a), ("b", b))}
    if len(arrays["a"]) != len(arrays["b"]):
        raise ValueError(
            f"representations differ in their number of images:"
            f" {len(arrays['a'])} and {len(arrays['b'])}"
        )
    return arrays


def class_index(labels: ArrayLike, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Class number 0..C-1 of each image (N,), and number of images of each class (C,).

    Raises ValueError for labels that are not one per image.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels of shape {labels.shape} are not one for each of {n} images")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index, counts

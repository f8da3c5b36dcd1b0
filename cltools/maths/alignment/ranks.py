"""Rank correlation of the distances of two representations: Spearman RSA."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import Vector, same_images, unit_rows

PAIR_BLOCK = 1 << 16  # image pairs whose features are copied at a time
PAIR_GROUPS = 20  # groups of pairs, for the standard error of `spearman_rsa`


class Spearman(NamedTuple):
    """Spearman RSA over `pairs` image pairs, and its standard error due to sampling pairs."""

    value: float
    standard_error: float
    pairs: int


def spearman_rsa(a: ArrayLike, b: ArrayLike, pairs: int = 1_000_000, seed: int = 0) -> Spearman:
    """Spearman rank correlation of the cosine distances of two representations.

    Over all N(N-1)/2 image pairs when these are at most `pairs`, otherwise over a sample of them
    without duplicates. Ties get their average rank.

    The standard error is that of sampling pairs of these images, 0 when all pairs are used. The
    sample is split at random into `PAIR_GROUPS` groups. Their standard deviation is scaled to the
    size of the whole sample, and by sqrt(1 - sampled / all), since pairs are drawn without
    replacement. The error says nothing about other images: for that, pass this function to
    `intervals.subsampling_interval`.

    Args:
        a, b: (N, d) and (N, d').
        pairs: most pairs to use, at least 3 per group (60).
        seed: draws the pairs and the groups.

    Returns:
        (value in [-1, 1], standard error, pairs used). NaN where undefined: fewer than 3 images,
        or one of the two has all its distances equal.

    Raises:
        ValueError: features of unequal N or with numbers whose squares overflow, or too few pairs.
    """
    if pairs < 3 * PAIR_GROUPS:
        raise ValueError(f"at least {3 * PAIR_GROUPS} pairs are needed, not {pairs}")
    arrays = same_images(a, b)
    n = len(arrays["a"])
    total = n * (n - 1) // 2
    if total <= pairs:
        chosen = np.arange(total)
    else:
        rng = np.random.default_rng(seed)
        # Without shuffling, `choice` avoids a list of all pairs where that would be long. Sorted
        # pairs have their features next to each other in memory.
        chosen = np.sort(rng.choice(total, pairs, replace=False, shuffle=False))
    x, y = (pair_cosines(unit_rows(c), chosen) for c in arrays.values())
    value = _spearman(x, y)
    if total <= pairs:
        return Spearman(value, 0.0 if value == value else float("nan"), total)
    groups = np.array_split(rng.permutation(pairs), PAIR_GROUPS)
    scatter = np.std([_spearman(x[g], y[g]) for g in groups], ddof=1)
    return Spearman(value, float(scatter * np.sqrt((1 - pairs / total) / PAIR_GROUPS)), pairs)


def pair_cosines(x: NDArray[np.float64], chosen: NDArray[np.integer]) -> Vector:
    """Cosines of the image pairs with numbers `chosen` in 0 … N(N-1)/2 - 1, x having unit rows."""
    # On a circle of the N images, pair k is image k mod N and the one k // N + 1 places further on.
    # This numbers every pair once; for even N the last round has only half of the pairs.
    n = len(x)
    cosines = np.empty(len(chosen))
    for start in range(0, len(chosen), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        round_, first = np.divmod(chosen[part], n)
        second = (first + round_ + 1) % n
        np.einsum("ij,ij->i", x[first], x[second], out=cosines[part])
    return cosines.round(14)  # so that rounding errors break no ties


def _spearman(x: Vector, y: Vector) -> float:
    """Pearson correlation of average ranks; the same for distances as for cosines."""
    from scipy.stats import rankdata

    if len(x) < 2:
        return float("nan")
    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")

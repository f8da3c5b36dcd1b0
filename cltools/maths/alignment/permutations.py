"""Is alignment above chance? Tests that permute the images of one representation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import (
    BLOCK,
    Matrix,
    Vector,
    blocks_of,
    centre_rows,
    class_index,
    same_images,
)
from cltools.maths.alignment.measures import MEASURES, RSA, Measure, measure_of
from cltools.maths.alignment.moments import Rows, moments_of

TIE = 1e-12  # values this close count as equal, since the order of a sum changes its last digits


@dataclass(frozen=True)
class PermutationTest:
    """A value, and the values that random permutations give."""

    value: float
    null: Vector  # (draws,) values under the null hypothesis

    @property
    def mean(self) -> float:
        """Mean of the values under the null hypothesis."""
        return float(self.null.mean())

    @property
    def p(self) -> float:
        """One-sided: (1 + #{null ≥ value}) / (draws + 1), in (0, 1]; NaN if the value is."""
        if np.isnan(self.value):
            return float("nan")
        reached = np.count_nonzero(self.null >= self.value - TIE)
        return float(1 + reached) / (len(self.null) + 1)


def within_class_null(
    a: ArrayLike,
    b: ArrayLike,
    labels: ArrayLike,
    draws: int = 199,
    seed: int = 0,
    measures: Iterable[Measure] = MEASURES,
) -> dict[Measure, PermutationTest]:
    """Alignment of a and b when the images of b are shuffled within their classes.

    The mean is the alignment that comes from class clusters alone. The p-value tests whether a and
    b agree on more than the classes. A draw takes one product CᵀC', O(N d d'). To test
    `residual_alignment`, pass residuals.

    Args:
        a, b: (N, d) and (N, d').
        labels: (N,) class labels of any kind.
        draws: permutations, above 0; the smallest possible p is 1 / (draws + 1).
        seed: draws the permutations.
        measures: which of `measures.MEASURES` to test; permutations are the same for all.

    Returns:
        measure -> value, null values, their mean and p. All NaN where the measure is undefined.

    Raises:
        ValueError: as `alignment`; labels that are not one per image; draws below 1.
    """
    arrays = same_images(a, b)
    n = len(arrays["a"])
    index, _ = class_index(labels, n)
    measures = list(measures)
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {list(MEASURES)}")
    if draws < 1:
        raise ValueError(f"a permutation test needs at least one draw, not {draws}")

    values: dict[Measure, Vector] = {}
    for cosine in (True, False):
        # `raw_*` measures take features as they are, all others take rows of norm 1.
        chosen = [m for m in measures if m[1].startswith("raw") != cosine]
        if chosen:
            orders = within_class_orders(index, draws, np.random.default_rng(seed))
            values |= _permuted(arrays, orders, chosen, cosine)
    return {m: PermutationTest(float(values[m][0]), values[m][1:]) for m in measures}


def mantel_test(a: ArrayLike, b: ArrayLike, draws: int = 999, seed: int = 0) -> PermutationTest:
    """Is the Pearson RSA of a and b above chance? Mantel's test (1967), which permutes images.

    The N(N-1)/2 distances between N images are not independent, so that the usual p-value of their
    correlation is wrong. Shuffling the images of b keeps this dependence.

    Args:
        a, b: (N, d) and (N, d').
        draws: permutations, above 0.
        seed: draws the permutations.

    Returns:
        RSA (`alignment`'s "pearson_cosine"), its null values, their mean and one-sided p.

    Raises:
        ValueError: as `within_class_null`.
    """
    one_class = np.zeros(np.shape(a)[:1], dtype=int)
    return within_class_null(a, b, one_class, draws, seed, [RSA])[RSA]


def within_class_orders(
    index: NDArray[np.intp], draws: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """The identity, then `draws` permutations (N,) that keep every image in its class."""
    yield np.arange(len(index))
    places = np.argsort(index, kind="stable")
    for _ in range(draws):
        order = np.empty_like(places)
        order[places] = np.lexsort((rng.random(len(index)), index))
        yield order


def _permuted(
    arrays: dict[str, Matrix],
    orders: Iterable[NDArray[np.intp]],
    measures: list[Measure],
    cosine: bool,
) -> dict[Measure, Vector]:
    """measure -> its value for each order of b's rows."""
    pair, float64 = ("a", "b"), np.dtype(np.float64)
    rows, moments = moments_of(arrays, [pair], cosine, BLOCK, float64)
    centred = {}
    for name, x in arrays.items():
        centre, scale, _ = centre_rows(name, x, blocks_of(len(x)), cosine)
        centred[name] = x * scale[:, None] - centre
    values: dict[Measure, list[float]] = {m: [] for m in measures}
    for order in orders:
        cross = centred["a"].T @ centred["b"][order]
        shuffled = Rows(rows["b"].square[order], rows["b"].spread[order])
        table = {"a": rows["a"], "b": shuffled}, moments | {pair: float(np.vdot(cross, cross))}
        for m in measures:
            values[m].append(measure_of(m, pair, *table, float64))
    return {m: np.array(v) for m, v in values.items()}

"""Intervals for statistics of images, by subsampling without replacement.

A bootstrap draws some images twice. A pair of an image and its copy has distance 0 in every
representation, so that CKA (centered kernel alignment) and RSA (representational similarity
analysis) come out far too high. Subsamples have no copies.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment import MEASURES, Measure, Pair, alignment

FEWEST_IMAGES = 4  # a subsample draws two images and leaves two out


class Interval(NamedTuple):
    """A statistic of all images and its interval: floats, or arrays if the statistic is one."""

    value: float | NDArray[np.float64]
    low: float | NDArray[np.float64]
    high: float | NDArray[np.float64]


def subsampling_interval(
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    n: int,
    level: float = 0.9,
    draws: int = 200,
    fraction: float = 0.5,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of n images, for images drawn from a larger population.

    Let θ_b be the statistic of b images drawn without replacement. Suppose that each image
    contributes to it additively, with variance σ², up to terms of order 1/n. Then
    Var(θ_n) = σ²/n. Given the n images, Var(θ_b) = σ² (1/b - 1/n), as in any finite population. So

        sqrt(b / (n - b)) (θ_b - mean θ_b)   has the spread of   θ_n - E θ_n

    This is the scaling of the delete-d jackknife (Shao and Wu 1989); the factor is 1 for half
    samples. The interval is θ_n minus the upper and the lower quantile of these deviations, as in
    Politis, Romano and Wolf 1999. It covers E θ_n, the average over other sets of n images. A bias
    that depends on n is not removed: this is why deviations are taken from the mean of the θ_b.

    Where the additive part vanishes, the interval is too wide, by a factor of sqrt(3) at fraction
    0.5. An example is CKA of unrelated features, whose sd is of order 1/n instead of 1/sqrt(n).

    Args:
        statistic: takes image numbers (m,), ascending and without duplicates; returns a number or
            an array of fixed shape.
        n: images, at least 4.
        level: coverage probability of the interval, in (0, 1).
        draws: number of subsamples, at least 2.
        fraction: b / n, in (0, 1); b is rounded, and at least 2 images are drawn and 2 left out.
        seed: draws the subsamples.

    Returns:
        (value of all images, low, high). The limits are not clipped to the range of the statistic.
        They are NaN where the statistic is NaN or infinite on any subsample.

    Raises:
        ValueError: arguments outside these ranges.
    """
    if n < FEWEST_IMAGES or draws < 2 or not 0 < level < 1 or not 0 < fraction < 1:
        raise ValueError(
            f"n ≥ 4, draws ≥ 2, level and fraction in (0, 1) are needed, not {n=}, {draws=},"
            f" {level=}, {fraction=}"
        )
    size = min(max(round(fraction * n), 2), n - 2)
    rng = np.random.default_rng(seed)
    value = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    drawn = np.array(
        [statistic(np.sort(rng.permutation(n)[:size])) for _ in range(draws)], dtype=np.float64
    )
    tails = [(1 + level) / 2, (1 - level) / 2]
    with np.errstate(invalid="ignore"):  # infinity minus infinity: the limits become NaN
        deviations = np.sqrt(size / (n - size)) * (drawn - drawn.mean(axis=0))
        low, high = value - np.quantile(deviations, tails, axis=0)
    if value.ndim == 0:
        return Interval(float(value), float(low), float(high))
    return Interval(value, low, high)


def accuracy_interval(accuracy: float, n: int, level: float = 0.9) -> tuple[float, float]:
    """Wilson's interval of the accuracy of one fixed classifier over n images.

    Args:
        accuracy: share of right answers, in [0, 1]; NaN gives NaN.
        n: images, 1 or more.
        level: coverage probability of the interval, in (0, 1).

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: arguments outside these ranges.
    """
    from scipy.stats import binomtest

    if np.isnan(accuracy):
        return float("nan"), float("nan")
    found = binomtest(round(accuracy * n), n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def alignment_intervals(
    features: Mapping[str, ArrayLike],
    pairs: Iterable[Pair] | None = None,
    measures: Iterable[Measure] = MEASURES,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> dict[Pair, dict[Measure, Interval]]:
    """`alignment` with intervals by `subsampling_interval`, each draw taking half the images.

    Each subsample is used for all pairs and measures. That takes one pass over its rows and no N×N
    matrix.

    Args:
        features, pairs, measures: as for `alignment`.
        level, draws, seed: as for `subsampling_interval`.

    Returns:
        pair -> measure -> (value, low, high). The intervals of biased measures keep the bias, so
        that they do not cover the value that infinitely many images would give.

    Raises:
        ValueError: as `alignment` and `subsampling_interval`.
    """
    arrays = {name: np.asarray(x) for name, x in features.items()}
    pairs = list(combinations(arrays, 2)) if pairs is None else [(a, b) for a, b in pairs]
    measures = list(measures)
    if not pairs:
        return {}

    def values(images: NDArray[np.intp]) -> NDArray[np.float64]:
        table = alignment({name: x[images] for name, x in arrays.items()}, pairs, measures)
        return np.array([[table[pair][m] for m in measures] for pair in pairs])

    alignment(arrays, pairs, measures[:0])  # checks the arguments before rows are taken
    n = len(arrays[pairs[0][0]])
    table = np.stack(subsampling_interval(values, n, level, draws, seed=seed), axis=-1)
    return {
        pair: {m: Interval(*map(float, table[i, j])) for j, m in enumerate(measures)}
        for i, pair in enumerate(pairs)
    }

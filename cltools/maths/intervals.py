"""Intervals for statistics of images, by subsampling without replacement.

A bootstrap draws some images twice. A pair of an image and its copy has distance 0 in every
representation, so that CKA (centered kernel alignment) and RSA (representational similarity
analysis) come out far too high. Subsamples have no copies.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment import MEASURES, Measure, Pair, alignment
from cltools.maths.alignment.features import same_images
from cltools.maths.alignment.measures import known, measure_of, pairs_of, takes_cosines
from cltools.maths.alignment.samples import Sample, sample_of, sampled_images
from cltools.maths.blocks import CPU, Features

FEWEST_IMAGES = 4  # a subsample draws two images and leaves two out


class Interval(NamedTuple):
    """A statistic of all images and its interval: floats, or arrays if the statistic is one."""

    value: float | NDArray[np.float64]
    low: float | NDArray[np.float64]
    high: float | NDArray[np.float64]


def subsets(n: int, draws: int = 200, fraction: float = 0.5, seed: int = 0) -> NDArray[np.intp]:
    """The image numbers (draws, b) of random subsamples of n images, ascending, for `interval_of`.

    Args:
        n: images, at least 4.
        draws: number of subsamples, at least 2.
        fraction: b / n, in (0, 1); b is rounded, and at least 2 images are drawn and 2 left out.
        seed: draws the subsamples.

    Raises:
        ValueError: arguments outside these ranges.
    """
    if n < FEWEST_IMAGES or draws < 2 or not 0 < fraction < 1:
        raise ValueError(
            f"n ≥ 4, draws ≥ 2, fraction in (0, 1) are needed, not {n=}, {draws=}, {fraction=}"
        )
    size = min(max(round(fraction * n), 2), n - 2)
    rng = np.random.default_rng(seed)
    return np.sort([rng.permutation(n)[:size] for _ in range(draws)], axis=1)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level in (0, 1) is needed, not {level}")


def interval_of(
    value: ArrayLike, drawn: ArrayLike, size: int, n: int, images: int, level: float = 0.9
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

    The n images may themselves be a random sample of N, of which the value is. Then
    Var(θ_N) = σ²/N is wanted instead, and

        sqrt(n/N) sqrt(b / (n - b)) (θ_b - mean θ_b)   has the spread of   θ_N - E θ_N

    Here the additive part must prevail at b images already. The sd of a biased measure changes with
    its bias, and so does that of a measure of class means with the images per class.

    Args:
        value: the statistic (…) of all images.
        drawn: (draws, …) the statistics of the subsamples that `subsets` draws.
        size: images b of a subsample.
        n: images that the subsamples are drawn from.
        images: N, of which the n are a random sample; n if they are all.
        level: coverage probability of the interval, in (0, 1).

    Returns:
        (value of all images, low, high). The limits are not clipped to the range of the statistic.
        They are NaN where the statistic is NaN or infinite on any subsample.

    Raises:
        ValueError: a level outside this range.
    """
    _check_level(level)
    whole, table = np.asarray(value, dtype=np.float64), np.asarray(drawn, dtype=np.float64)
    tails = [(1 + level) / 2, (1 - level) / 2]
    with np.errstate(invalid="ignore"):  # infinity minus infinity: the limits become NaN
        scale = np.sqrt(n / images * size / (n - size))
        low, high = whole - np.quantile(scale * (table - table.mean(axis=0)), tails, axis=0)
    if whole.ndim == 0:
        return Interval(float(whole), float(low), float(high))
    return Interval(whole, low, high)


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
    features: Mapping[str, Features],
    pairs: Iterable[Pair] | None = None,
    measures: Iterable[Measure] = MEASURES,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
    device: torch.device = CPU,
) -> dict[Pair, dict[Measure, Interval]]:
    """`alignment` with intervals as `interval_of`, each draw taking half the images.

    Each subsample is used for all pairs and measures. Of more than `samples.SAMPLED_IMAGES` images,
    as many are drawn at random, and the subsamples are drawn from these.

    Args:
        features, pairs, measures, device: as for `alignment`.
        level, draws, seed: as for `interval_of` and `subsets`.

    Returns:
        pair -> measure -> (value, low, high). The intervals of biased measures keep the bias, so
        that they do not cover the value that infinitely many images would give.

    Raises:
        ValueError: as `alignment`, `interval_of` and `subsets`.
    """
    sources = same_images(features)
    pairs = pairs_of(sources, pairs)
    measures = known(measures)
    if not pairs:
        return {}
    values = alignment(sources, pairs, measures, device)
    n = sources[pairs[0][0]].shape[0]
    names = dict.fromkeys(name for pair in pairs for name in pair)
    found: dict[Pair, dict[Measure, Interval]] = {pair: {} for pair in pairs}
    for cosine in (True, False):
        if chosen := [m for m in measures if takes_cosines(m) == cosine]:
            sample = sample_of(
                {name: sources[name] for name in names}, sampled_images(n), cosine, device
            )
            asked = {pair: {m: values[pair][m] for m in chosen} for pair in pairs}
            for pair, intervals in intervals_of(sample, n, asked, level, draws, seed).items():
                found[pair] |= intervals
    return {pair: {m: found[pair][m] for m in measures} for pair in pairs}


def intervals_of(
    sample: Sample,
    n: int,
    values: Mapping[Pair, Mapping[Measure, float]],
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> dict[Pair, dict[Measure, Interval]]:
    """What `alignment_intervals` returns, from the values of n images and a sample of them.

    The measures must all take cosines, or all features as they are, as the sample does.
    """
    _check_level(level)
    m = len(sample.images)
    drawn = subsets(m, draws, seed=seed)
    found: dict[Pair, dict[Measure, list[float]]] = {
        pair: {measure: [] for measure in asked} for pair, asked in values.items()
    }
    for table in sample.subsets(list(values), drawn):
        for pair, asked in found.items():
            for measure, drawn_values in asked.items():
                drawn_values.append(measure_of(measure, pair, table))
    return {
        pair: {
            measure: interval_of(values[pair][measure], drawn_values, drawn.shape[1], m, n, level)
            for measure, drawn_values in asked.items()
        }
        for pair, asked in found.items()
    }

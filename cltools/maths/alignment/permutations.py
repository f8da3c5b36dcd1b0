"""Is alignment above chance? Tests that permute the images of one representation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import Vector, class_index, same_images
from cltools.maths.alignment.measures import (
    MEASURES,
    RSA,
    Measure,
    known,
    measure_of,
    takes_cosines,
)
from cltools.maths.alignment.moments import Moments, Pair, Rows, Table
from cltools.maths.alignment.samples import Sample, sample_of, sampled_images
from cltools.maths.blocks import CPU, Features

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
    a: Features,
    b: Features,
    labels: ArrayLike,
    draws: int = 199,
    seed: int = 0,
    measures: Iterable[Measure] = MEASURES,
    device: torch.device = CPU,
) -> dict[Measure, PermutationTest]:
    """Alignment of a and b when the images of b are shuffled within their classes.

    The mean is the alignment that comes from class clusters alone. The p-value tests whether a and
    b agree on more than the classes. To test `residual_alignment`, pass residuals.

    Of more than `samples.SAMPLED_IMAGES` images, as many are drawn at random, and the value is of
    these too. The p-value stays exact. Biased CKA is larger than that of all images, since its bias
    grows with d/N.

    Args:
        a, b: (N, d) and (N, d').
        labels: (N,) class labels of any kind.
        draws: permutations, above 0; the smallest possible p is 1 / (draws + 1).
        seed: draws the permutations.
        measures: which of `measures.MEASURES` to test; permutations are the same for all.
        device: where products are made, in float64.

    Returns:
        measure -> value, null values, their mean and p. All NaN where the measure is undefined.

    Raises:
        ValueError: as `alignment`; labels that are not one per image; draws below 1.
    """
    sources = same_images({"a": a, "b": b})
    n = sources["a"].shape[0]
    index, _ = class_index(labels, n)
    measures = known(measures)
    images = sampled_images(n)
    found: dict[Measure, PermutationTest] = {}
    for cosine in (True, False):
        if chosen := [m for m in measures if takes_cosines(m) == cosine]:
            sample = sample_of(sources, images, cosine, device)
            found |= null_of(sample, ("a", "b"), index[images], draws, seed, chosen)
    return {m: found[m] for m in measures}


def mantel_test(
    a: Features, b: Features, draws: int = 999, seed: int = 0, device: torch.device = CPU
) -> PermutationTest:
    """Is the Pearson RSA of a and b above chance? Mantel's test (1967), which permutes images.

    The N(N-1)/2 distances between N images are not independent, so that the usual p-value of their
    correlation is wrong. Shuffling the images of b keeps this dependence.

    Args:
        a, b: (N, d) and (N, d').
        draws: permutations, above 0.
        seed: draws the permutations.
        device: where products are made, in float64.

    Returns:
        RSA (`alignment`'s "pearson_cosine"), its null values, their mean and one-sided p. Of many
        images, a sample is taken, as by `within_class_null`.

    Raises:
        ValueError: as `within_class_null`.
    """
    one_class = np.zeros(same_images({"a": a, "b": b})["a"].shape[0], dtype=np.intp)
    return within_class_null(a, b, one_class, draws, seed, [RSA], device)[RSA]


def null_of(
    sample: Sample,
    pair: Pair,
    index: NDArray[np.intp],
    draws: int,
    seed: int,
    measures: list[Measure],
) -> dict[Measure, PermutationTest]:
    """What `within_class_null` returns, from a sample; index (m,) are the classes of its images.

    The measures must all take cosines, or all features as they are, as the sample does.
    """
    if draws < 1:
        raise ValueError(f"a permutation test needs at least one draw, not {draws}")
    first, second = pair
    self_moments = {(name, name): sample.moment((name, name)) for name in pair}
    values: dict[Measure, list[float]] = {m: [] for m in measures}
    for order in within_class_orders(index, draws, np.random.default_rng(seed)):
        rows = sample.rows[second]
        shuffled = Rows(rows.square[order], rows.spread[order])
        table = Table(
            {first: sample.rows[first], second: shuffled},
            self_moments | {pair: sample.moment(pair, order)},
        )
        for m in measures:
            values[m].append(measure_of(m, pair, table))
    return {m: PermutationTest(v[0], np.array(v[1:])) for m, v in values.items()}


def null_mean(
    pair: Pair, moments: Moments, index: NDArray[np.intp], measures: Iterable[Measure]
) -> dict[Measure, float]:
    """The mean over all permutations within classes, which draws of them only estimate.

    Let S_ce be the sum of K over the images of classes c and e, and t_c that of its diagonal. A
    permutation puts each entry of a block of K' in every place as often, but for the diagonal:

        E ‖CᵀC'‖² = Σ_{c≠e} S_ce S'_ce / (n_c n_e)
                    + Σ_c [t_c t'_c / n_c + (S_cc - t_c) (S'_cc - t'_c) / (n_c (n_c - 1))]

    Everything else in the measures is linear in the numbers of each row of b, whose mean is that of
    their class.

    Args:
        pair: (a, b), where the images of b are permuted.
        moments: of these features with these classes.
        index: (N,) class number of each image.
        measures: all of features as in `moments`, which are raw or divided by their norms.
    """
    counts = np.bincount(index)
    rows = [moments.whole.rows[name] for name in pair]
    sums, diagonals = [], []
    for name, own in zip(pair, rows, strict=True):
        means = moments.classes[name] * counts[:, None]
        sums.append(means @ means.T)
        diagonals.append(np.bincount(index, own.spread))
    same = diagonals[0] * diagonals[1] / counts
    rest = np.prod([s.diagonal() - t for s, t in zip(sums, diagonals, strict=True)], axis=0)
    same += np.divide(rest, counts * (counts - 1), out=np.zeros(len(counts)), where=counts > 1)
    other = sums[0] * sums[1] / np.outer(counts, counts)
    moment = float(other.sum() - np.trace(other) + same.sum())
    averaged = Rows(*(
        (np.bincount(index, values) / counts)[index] for values in (rows[1].square, rows[1].spread)
    ))  # fmt: skip
    return {m: measure_of(m, pair, moments.whole, (moment, averaged)) for m in measures}


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

"""What an alignment value is made of: class clusters, chance, and the distance of similarities.

When features form class clusters, CKA and RSA are high for any two representations that separate
the classes, whatever they do inside a class. Two controls tell this apart: alignment of what is
left once the class means are removed (`residual_alignment`), and alignment after the images of
one representation are shuffled inside their classes (`within_class_null`).

P2 is arXiv 2510.08852; its corollaries turn ‖Σ - Σ'‖_F into lower bounds (`frobenius_gap`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment import (
    MEASURES,
    Measure,
    Pair,
    Vector,
    _centre,
    _moments,
    _pearson,
    _Rows,
    _two_dimensional,
    _value,
)

BLOCK = 2048  # rows per matrix product
PAIR_BLOCK = 1 << 16  # image pairs whose features are gathered at once
PAIR_GROUPS = 20  # groups of pairs behind the standard error of `spearman_rsa`
TIE = 1e-12  # values this close are equal: the order of a sum changes its last digits
RSA: Measure = ("rsa", "pearson_cosine")

# measure of `residual_alignment` -> measure whose inner product it takes, on residuals as they are
_RESIDUAL: dict[Measure, Measure] = {
    ("cka", "residual_biased"): ("cka", "raw_biased"),
    ("cka", "residual_debiased"): ("cka", "raw_debiased"),
    ("rsa", "residual_pearson"): RSA,
}
RESIDUAL_MEASURES: tuple[Measure, ...] = tuple(_RESIDUAL)


def unit_rows(x: ArrayLike) -> NDArray[np.float64]:
    """Divide each row of an (N, d) array by its norm; a row of norm 0 stays 0.

    Raises:
        ValueError: not a real (N, d) array, empty, or with numbers that cannot be squared.
    """
    x = _two_dimensional("x", x)
    return x * _centre("x", x, _blocks(len(x)), cosine=True)[1][:, None]


def residual(features: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """What is left of each image beyond its class: unit rows minus the mean of their class.

    With P the projection onto class means, inner products of the result are (I-P) K (I-P) for
    the cosine similarity matrix K.

    Args:
        features: (N, d).
        labels: (N,) class labels of any kind.

    Returns:
        (N, d), zero mean in every class. An image that is alone in its class, or equals its class
        mean up to rounding, is exactly 0.

    Raises:
        ValueError: as `unit_rows`, or labels that are not one per image.
    """
    x = unit_rows(features)
    index, counts = _classes(labels, len(x))
    order = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x -= (np.add.reduceat(x[order], starts) / counts[:, None])[index]
    # Otherwise collapsed classes would be compared by their rounding errors.
    x[np.linalg.norm(x, axis=1) <= 1e-12] = 0
    return x


def residual_alignment(
    features: Mapping[str, ArrayLike], labels: ArrayLike, pairs: Iterable[Pair] | None = None
) -> dict[Pair, dict[Measure, float]]:
    """Alignment beyond class clusters: CKA and RSA of (I-P) K (I-P) in the place of K.

    The residuals enter as they are. The cosine variants of `alignment` are not offered, as they
    would scale each residual to norm 1: that weighs images at their class mean like all others,
    and gives the classes new means, so that class clusters would come back.

    Args:
        features: name -> (N, d) array; row i is the same image everywhere, d may differ.
        labels: (N,) class labels of any kind.
        pairs: the pairs of names to compare; default every unordered pair, in order of `features`.

    Returns:
        pair -> measure -> value, NaN where it is undefined (as in `alignment`; for instance when
        one of the two has collapsed to its class means):
        ("cka", "residual_biased")    in [0, 1]; of unrelated residuals about d/(N-C+d)
        ("cka", "residual_debiased")  in [-1, 1]. Residuals of C classes have N-C degrees of
                                      freedom where the estimator counts N-1, which leaves about
                                      (C-1)/N of the bias of the former; `within_class_null` has
                                      no such bias and is the test.
        ("rsa", "residual_pearson")   Pearson correlation of the off-diagonal entries, in [-1, 1]

    Raises:
        ValueError: as `residual`, or a pair that names no features.
    """
    residuals = {name: residual(x, labels) for name, x in features.items()}
    names = list(residuals)
    if pairs is None:
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs = [(a, b) for a, b in pairs]
    if unknown := {name for pair in pairs for name in pair} - set(names):
        raise ValueError(f"pairs name {sorted(unknown)}, but there are only {sorted(names)}")
    if not pairs:
        return {}
    # Residuals have mean 0 already: centring changes nothing.
    table = _moments(residuals, pairs, False, BLOCK, np.dtype(np.float64))
    return {
        pair: {m: _value(like, pair, *table, np.dtype(np.float64)) for m, like in _RESIDUAL.items()}
        for pair in pairs
    }


@dataclass(frozen=True)
class PermutationTest:
    """A value beside the values that chance gives it."""

    value: float
    null: Vector  # (draws,) values under the null hypothesis

    @property
    def mean(self) -> float:
        """Mean of the null values: the height that needs no pairing of images."""
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

    The mean is the alignment that class clusters alone bring; the p-value tests whether a and b
    agree on more than the classes. Self terms do not change, so that a draw costs one product
    CᵀC', O(N d d'). (Shuffles of residuals give the null of `residual_alignment`.)

    Args:
        a, b: (N, d) and (N, d').
        labels: (N,) class labels of any kind.
        draws: permutations, above 0; the smallest possible p is 1 / (draws + 1).
        seed: draws the permutations.
        measures: which of `alignment.MEASURES` to test; all see the same permutations.

    Returns:
        measure -> value, null values, their mean and p. All NaN where the measure is undefined.

    Raises:
        ValueError: as `alignment`, labels that are not one per image, or draws below 1.
    """
    arrays = _same_images(a, b)
    n = len(arrays["a"])
    index, _ = _classes(labels, n)
    measures = list(measures)
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {list(MEASURES)}")
    if draws < 1:
        raise ValueError(f"a permutation test needs at least one draw, not {draws}")

    values: dict[Measure, Vector] = {}
    for cosine in (True, False):
        # `raw_*` measures are about features as they are, all others about unit rows.
        chosen = [m for m in measures if m[1].startswith("raw") != cosine]
        if chosen:
            orders = _within_class_orders(index, draws, np.random.default_rng(seed))
            values |= _permuted(arrays, orders, chosen, cosine)
    return {m: PermutationTest(float(values[m][0]), values[m][1:]) for m in measures}


def mantel_test(a: ArrayLike, b: ArrayLike, draws: int = 999, seed: int = 0) -> PermutationTest:
    """Is the Pearson RSA of a and b above chance? Permutes images, after Mantel (1967).

    The N(N-1)/2 entries of an RDM hang together by N images, so that the usual p-value of their
    correlation means nothing; shuffling the images of b keeps that dependence.

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


class Spearman(NamedTuple):
    """Spearman RSA over `pairs` image pairs; the error is that of sampling them."""

    value: float
    standard_error: float
    pairs: int


def spearman_rsa(a: ArrayLike, b: ArrayLike, pairs: int = 1_000_000, seed: int = 0) -> Spearman:
    """Spearman rank correlation of the cosine distances of two representations.

    Over all N(N-1)/2 image pairs when these are at most `pairs`, otherwise over a sample of them
    without duplicates. Ties get their average rank.

    The standard error is that of the pair sample for these images, 0 when all pairs are used: the
    sample is split at random into `PAIR_GROUPS` groups, whose scatter is scaled to the whole
    sample and, since it is drawn without replacement, by sqrt(1 - sampled / all). It says nothing
    of other images: for that, put this function into `intervals.subsampling_interval`.

    Args:
        a, b: (N, d) and (N, d').
        pairs: most pairs to use, at least 3 per group (60).
        seed: draws the pairs and the groups.

    Returns:
        (value in [-1, 1], standard error, pairs used). NaN where undefined: fewer than 3 images,
        or one of the two has all its distances equal.

    Raises:
        ValueError: features that do not fit together or cannot be squared, or too few pairs.
    """
    if pairs < 3 * PAIR_GROUPS:
        raise ValueError(f"at least {3 * PAIR_GROUPS} pairs are needed, not {pairs}")
    arrays = _same_images(a, b)
    n = len(arrays["a"])
    total = n * (n - 1) // 2
    if total <= pairs:
        chosen = np.arange(total)
    else:
        rng = np.random.default_rng(seed)
        # Without its shuffle, `choice` makes the list of all pairs only where it is short; sorted,
        # the pairs' features lie one after the other in memory.
        chosen = np.sort(rng.choice(total, pairs, replace=False, shuffle=False))
    x, y = (_pair_cosines(unit_rows(c), chosen) for c in arrays.values())
    value = _spearman(x, y)
    if total <= pairs:
        return Spearman(value, 0.0 if value == value else float("nan"), total)
    groups = np.array_split(rng.permutation(pairs), PAIR_GROUPS)
    scatter = np.std([_spearman(x[g], y[g]) for g in groups], ddof=1)
    return Spearman(value, float(scatter * np.sqrt((1 - pairs / total) / PAIR_GROUPS)), pairs)


@dataclass(frozen=True)
class FrobeniusGap:
    """How far two cosine similarity matrices are apart (P2, Theorem 1 and its corollaries)."""

    gap: float  # ‖Σ - Σ'‖_F, 0 or above
    rho: float  # ‖K - K'‖_F / ‖K‖_F with K = HΣH
    r: float  # ‖b - a‖₂ / (sqrt(M) σ_D) over the M = N(N-1)/2 off-diagonal entries
    centred_norm: float  # ‖K‖_F, which ρ is relative to
    scatter: float  # sqrt(M) σ_D, which r is relative to


def frobenius_gap(a: ArrayLike, b: ArrayLike) -> FrobeniusGap:
    """Distance of the cosine similarity matrices of a and b, relative to those of a.

    Corollaries 1 and 2 of P2 bound CKA and RSA from below by ρ and r, for ρ < 1 and r < 1; nothing
    is claimed elsewhere (at r = 2, RSA may be -1).

    ‖AᵀA‖² + ‖BᵀB‖² - 2‖AᵀB‖² would lose all digits of gaps below 1e-8 of ‖Σ‖. Instead, with
    [A B] = QR, the matrix Σ - Σ' = AAᵀ - BBᵀ is Q (R_A R_Aᵀ - R_B R_Bᵀ) Qᵀ and has the norm of
    the small matrix. Time O(N (d+d')²), memory for a copy of both features, no N×N matrix.

    Args:
        a: (N, d), the representation that ρ and r are relative to (CL in P2).
        b: (N, d').

    Returns:
        The gap, ρ and r; `theory.cka_lower_bound` and its like say what follows. ρ is NaN when the
        rows of a have one direction, r also when all cosines of a are equal, and so are the norms
        that they are relative to.

    Raises:
        ValueError: features that do not fit together or cannot be squared.
    """
    arrays = _same_images(a, b)
    n = len(arrays["a"])
    d = arrays["a"].shape[1]
    both = np.hstack([unit_rows(x) for x in arrays.values()])
    mean = both.mean(axis=0)
    triangle = np.zeros((0, both.shape[1]))
    step = max(BLOCK, 2 * both.shape[1])
    for start in range(0, n, step):
        triangle = np.linalg.qr(np.vstack([triangle, both[start : start + step] - mean]), "r")

    centred = _difference_norm(triangle, d)
    # The row sqrt(N) x̄ gives [A B] back its uncentred moments, and so the norm of Σ - Σ'.
    gap = _difference_norm(np.vstack([triangle, np.sqrt(n) * mean]), d)

    float64 = np.dtype(np.float64)
    rows, moments = _moments(arrays, [("a", "b")], True, BLOCK, float64)
    self_a = ("a", "a")
    norm = scatter = float("nan")
    if not rows["a"].constant:
        norm = float(np.sqrt(moments[self_a]))
    # Diagonals differ only where one of the two rows has norm 0.
    diagonal = np.count_nonzero(rows["a"].square != rows["b"].square)
    if not np.isnan(_value(RSA, self_a, rows, moments, float64)):
        # _pearson gives 2 M σ_D²: it counts i < j and j < i.
        scatter = float(np.sqrt(_pearson(n, moments[self_a], rows["a"], rows["a"]) / 2))
    return FrobeniusGap(
        gap=gap,
        rho=centred / norm,
        r=float(np.sqrt(max(gap**2 - diagonal, 0.0) / 2) / scatter),
        centred_norm=norm,
        scatter=scatter,
    )


def _difference_norm(factor: NDArray, d: int) -> float:
    """‖R_A R_Aᵀ - R_B R_Bᵀ‖_F for [R_A R_B] with d columns in R_A."""
    a, b = factor[:, :d], factor[:, d:]
    return float(np.linalg.norm(a @ a.T - b @ b.T))


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _same_images(a: ArrayLike, b: ArrayLike) -> dict[str, NDArray]:
    arrays = {name: _two_dimensional(name, x) for name, x in (("a", a), ("b", b))}
    if len(arrays["a"]) != len(arrays["b"]):
        raise ValueError(
            f"representations differ in their number of images:"
            f" {len(arrays['a'])} and {len(arrays['b'])}"
        )
    return arrays


def _classes(labels: ArrayLike, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Class number of each image (N,), and images of each class (C,)."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels of shape {labels.shape} are not one for each of {n} images")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return index, counts


def _within_class_orders(
    index: NDArray, draws: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """The identity, then `draws` permutations (N,) that keep every image in its class."""
    yield np.arange(len(index))
    places = np.argsort(index, kind="stable")
    for _ in range(draws):
        order = np.empty_like(places)
        order[places] = np.lexsort((rng.random(len(index)), index))
        yield order


def _permuted(
    arrays: dict[str, NDArray],
    orders: Iterable[NDArray],
    measures: list[Measure],
    cosine: bool,
) -> dict[Measure, Vector]:
    """measure -> its value for each order of b's rows."""
    pair, float64 = ("a", "b"), np.dtype(np.float64)
    rows, moments = _moments(arrays, [pair], cosine, BLOCK, float64)
    centred = {}
    for name, x in arrays.items():
        centre, scale, _ = _centre(name, x, _blocks(len(x)), cosine)
        centred[name] = x * scale[:, None] - centre
    values: dict[Measure, list[float]] = {m: [] for m in measures}
    for order in orders:
        cross = centred["a"].T @ centred["b"][order]
        shuffled = _Rows(rows["b"].square[order], rows["b"].spread[order])
        table = {"a": rows["a"], "b": shuffled}, moments | {pair: float(np.vdot(cross, cross))}
        for m in measures:
            values[m].append(_value(m, pair, *table, float64))
    return {m: np.array(v) for m, v in values.items()}


def _pair_cosines(x: NDArray, chosen: NDArray) -> Vector:
    """Cosines of the image pairs with numbers `chosen` in 0 … N(N-1)/2 - 1, x having unit rows."""
    # Pair k joins image k mod N with the one k // N + 1 further on, around a circle: every pair
    # once, for odd N and (with its half last round) for even N.
    n = len(x)
    cosines = np.empty(len(chosen))
    for start in range(0, len(chosen), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        round_, first = np.divmod(chosen[part], n)
        second = (first + round_ + 1) % n
        np.einsum("ij,ij->i", x[first], x[second], out=cosines[part])
    return cosines.round(14)  # so that rounding breaks no ties


def _spearman(x: Vector, y: Vector) -> float:
    """Pearson correlation of average ranks; distances have the same as cosines."""
    from scipy.stats import rankdata

    if len(x) < 2:
        return float("nan")
    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")

"""How similar two representations of the same images are: linear CKA and Pearson RSA.

CKA is centered kernel alignment, RSA representational similarity analysis. Both compare N×N
similarity matrices, but these need not be computed. Let c_i be the features of image i (raw, or
divided by their norm) minus their mean over images, and q_i = ‖c_i‖². Then both measures follow
from the d×d moment ‖CᵀC'‖²_F = Σ_ij (c_i·c_j)(c'_i·c'_j) and the N numbers q_i. This takes O(N d²)
time, and memory for one block of rows and one d×d matrix per product.

Every measure has the form <a, b> / sqrt(<a, a> <b, b>). They differ in the inner product:

biased CKA     <HKH, HLH>_F = ‖CᵀC'‖²                          Cortes et al. 2012; P2, Corollary 1
debiased CKA   N(N-3) HSIC_1, Song et al. 2012, eq. 5, in the feature-space form of Kornblith 2019
Pearson RSA    covariance of the off-diagonal cosines          P2, Corollary 2

P2 is arXiv 2510.08852. It defines CKA on cosine matrices, but its authors' code uses raw features.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cltools.maths.alignment.features import Vector, two_dimensional
from cltools.maths.alignment.moments import Pair, Precision, Rows, moments_of

Measure = tuple[str, str]  # (metric, variant)
RSA: Measure = ("rsa", "pearson_cosine")


def _biased(n: int, moment: float, a: Rows, b: Rows) -> float:
    return moment


def _debiased(n: int, moment: float, a: Rows, b: Rows) -> float:
    # Centered features have Σ_{j≠i} c_i·c_j = -q_i, which gives all three terms of HSIC_1.
    # Centering does not change the estimator: it ignores what is constant along rows or columns.
    both = a.spread.sum() * b.spread.sum()
    return float(moment - n / (n - 2) * (a.spread @ b.spread) + both / ((n - 1) * (n - 2)))


def pearson_product(n: int, moment: float, a: Rows, b: Rows) -> float:
    """Covariance of the off-diagonal cosines, summed over ordered pairs of images."""
    # cos_ij = ‖x̄‖² + G_ij with G_ij = a_i + a_j + c_i·c_j and a_i = x̄·c_i. The constant does not
    # change a covariance, and the mixed terms vanish since Σ a_i = Σ c_i = 0:
    #   Σ_ij G G' = ‖CᵀC'‖² + 2N a·a',   Σ_{i≠j} G = -Σ g_i with g_i = G_ii = 2 a_i + q_i.
    # With ‖x_i‖² = ‖x̄‖² + g_i both follow without x̄, and so without cancellation when all features
    # lie close to their mean.
    linear_a, diagonal_a = _linear_and_diagonal(a)
    linear_b, diagonal_b = _linear_and_diagonal(b)
    whole = moment + 2 * n * (linear_a @ linear_b)
    mean_part = diagonal_a.sum() * diagonal_b.sum() / (n * (n - 1))
    return float(whole - diagonal_a @ diagonal_b - mean_part)


def _linear_and_diagonal(rows: Rows) -> tuple[Vector, Vector]:
    diagonal = rows.square - rows.square.mean() + rows.spread.mean()
    return (diagonal - rows.spread) / 2, diagonal


# measure -> (use cosines, inner product, smallest N for which it is defined)
_MEASURES: dict[Measure, tuple[bool, Callable[[int, float, Rows, Rows], float], int]] = {
    ("cka", "cosine_biased"): (True, _biased, 2),
    ("cka", "cosine_debiased"): (True, _debiased, 4),
    ("cka", "raw_biased"): (False, _biased, 2),
    ("cka", "raw_debiased"): (False, _debiased, 4),
    ("rsa", "pearson_cosine"): (True, pearson_product, 3),
}
MEASURES: tuple[Measure, ...] = tuple(_MEASURES)


def alignment(
    features: Mapping[str, ArrayLike],
    pairs: Iterable[Pair] | None = None,
    measures: Iterable[Measure] = MEASURES,
    block: int = 2048,
    dtype: DTypeLike = np.float64,
) -> dict[Pair, dict[Measure, float]]:
    """Compare representations of the same N images, pair by pair.

    Args:
        features: name -> (N, d) array; row i is the same image everywhere, d may differ.
        pairs: the pairs of names to compare; default every unordered pair, in order of `features`.
        measures: which of `MEASURES` to compute; nothing is computed for the others.
            ("cka", "cosine_biased")    P2's CKA, on cosine similarities, in [0, 1]
            ("cka", "cosine_debiased")  the same, without the bias that grows with d/N, in [-1, 1]
            ("cka", "raw_biased")       as in the authors' code, on inner products, in [0, 1]
            ("cka", "raw_debiased")     the same, without the bias, in [-1, 1]
            ("rsa", "pearson_cosine")   P2's RSA: Pearson correlation of the N(N-1)/2
                                        off-diagonal entries of 1 - cosine, in [-1, 1]
        block: rows per matrix product.
        dtype: precision of the d×d moments. float32 is for benchmarks: it is twice as fast, with
            errors of about 1e-6. Everything else is always float64.

    Returns:
        pair -> measure -> value. Values are not clipped: debiased CKA of unrelated features
        scatters around 0, and rounding may exceed 1 by 1e-15. A value is NaN where it is undefined:
        when one of the two features is constant; for RSA and debiased CKA also when all its
        pairwise similarities are equal; and when N is below 2 (biased CKA), 3 (RSA) or 4 (debiased
        CKA). A row of norm 0 has cosine 0 with every row, itself included: see `zero_norm_rows`.

    Raises:
        ValueError: features that are not (N, d) arrays of equal N, are empty, or hold NaN, infinity
            or numbers whose squares overflow; an unknown name in a pair, measure or dtype.
    """
    arrays = {name: two_dimensional(name, x) for name, x in features.items()}
    pairs = list(combinations(arrays, 2)) if pairs is None else [(a, b) for a, b in pairs]
    measures = list(measures)
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {list(MEASURES)}")
    if strangers := {name for pair in pairs for name in pair} - set(arrays):
        raise ValueError(f"pairs name {sorted(strangers)}, but there are only {sorted(arrays)}")
    counts = {name: len(x) for name, x in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"representations differ in their number of images: {counts}")
    precision = _precision(dtype)
    if not pairs:
        return {}

    # Cosine CKA and RSA share one set of moments.
    tables = {
        cosine: moments_of(arrays, pairs, cosine, block, precision)
        for cosine in {_MEASURES[measure][0] for measure in measures}
    }
    return {
        pair: {m: measure_of(m, pair, *tables[_MEASURES[m][0]], precision) for m in measures}
        for pair in pairs
    }


def _precision(dtype: DTypeLike) -> Precision:
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if np.dtype(dtype) == known:
            return known
    raise ValueError(f"moments are float32 or float64, not {np.dtype(dtype)}")


def measure_of(
    measure: Measure,
    pair: Pair,
    rows: Mapping[str, Rows],
    moments: Mapping[Pair, float],
    dtype: Precision,
) -> float:
    """One measure of one pair, from what `moments_of` returns; NaN where it is undefined."""
    _, inner, smallest_n = _MEASURES[measure]
    n = len(rows[pair[0]].spread)
    if n < smallest_n or any(rows[name].constant for name in pair):
        return float("nan")
    norm = 1.0
    for name in pair:
        moment = moments[name, name]
        square = inner(n, moment, rows[name], rows[name])
        # When all similarities are equal, only a rounding error is left here, of either sign.
        if not square > 32 * np.finfo(dtype).eps * moment:
            return float("nan")
        norm *= np.sqrt(square)
    return float(inner(n, moments[pair], rows[pair[0]], rows[pair[1]]) / norm)

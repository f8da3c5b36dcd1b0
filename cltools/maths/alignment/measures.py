"""How similar two representations of the same images are: linear CKA and Pearson RSA.

CKA is centered kernel alignment, RSA representational similarity analysis. Both compare N×N
similarity matrices, but these need not be computed. Let c_i be the features of image i (raw, or
divided by their norm) minus their mean over images, and q_i = ‖c_i‖². Then both measures follow
from the d×d moment ‖CᵀC'‖²_F = Σ_ij (c_i·c_j)(c'_i·c'_j) and the N numbers q_i. This takes O(N d²)
time, and memory for blocks of rows and one d×d matrix per product, not for N rows.

Every measure has the form <a, b> / sqrt(<a, a> <b, b>). They differ in the inner product:

biased CKA     <HKH, HLH>_F = ‖CᵀC'‖²                          Cortes et al. 2012; P2, Corollary 1
debiased CKA   N(N-3) HSIC_1, Song et al. 2012, eq. 5, in the feature-space form of Kornblith 2019
Pearson RSA    covariance of the off-diagonal cosines          P2, Corollary 2

P2 is arXiv 2510.08852. It defines CKA on cosine matrices, but its authors' code uses raw features.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import numpy as np
import torch

from cltools.maths.alignment.features import Vector, same_images
from cltools.maths.alignment.moments import Pair, Rows, Table, moments_of
from cltools.maths.blocks import CPU, Features

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
    linear_a, diagonal_a = linear_and_diagonal(a)
    linear_b, diagonal_b = linear_and_diagonal(b)
    whole = moment + 2 * n * (linear_a @ linear_b)
    mean_part = diagonal_a.sum() * diagonal_b.sum() / (n * (n - 1))
    return float(whole - diagonal_a @ diagonal_b - mean_part)


def linear_and_diagonal(rows: Rows) -> tuple[Vector, Vector]:
    """a_i = x̄·c_i and g_i = 2 a_i + q_i of each image: how its cosine with itself is made up."""
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
    features: Mapping[str, Features],
    pairs: Iterable[Pair] | None = None,
    measures: Iterable[Measure] = MEASURES,
    device: torch.device = CPU,
) -> dict[Pair, dict[Measure, float]]:
    """Compare representations of the same N images, pair by pair.

    Args:
        features: name -> (N, d) features, in memory or in a file (`cltools.maths.blocks`); row i is
            the same image everywhere, d may differ.
        pairs: the pairs of names to compare; default every unordered pair, in order of `features`.
        measures: which of `MEASURES` to compute; nothing is computed for the others.
            ("cka", "cosine_biased")    P2's CKA, on cosine similarities, in [0, 1]
            ("cka", "cosine_debiased")  the same, without the bias that grows with d/N, in [-1, 1]
            ("cka", "raw_biased")       as in the authors' code, on inner products, in [0, 1]
            ("cka", "raw_debiased")     the same, without the bias, in [-1, 1]
            ("rsa", "pearson_cosine")   P2's RSA: Pearson correlation of the N(N-1)/2
                                        off-diagonal entries of 1 - cosine, in [-1, 1]
        device: where the products are made, in float64.

    Returns:
        pair -> measure -> value. Values are not clipped: debiased CKA of unrelated features
        scatters around 0, and rounding may exceed 1 by 1e-15. A value is NaN where it is undefined:
        when one of the two features is constant; for RSA and debiased CKA also when all its
        pairwise similarities are equal; and when N is below 2 (biased CKA), 3 (RSA) or 4 (debiased
        CKA). A row of norm 0 has cosine 0 with every row, itself included: see `zero_norm_rows`.

    Raises:
        ValueError: features that are not (N, d) arrays of equal N, are empty, or hold NaN, infinity
            or numbers whose squares overflow; an unknown name in a pair or unknown measure.
    """
    sources = same_images(features)
    pairs = pairs_of(sources, pairs)
    measures = known(measures)
    if not pairs:
        return {}
    one_class = np.zeros(sources[pairs[0][0]].shape[0], dtype=np.intp)
    # Cosine CKA and RSA share one set of moments.
    tables = {
        cosine: moments_of(sources, pairs, one_class, cosine, device).whole
        for cosine in {takes_cosines(measure) for measure in measures}
    }
    return {
        pair: {m: measure_of(m, pair, tables[takes_cosines(m)]) for m in measures}
        for pair in pairs
    }  # fmt: skip


def pairs_of(features: Iterable[str], pairs: Iterable[Pair] | None) -> list[Pair]:
    """These pairs, or every unordered pair; raises ValueError for names that are not there."""
    names = list(features)
    found = list(combinations(names, 2)) if pairs is None else [(a, b) for a, b in pairs]
    if strangers := {name for pair in found for name in pair} - set(names):
        raise ValueError(f"pairs name {sorted(strangers)}, but there are only {sorted(names)}")
    return found


def known(measures: Iterable[Measure]) -> list[Measure]:
    """The measures as a list; raises ValueError for one that is not in `MEASURES`."""
    measures = list(measures)
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {list(MEASURES)}")
    return measures


def takes_cosines(measure: Measure) -> bool:
    """Whether a measure takes rows of norm 1, and not features as they are."""
    return _MEASURES[measure][0]


def measure_of(
    measure: Measure, pair: Pair, table: Table, instead: tuple[float, Rows] | None = None
) -> float:
    """One measure of one pair; NaN where it is undefined.

    With `instead`, ‖CᵀC'‖² and the rows of the second name are these, but the norms stay.
    """
    _, inner, smallest_n = _MEASURES[measure]
    rows = table.rows
    n = len(rows[pair[0]].spread)
    if n < smallest_n or any(rows[name].constant for name in pair):
        return float("nan")
    norm = 1.0
    for name in pair:
        moment = table.norms[name, name]
        square = inner(n, moment, rows[name], rows[name])
        # When all similarities are equal, only a rounding error is left here, of either sign.
        if not square > 32 * np.finfo(np.float64).eps * moment:
            return float("nan")
        norm *= np.sqrt(square)
    product, second = instead or (table.norms[pair], rows[pair[1]])
    return float(inner(n, product, rows[pair[0]], second) / norm)

"""Distance between two similarity matrices, ‖Σ - Σ'‖_F.

P2 is arXiv 2510.08852. Its corollaries derive lower bounds on alignment from this distance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import BLOCK, same_images, unit_rows
from cltools.maths.alignment.measures import RSA, measure_of, pearson_product
from cltools.maths.alignment.moments import moments_of


@dataclass(frozen=True)
class FrobeniusGap:
    """Distance between two cosine similarity matrices (P2, Theorem 1 and its corollaries)."""

    gap: float  # ‖Σ - Σ'‖_F, 0 or above
    rho: float  # ‖K - K'‖_F / ‖K‖_F with K = HΣH
    r: float  # ‖b - a‖₂ / (sqrt(M) σ_D) over the M = N(N-1)/2 off-diagonal entries
    centred_norm: float  # ‖K‖_F, the denominator of ρ
    scatter: float  # sqrt(M) σ_D, the denominator of r


def frobenius_gap(a: ArrayLike, b: ArrayLike) -> FrobeniusGap:
    """Distance of the cosine similarity matrices of a and b, relative to those of a.

    Corollaries 1 and 2 of P2 give lower bounds on CKA by ρ and on RSA by r, for ρ < 1 and r < 1.
    They say nothing about larger values (at r = 2, RSA may be -1).

    ‖AᵀA‖² + ‖BᵀB‖² - 2‖AᵀB‖² would lose all digits of gaps below 1e-8 of ‖Σ‖. Instead, [A B] = QR.
    Then Σ - Σ' = AAᵀ - BBᵀ = Q (R_A R_Aᵀ - R_B R_Bᵀ) Qᵀ has the same norm as the small matrix in
    the middle. This takes time O(N (d+d')²) and memory for a copy of both features, but no N×N
    matrix.

    Args:
        a: (N, d), the representation that ρ and r are relative to (CL in P2).
        b: (N, d').

    Returns:
        The gap, ρ, r and their denominators. `bounds.cka_lower_bound` and `rsa_lower_bound` give
        the bounds. ρ and its denominator are NaN when all rows of a have the same direction, r and
        its denominator also when all cosines of a are equal.

    Raises:
        ValueError: features of unequal N, or with numbers whose squares overflow.
    """
    arrays = same_images(a, b)
    n = len(arrays["a"])
    d = arrays["a"].shape[1]
    both = np.hstack([unit_rows(x) for x in arrays.values()])
    mean = both.mean(axis=0)
    triangle = np.zeros((0, both.shape[1]))
    step = max(BLOCK, 2 * both.shape[1])
    for start in range(0, n, step):
        stacked = np.vstack([triangle, both[start : start + step] - mean])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))

    centred = _difference_norm(triangle, d)
    # The row sqrt(N) x̄ undoes the subtraction of the mean, which gives the norm of Σ - Σ'.
    gap = _difference_norm(np.vstack([triangle, np.sqrt(n) * mean]), d)

    float64 = np.dtype(np.float64)
    rows, moments = moments_of(arrays, [("a", "b")], True, BLOCK, float64)
    self_a = ("a", "a")
    norm = scatter = float("nan")
    if not rows["a"].constant:
        norm = float(np.sqrt(moments[self_a]))
    # The diagonals differ where one of the two rows has norm 0, and nowhere else.
    diagonal = np.count_nonzero(rows["a"].square != rows["b"].square)
    if not np.isnan(measure_of(RSA, self_a, rows, moments, float64)):
        # pearson_product gives 2 M σ_D²: it counts i < j and j < i.
        scatter = float(np.sqrt(pearson_product(n, moments[self_a], rows["a"], rows["a"]) / 2))
    return FrobeniusGap(
        gap=gap,
        rho=centred / norm,
        r=float(np.sqrt(max(gap**2 - diagonal, 0.0) / 2) / scatter),
        centred_norm=norm,
        scatter=scatter,
    )


def _difference_norm(factor: NDArray[np.float64], d: int) -> float:
    """‖R_A R_Aᵀ - R_B R_Bᵀ‖_F for [R_A R_B] with d columns in R_A."""
    a, b = factor[:, :d], factor[:, d:]
    return float(np.linalg.norm(a @ a.T - b @ b.T))

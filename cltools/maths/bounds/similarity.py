"""P2's lower bounds on CKA and RSA, from the distance of similarities (arXiv 2510.08852)."""

import numpy as np
from numpy.typing import ArrayLike

from cltools.maths.bounds.common import Values


def cka_lower_bound(rho: ArrayLike) -> Values:
    """P2 Corollary 1: CKA ≥ (1 - ρ)/(1 + ρ), with ρ = ‖K - K'‖_F / ‖K‖_F, K = HΣH.

    CKA is the biased CKA of cosine matrices. P2 does not say that ρ < 1 is needed, but it is.

    Args:
        rho: ρ, measured or an upper bound of it (`drift_bound` / ‖K‖_F), 0 or above; any shape.

    Returns:
        The bound in (0, 1], of rho's shape; NaN where ρ ≥ 1.
    """
    rho = _below_one(rho)
    return (1 - rho) / (1 + rho)


def rsa_lower_bound(r: ArrayLike) -> Values:
    """P2 Corollary 2: RSA ≥ (1 - r)/(1 + r), with r = ‖b - a‖₂ / (sqrt(M) σ_a).

    a and b are the M = N(N-1)/2 entries above the diagonals of the two matrices 1 - Σ, σ_a is the
    population standard deviation of a, and RSA is their Pearson correlation. This holds for r < 1
    only: at r = 2 the RSA may be -1. Argument, range and NaN as for `cka_lower_bound`.
    """
    return cka_lower_bound(r)


def cosine_lower_bound(ratio: ArrayLike) -> Values:
    """sqrt(1 - ρ²): the best lower bound on CKA from ρ alone, or on RSA from r; not in P2.

    CKA is the cosine between K and K', RSA that between a and b minus their means. A vector in a
    ball of radius ρ‖K‖ around K has at most the angle arcsin ρ to K, that of the tangent. The bound
    is never below P2's; NaN where ρ ≥ 1.
    """
    return np.sqrt(1 - _below_one(ratio) ** 2)


def _below_one(ratio: ArrayLike) -> Values:
    """The ratio where it lies in [0, 1), NaN elsewhere."""
    ratio = np.asarray(ratio, dtype=np.float64)
    return np.where((ratio >= 0) & (ratio < 1), ratio, np.nan)[()]

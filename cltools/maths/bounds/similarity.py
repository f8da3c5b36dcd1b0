"""P2's lower bounds on CKA and RSA by the distance of similarities (arXiv 2510.08852)."""

import numpy as np
from numpy.typing import ArrayLike

from cltools.maths.bounds.common import Values


def cka_lower_bound(rho: ArrayLike) -> Values:
    """P2 Corollary 1: CKA ≥ (1 - ρ)/(1 + ρ), with ρ = ‖K - K'‖_F / ‖K‖_F, K = HΣH.

    For the biased CKA of matrices of cosines. P2 does not say so, but it is true for ρ < 1 only.

    Args:
        rho: ρ, measured or an upper bound of it (`drift_bound` / ‖K‖_F), 0 or above; any shape.

    Returns:
        The bound in (0, 1], of rho's shape; NaN where ρ ≥ 1, where nothing is claimed.
    """
    rho = _below_one(rho)
    return (1 - rho) / (1 + rho)


def rsa_lower_bound(r: ArrayLike) -> Values:
    """P2 Corollary 2: RSA ≥ (1 - r)/(1 + r), with r = ‖b - a‖₂ / (sqrt(M) σ_a).

    a and b are the M = N(N-1)/2 upper entries of the two matrices 1 - Σ, σ_a is a's (population)
    standard deviation, RSA their Pearson correlation. True for r < 1 only: at r = 2 the RSA may
    be -1. Argument, range and NaN as for `cka_lower_bound`.
    """
    return cka_lower_bound(r)


def cosine_lower_bound(ratio: ArrayLike) -> Values:
    """sqrt(1 - ρ²): the best bound that ρ (or r) alone allows on CKA (or RSA); not in P2.

    Both are cosines, of K and K' or of the centered a and b. A vector within a ball of radius
    ρ‖K‖ around K makes at most the angle of the tangent, arcsin ρ. Always at or above P2's bounds;
    NaN where ρ ≥ 1.
    """
    return np.sqrt(1 - _below_one(ratio) ** 2)


def _below_one(ratio: ArrayLike) -> Values:
    """The ratio where it lies in [0, 1), NaN elsewhere."""
    ratio = np.asarray(ratio, dtype=np.float64)
    return np.where((ratio >= 0) & (ratio < 1), ratio, np.nan)[()]

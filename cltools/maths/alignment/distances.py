"""Distance between two similarity matrices, ‖Σ - Σ'‖_F.

P2 is arXiv 2510.08852. Its corollaries derive lower bounds on alignment from this distance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cltools.maths.alignment.features import same_images
from cltools.maths.alignment.measures import RSA, linear_and_diagonal, measure_of, pearson_product
from cltools.maths.alignment.moments import Pair, Table, means_of, moments_of
from cltools.maths.blocks import BLOCK_BYTES, CPU, Features, RowSource, blocks_of, read

# ‖K - K'‖² over ‖K‖² + ‖K'‖², from which on the difference of moments keeps nine digits.
LARGE_GAP = 1e-5


@dataclass(frozen=True)
class FrobeniusGap:
    """Distance between two cosine similarity matrices (P2, Theorem 1 and its corollaries)."""

    gap: float  # ‖Σ - Σ'‖_F, 0 or above
    rho: float  # ‖K - K'‖_F / ‖K‖_F with K = HΣH
    r: float  # ‖b - a‖₂ / (sqrt(M) σ_D) over the M = N(N-1)/2 off-diagonal entries
    centred_norm: float  # ‖K‖_F, the denominator of ρ
    scatter: float  # sqrt(M) σ_D, the denominator of r


def frobenius_gap(a: Features, b: Features, device: torch.device = CPU) -> FrobeniusGap:
    """Distance of the cosine similarity matrices of a and b, relative to those of a.

    Corollaries 1 and 2 of P2 give lower bounds on CKA by ρ and on RSA by r, for ρ < 1 and r < 1.
    They say nothing about larger values (at r = 2, RSA may be -1).

    No N×N matrix is made. Usually ‖K - K'‖² = ‖CᵀC‖² + ‖C'ᵀC'‖² - 2‖CᵀC'‖², see `measures`. Where
    this is below `LARGE_GAP` of its terms, the difference has lost too many digits. Then
    [A B] = QR, and Σ - Σ' = AAᵀ - BBᵀ = Q (R_A R_Aᵀ - R_B R_Bᵀ) Qᵀ has the same norm as the small
    matrix in the middle. This takes about ten times as long.

    Args:
        a: (N, d), the representation that ρ and r are relative to (CL in P2).
        b: (N, d').
        device: where the products are made, in float64.

    Returns:
        The gap, ρ, r and their denominators. `bounds.cka_lower_bound` and `rsa_lower_bound` give
        the bounds. ρ and its denominator are NaN when all rows of a have the same direction, r and
        its denominator also when all cosines of a are equal.

    Raises:
        ValueError: features of unequal N, or with numbers whose squares overflow.
    """
    sources = same_images({"a": a, "b": b})
    pair = ("a", "b")
    one_class = np.zeros(sources["a"].shape[0], dtype=np.intp)
    table = moments_of(sources, [pair], one_class, True, device).whole
    return gap_of(pair, sources, table, device)


def gap_of(
    pair: Pair, features: dict[str, RowSource], table: Table, device: torch.device = CPU
) -> FrobeniusGap:
    """What `frobenius_gap` returns, from the moments of cosines; features are read if it is small.

    The first of the pair is `a`.
    """
    a, b = (table.rows[name] for name in pair)
    n = len(a.spread)
    own, other = (table.norms[name, name] for name in pair)
    square = own + other - 2 * table.norms[pair]
    if square > LARGE_GAP * (own + other):
        # Σ_ij - Σ'_ij = δ + δ_i + δ_j + (K - K')_ij with δ = ‖x̄‖² - ‖x̄'‖² and δ_i the difference of
        # x̄·c_i. The sums over i are 0, so that there are no mixed terms.
        shift = a.square.mean() - b.square.mean() - (a.spread.mean() - b.spread.mean())
        linear = linear_and_diagonal(a)[0] - linear_and_diagonal(b)[0]
        centred = float(np.sqrt(square))
        gap = float(np.sqrt((n * shift) ** 2 + 2 * n * (linear @ linear) + square))
    else:
        centred, gap = _small_gap([features[name] for name in pair], device)

    norm = scatter = float("nan")
    if not a.constant:
        norm = float(np.sqrt(own))
    # The diagonals differ where one of the two rows has norm 0, and nowhere else.
    diagonal = np.count_nonzero(a.square != b.square)
    if not np.isnan(measure_of(RSA, (pair[0], pair[0]), table)):
        # pearson_product gives 2 M σ_D²: it counts i < j and j < i.
        scatter = float(np.sqrt(pearson_product(n, own, a, a) / 2))
    return FrobeniusGap(
        gap=gap,
        rho=centred / norm,
        r=float(np.sqrt(max(gap**2 - diagonal, 0.0) / 2) / scatter),
        centred_norm=norm,
        scatter=scatter,
    )


def _small_gap(both: list[RowSource], device: torch.device) -> tuple[float, float]:
    """‖K - K'‖_F and ‖Σ - Σ'‖_F by QR, block by block."""
    n, d = both[0].shape
    if _equal(both, device):
        return 0.0, 0.0
    index = torch.zeros(n, dtype=torch.int64, device=device)
    means = [means_of("ab"[i], x, index, index.new_tensor([n]), True, device)
             for i, x in enumerate(both)]  # fmt: skip
    width = d + both[1].shape[1]
    triangle = torch.zeros(0, width, dtype=torch.float64, device=device)
    # A block of twice as many rows as columns: the triangle, which is taken along, costs little.
    for part in blocks_of(n, width, max(BLOCK_BYTES, 2 * width * width * 8)):
        rows = [m.centred(x, part) for m, x in zip(means, both, strict=True)]
        triangle = torch.linalg.qr(torch.cat([triangle, torch.hstack(rows)]), mode="r").R
    # The row sqrt(N) x̄ undoes the subtraction of the mean, which gives the norm of Σ - Σ'.
    last = torch.hstack([m.whole for m in means]) * n**0.5
    return _difference_norm(triangle, d), _difference_norm(torch.vstack([triangle, last]), d)


def _equal(both: list[RowSource], device: torch.device) -> bool:
    """Whether all numbers are equal, as for encoders that start from the same weights."""
    a, b = both
    return a.shape == b.shape and all(
        torch.equal(read(a, part, device), read(b, part, device)) for part in blocks_of(*a.shape)
    )


def _difference_norm(factor: Tensor, d: int) -> float:
    """‖R_A R_Aᵀ - R_B R_Bᵀ‖_F for [R_A R_B] with d columns in R_A."""
    a, b = factor[:, :d], factor[:, d:]
    return float(torch.linalg.matrix_norm(a @ a.T - b @ b.T))

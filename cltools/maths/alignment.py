"""How alike two representations of the same images are: linear CKA and Pearson RSA.

Both compare N×N similarity matrices, and neither needs one. With c_i the features of image i (raw,
or divided by their norm) minus their mean over images, and q_i = ‖c_i‖², everything below follows
from the d×d moment ‖CᵀC'‖²_F = Σ_ij (c_i·c_j)(c'_i·c'_j) and the N numbers q_i: O(N d²) time, and
memory for one block of rows and one d×d matrix per product.

Every measure has the form <a, b> / sqrt(<a, a> <b, b>) and differs only in the inner product:

biased CKA     <HKH, HLH>_F = ‖CᵀC'‖²                          Cortes et al. 2012; P2, Corollary 1
debiased CKA   N(N-3) HSIC_1, Song et al. 2012, eq. 5, in the feature-space form of Kornblith 2019
Pearson RSA    covariance of the off-diagonal cosines          P2, Corollary 2

P2 is arXiv 2510.08852. It defines CKA on cosine matrices; its authors' code uses raw features.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Vector = NDArray[np.float64]
Pair = tuple[str, str]
Measure = tuple[str, str]  # (metric, variant)


@dataclass(frozen=True)
class _Rows:
    """What the inner products need to know of single images: N numbers each, in float64."""

    square: Vector  # ‖x_i‖² before centring; for cosines 1, or 0 for a row without direction
    spread: Vector  # q_i = ‖c_i‖²

    @property
    def constant(self) -> bool:
        """All rows are equal, as far as a mean summed in float64 can tell."""
        return self.spread.sum() <= 1e-24 * self.square.sum()


def _biased(n: int, moment: float, a: _Rows, b: _Rows) -> float:
    return moment


def _debiased(n: int, moment: float, a: _Rows, b: _Rows) -> float:
    # Centred features have Σ_{j≠i} c_i·c_j = -q_i, so that all three terms of HSIC_1 are here. The
    # estimator does not see the centring: it ignores whatever is constant along rows or columns.
    both = a.spread.sum() * b.spread.sum()
    return moment - n / (n - 2) * (a.spread @ b.spread) + both / ((n - 1) * (n - 2))


def _pearson(n: int, moment: float, a: _Rows, b: _Rows) -> float:
    # cos_ij = ‖x̄‖² + G_ij with G_ij = a_i + a_j + c_i·c_j and a_i = x̄·c_i. The constant has no part
    # in a covariance, and Σ a_i = Σ c_i = 0 removes the mixed terms:
    #   Σ_ij G G' = ‖CᵀC'‖² + 2N a·a',   Σ_{i≠j} G = -Σ g_i with g_i = G_ii = 2 a_i + q_i.
    # From ‖x_i‖² = ‖x̄‖² + g_i both follow without x̄, and so without cancellation when all
    # features lie close to their mean.
    linear_a, diagonal_a = _linear_and_diagonal(a)
    linear_b, diagonal_b = _linear_and_diagonal(b)
    whole = moment + 2 * n * (linear_a @ linear_b)
    mean_part = diagonal_a.sum() * diagonal_b.sum() / (n * (n - 1))
    return whole - diagonal_a @ diagonal_b - mean_part


def _linear_and_diagonal(rows: _Rows) -> tuple[Vector, Vector]:
    diagonal = rows.square - rows.square.mean() + rows.spread.mean()
    return (diagonal - rows.spread) / 2, diagonal


# measure -> (use cosines, inner product, smallest N for which it is defined)
_MEASURES: dict[Measure, tuple[bool, Callable[[int, float, _Rows, _Rows], float], int]] = {
    ("cka", "cosine_biased"): (True, _biased, 2),
    ("cka", "cosine_debiased"): (True, _debiased, 4),
    ("cka", "raw_biased"): (False, _biased, 2),
    ("cka", "raw_debiased"): (False, _debiased, 4),
    ("rsa", "pearson_cosine"): (True, _pearson, 3),
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
            ("cka", "cosine_debiased")  the same without the bias that grows with d/N, in [-1, 1]
            ("cka", "raw_biased")       the authors' code, on inner products, in [0, 1]
            ("cka", "raw_debiased")     the same without the bias, in [-1, 1]
            ("rsa", "pearson_cosine")   P2's RSA: Pearson correlation of the N(N-1)/2
                                        off-diagonal entries of 1 - cosine, in [-1, 1]
        block: rows per matrix product.
        dtype: precision of the d×d moments. float32 is for benchmarks: twice as fast, and right
            to about 1e-6; everything else is float64 in any case.

    Returns:
        pair -> measure -> value. Nothing is clamped: a debiased CKA of unrelated features scatters
        around 0, and rounding may exceed 1 by 1e-15. A value is NaN where it is undefined: one of
        the two features is constant (or has all its pairwise similarities equal, for RSA and
        debiased CKA), or N is below 2 (biased CKA), 3 (RSA), 4 (debiased CKA).
        A row of norm 0 has cosine 0 with every row, itself included: see `zero_norm_rows`.

    Raises:
        ValueError: features that are not (N, d) arrays of one N, are empty, or hold NaN, infinity
            or numbers whose squares overflow; a pair, measure or dtype that does not exist.
    """
    arrays = {name: _two_dimensional(name, x) for name, x in features.items()}
    pairs = list(combinations(arrays, 2)) if pairs is None else [(a, b) for a, b in pairs]
    measures = list(measures)
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose from {list(MEASURES)}")
    if unknown := {name for pair in pairs for name in pair} - set(arrays):
        raise ValueError(f"pairs name {sorted(unknown)}, but there are only {sorted(arrays)}")
    counts = {name: len(x) for name, x in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"representations differ in their number of images: {counts}")
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"moments are float32 or float64, not {dtype}")
    if not pairs:
        return {}

    # Cosine CKA and RSA share one set of moments.
    tables = {
        cosine: _moments(arrays, pairs, cosine, block, dtype)
        for cosine in {_MEASURES[measure][0] for measure in measures}
    }
    return {
        pair: {m: _value(m, pair, *tables[_MEASURES[m][0]], dtype) for m in measures}
        for pair in pairs
    }


def zero_norm_rows(features: Mapping[str, ArrayLike]) -> dict[str, int]:
    """How many rows of each (N, d) array have norm 0, and so no cosine: name -> count."""
    return {name: int((~np.asarray(x).any(axis=1)).sum()) for name, x in features.items()}


def _two_dimensional(name: str, x: ArrayLike) -> NDArray:
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0 or x.dtype.kind not in "fiu":
        raise ValueError(
            f"features of {name!r} must be a real array (images, features) with at least one of"
            f" each, not {x.dtype} of shape {x.shape}"
        )
    return x


def _value(
    measure: Measure,
    pair: Pair,
    rows: dict[str, _Rows],
    moments: dict[Pair, float],
    dtype: np.dtype,
) -> float:
    _, inner, smallest_n = _MEASURES[measure]
    n = len(rows[pair[0]].spread)
    if n < smallest_n or any(rows[name].constant for name in pair):
        return float("nan")
    norm = 1.0
    for name in pair:
        moment = moments[name, name]
        square = inner(n, moment, rows[name], rows[name])
        # What is left of equal similarities after subtraction is rounding, of either sign.
        if not square > 32 * np.finfo(dtype).eps * moment:
            return float("nan")
        norm *= np.sqrt(square)
    return float(inner(n, moments[pair], rows[pair[0]], rows[pair[1]]) / norm)


def _moments(
    arrays: dict[str, NDArray], pairs: list[Pair], cosine: bool, block: int, dtype: np.dtype
) -> tuple[dict[str, _Rows], dict[Pair, float]]:
    """The row statistics of each name in `pairs`, and ‖CᵀC'‖²_F of each pair and self-pair."""
    from scipy.linalg.blas import get_blas_funcs

    # BLAS adds to a matrix in place and makes only one triangle of CᵀC: numpy can do neither.
    syrk, gemm = get_blas_funcs(("syrk", "gemm"), dtype=dtype)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    n = len(arrays[names[0]])
    blocks = [slice(start, min(start + block, n)) for start in range(0, n, block)]

    centres, scales, rows = {}, {}, {}
    for name in names:
        centres[name], scales[name], square = _centre(name, arrays[name], blocks, cosine)
        rows[name] = _Rows(square, np.empty(n))
    buffers = {name: np.empty((min(block, n), arrays[name].shape[1])) for name in names}

    keys = dict.fromkeys([(name, name) for name in names] + pairs)
    moments = {
        (a, b): np.zeros((arrays[a].shape[1], arrays[b].shape[1]), dtype, order="F")
        for a, b in keys
    }
    for part in blocks:
        columns = {}  # Cᵀ of this block, in the column order that BLAS expects
        for name in names:
            c = buffers[name][: part.stop - part.start]
            np.multiply(arrays[name][part], scales[name][part, None], out=c)
            c -= centres[name]
            np.einsum("ij,ij->i", c, c, out=rows[name].spread[part])
            columns[name] = c.astype(dtype, copy=False).T
        for (a, b), m in moments.items():
            into = {"beta": 1, "c": m, "overwrite_c": True}
            if a == b:
                moments[a, b] = syrk(1, columns[a], **into)
            else:
                moments[a, b] = gemm(1, columns[a], columns[b], trans_b=True, **into)

    frobenius = {}
    for (a, b), m in moments.items():
        whole = np.square(m, dtype=np.float64).sum()
        if a == b:  # the other triangle is zero
            whole = 2 * whole - np.square(m.diagonal(), dtype=np.float64).sum()
        frobenius[a, b] = float(whole)
    return rows, frobenius


def _centre(
    name: str, x: NDArray, blocks: list[slice], cosine: bool
) -> tuple[Vector, Vector, Vector]:
    """Mean over images of the scaled rows, the factor of each row, and their ‖x_i‖²."""
    square, scale = np.empty(len(x)), np.ones(len(x))
    total = np.zeros(x.shape[1])
    for part in blocks:
        values = x[part].astype(np.float64, copy=False)
        np.einsum("ij,ij->i", values, values, out=square[part])
        if not np.isfinite(square[part]).all():
            raise ValueError(f"features of {name!r} hold NaN, infinity or numbers above 1e150")
        if cosine:
            norm = np.sqrt(square[part])
            square[part] = norm > 0
            np.divide(square[part], norm, out=scale[part], where=norm > 0)
            scale[part][norm == 0] = 0
        total += scale[part] @ values
    return total / len(x), scale, square

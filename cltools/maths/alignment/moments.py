"""The d×d moments and the N numbers that all measures of alignment are computed from.

The formulas are in `cltools.maths.alignment.measures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cltools.maths.alignment.features import Matrix, Vector, centre_rows

Pair = tuple[str, str]
Precision = np.dtype[np.float32] | np.dtype[np.float64]  # of the d×d moments


@dataclass(frozen=True)
class Rows:
    """What the inner products need about single images: (N,) numbers, in float64."""

    square: Vector  # ‖x_i‖² before centering; for cosines 1, or 0 for a row of norm 0
    spread: Vector  # q_i = ‖c_i‖²

    @property
    def constant(self) -> bool:
        """Whether all rows are equal, up to rounding errors of float64."""
        return bool(self.spread.sum() <= 1e-24 * self.square.sum())


def moments_of(
    arrays: Mapping[str, Matrix],
    pairs: Sequence[Pair],
    cosine: bool,
    block: int,
    dtype: Precision,
) -> tuple[dict[str, Rows], dict[Pair, float]]:
    """The row statistics of each name in `pairs`, and ‖CᵀC'‖²_F of each pair.

    Every name is also paired with itself.
    """
    from scipy.linalg.blas import get_blas_funcs

    # BLAS can add to a matrix in place and compute only one triangle of CᵀC. numpy can do neither.
    syrk, gemm = get_blas_funcs(("syrk", "gemm"), dtype=dtype)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    n = len(arrays[names[0]])
    blocks = [slice(start, min(start + block, n)) for start in range(0, n, block)]

    centres, scales, rows = {}, {}, {}
    for name in names:
        centres[name], scales[name], square = centre_rows(name, arrays[name], blocks, cosine)
        rows[name] = Rows(square, np.empty(n))
    buffers = {name: np.empty((min(block, n), arrays[name].shape[1])) for name in names}

    keys = dict.fromkeys([*((name, name) for name in names), *pairs])
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

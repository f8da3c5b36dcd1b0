"""The d×d moments and the N numbers that all measures of alignment are computed from.

The formulas are in `cltools.maths.alignment.measures`.

The rows are split into class means and residuals, x_i = μ + m_y + r_i. Only products of residuals
are summed over the images; those of the class means are added at the end:

    CᵀC' = RᵀR' + Σ_c n_c m_c m'_cᵀ      with c_i = m_y + r_i

So one pass gives the moments with and without class means. Since this adds and never subtracts,
both keep all digits, however close images lie to their class means.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cltools.maths.alignment.features import Vector, chunks_of, inverse_norms, squares
from cltools.maths.blocks import CPU, RowSource, blocks_of, read

Pair = tuple[str, str]
BLOCK_BYTES = 32 << 20  # of one block of rows of one name, of which all names are held at once
PANEL = 256  # columns of a symmetric product that are made at a time
NO_RESIDUAL = 1e-24  # ‖r_i‖² of rows of norm 1 that cannot be told from rounding errors


@dataclass(frozen=True)
class Rows:
    """What the inner products need about single images: (N,) numbers, in float64."""

    square: Vector  # ‖x_i‖² before centering; for cosines 1, or 0 for a row of norm 0
    spread: Vector  # q_i = ‖c_i‖²

    @property
    def constant(self) -> bool:
        """Whether all rows are equal, up to rounding errors of float64."""
        return bool(self.spread.sum() <= 1e-24 * self.square.sum())


@dataclass(frozen=True)
class Table:
    """The row numbers of each name and the ‖CᵀC'‖²_F of each pair, in either order."""

    rows: Mapping[str, Rows]
    norms: Mapping[Pair, float]


@dataclass(frozen=True)
class Moments:
    """What one pass over the features finds, for features as they are or divided by their norms."""

    whole: Table
    residual: Table  # after the class means are subtracted
    classes: Mapping[str, NDArray[np.float64]]  # (C, d) m_c of each name
    within: Mapping[str, NDArray[np.float64]]  # (d, d) RᵀR of the names that were asked for


@dataclass(frozen=True)
class Means:
    """The class means of one representation, and what its rows are multiplied by before."""

    scale: Tensor | None  # (N,) 1 / ‖x_i‖, None for features as they are
    square: Tensor  # (N,) ‖x_i‖² of the scaled rows
    whole: Tensor  # (d,) μ, the mean of all rows
    classes: Tensor  # (C, d) m_c, the mean of class c minus μ

    def centred(self, x: RowSource, part: slice) -> Tensor:
        """c_i (n, d): these rows, scaled, minus the mean of all rows."""
        rows = read(x, part, self.whole.device)
        return rows - self.whole if self.scale is None else torch.addcmul(
            -self.whole, rows, self.scale[part, None]
        )  # fmt: skip


def means_of(
    name: str, x: RowSource, index: Tensor, counts: Tensor, cosine: bool, device: torch.device
) -> Means:
    """The means of the C classes, from a pass over the rows; index (N,), counts (C,).

    Raises ValueError for NaN, infinity or numbers whose squares overflow.
    """
    square = squares(name, x, device)
    scale = None
    if cosine:
        scale, square = inverse_norms(square), (square > 0).to(square)
    sums = torch.zeros(len(counts), x.shape[1], dtype=torch.float64, device=device)
    shift = sums[0]
    for part in chunks_of(*x.shape):
        rows = read(x, part, device)
        rows = rows if scale is None else rows * scale[part, None]
        # Sums of large numbers would cost digits: the mean of the first rows is subtracted.
        shift = rows.mean(dim=0) if part.start == 0 else shift
        sums.index_add_(0, index[part], rows - shift)
    whole = sums.sum(dim=0) / len(index)
    return Means(scale, square, shift + whole, sums / counts[:, None] - whole)


def moments_of(
    features: Mapping[str, RowSource],
    pairs: Sequence[Pair],
    index: NDArray[np.intp],
    cosine: bool,
    device: torch.device = CPU,
    within: Collection[str] = (),
) -> Moments:
    """The moments of each name in `pairs` or `within`, and of each pair.

    This takes O(N d²) time and memory for one block of rows of each name and one d×d matrix of each
    name and pair.

    Args:
        features: name -> (N, d), all of the same images.
        pairs: names that are compared. Every name is also compared with itself.
        index: (N,) class number 0..C-1 of each image. With one class, residuals are c_i.
        cosine: whether rows are divided by their norms first.
        device: where the products are made, in float64.
        within: names whose RᵀR is returned.

    Raises:
        ValueError: NaN, infinity or numbers whose squares overflow.
    """
    names = list(dict.fromkeys([*(name for pair in pairs for name in pair), *within]))
    sources = {name: features[name] for name in names}
    own = torch.from_numpy(index).to(device)
    counts = torch.bincount(own)
    means = {
        name: means_of(name, x, own, counts, cosine, device) for name, x in sources.items()
    }  # fmt: skip
    keys = list(dict.fromkeys([*((name, name) for name in names), *pairs]))
    widest = max((x.shape[1] for x in sources.values()), default=1)
    parts = blocks_of(len(index), widest, BLOCK_BYTES)
    found = _Sums(sources, keys, parts[0].stop, device)
    for part in parts:
        found.add({
            name: found.residuals(name, x, means[name], part, own) for name, x in sources.items()
        })  # fmt: skip
    return found.moments(means, counts, within)


class _Sums:
    """Sums over images while they are read: the products of each pair, and numbers of each row."""

    def __init__(
        self,
        sources: Mapping[str, RowSource],
        pairs: list[Pair],
        largest_block: int,
        device: torch.device,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        width = {name: x.shape[1] for name, x in sources.items()}
        self.products = {(a, b): zeros(width[a], width[b]) for a, b in pairs}
        self.spread = {name: zeros(x.shape[0]) for name, x in sources.items()}
        self.residual = {name: zeros(x.shape[0]) for name, x in sources.items()}
        self._buffers = {name: zeros(largest_block, width[name]) for name in sources}

    def residuals(
        self, name: str, x: RowSource, means: Means, part: slice, index: Tensor
    ) -> Tensor:
        """r_i (n, d) of these rows, in a buffer; their q_i and ‖r_i‖² are kept."""
        several = len(means.classes) > 1
        for chunk in chunks_of(part.stop - part.start, x.shape[1]):
            here = slice(part.start + chunk.start, part.start + chunk.stop)
            rows = means.centred(x, here)
            torch.linalg.vecdot(rows, rows, out=self.spread[name][here])
            if several:
                rows -= means.classes[index[here]]
            rest = torch.linalg.vecdot(rows, rows, out=self.residual[name][here])
            if several and means.scale is not None:
                # Without this, collapsed classes would be compared by their rounding errors.
                rows.masked_fill_((rest <= NO_RESIDUAL)[:, None], 0)
                rest.masked_fill_(rest <= NO_RESIDUAL, 0)
            self._buffers[name][chunk] = rows
        return self._buffers[name][: part.stop - part.start]

    def add(self, rows: Mapping[str, Tensor]) -> None:
        for (a, b), product in self.products.items():
            if a == b:
                add_square(product, rows[a])
            else:
                product.addmm_(rows[a].T, rows[b])

    def moments(self, means: Mapping[str, Means], counts: Tensor, keep: Collection[str]) -> Moments:
        """Everything from the sums; the products are given up one by one, to save memory."""
        norms, residual_norms, within = {}, {}, {}
        for a, b in list(self.products):
            product = self.products.pop((a, b))
            if a == b:
                mirror(product)
                if a in keep:
                    within[a] = product.cpu().numpy()
            residual_norms[a, b] = residual_norms[b, a] = _square_norm(product)
            between = means[a].classes * counts[:, None]
            whole = torch.addmm(product, between.T, means[b].classes)
            norms[a, b] = norms[b, a] = _square_norm(whole)
        rows = {
            name: Rows(m.square.cpu().numpy(), self.spread[name].cpu().numpy())
            for name, m in means.items()
        }
        rest = {name: q.cpu().numpy() for name, q in self.residual.items()}
        return Moments(
            Table(rows, norms),
            Table({name: Rows(q, q) for name, q in rest.items()}, residual_norms),
            {name: m.classes.cpu().numpy() for name, m in means.items()},
            within,
        )


def add_square(product: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows (d, d), which takes little more than half of the time.

    Some numbers below the diagonal change as well: `mirror` sets them.
    """
    for start in range(0, len(product), PANEL):
        panel = slice(start, start + PANEL)
        product[panel, start:].addmm_(rows[:, panel].T, rows[:, start:])


def mirror(product: Tensor) -> None:
    """Copy the upper triangle of a (d, d) matrix to its lower one."""
    for start in range(0, len(product), PANEL):
        panel = slice(start, start + PANEL)
        product[start:, panel] = product[panel, start:].T.clone()


def _square_norm(matrix: Tensor) -> float:
    return float(torch.linalg.vecdot(matrix.ravel(), matrix.ravel()))

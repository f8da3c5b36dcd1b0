"""A sample of images, for what needs hundreds of draws: permutation tests and intervals.

A draw only permutes or leaves out images. So the inner products of all images of the sample are
made once, and a draw takes sums over them. Their number grows with the square of the number of
images, which is why there are at most `SAMPLED_IMAGES`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cltools.maths.alignment.features import inverse_norms, squares
from cltools.maths.alignment.moments import Pair, Rows, Table, add_square, mirror
from cltools.maths.blocks import CPU, RowSource, take

SAMPLED_IMAGES = 4096
# One product of features takes as long as permuting K if d d' is so many times the images.
DIMENSIONS_PER_IMAGE = 40
ROWS = 64  # of K that are permuted at a time, so that they fit into a processor's cache


def sampled_images(n: int, seed: int = 0) -> NDArray[np.intp]:
    """Numbers of the sampled images, ascending: all of n, or `SAMPLED_IMAGES` drawn at random."""
    if n <= SAMPLED_IMAGES:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, SAMPLED_IMAGES, replace=False))


@dataclass(frozen=True)
class Sample:
    """Features of m images of N, minus their mean over these images."""

    images: NDArray[np.intp]  # (m,) their numbers, ascending
    rows: Mapping[str, Rows]  # of each name, of these images
    centred: Mapping[str, Tensor]  # (m, d)
    _grams: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def gram(self, name: str) -> Tensor:
        """K (m, m), the inner products of the centered features. Made once."""
        if name not in self._grams:
            columns = self.centred[name].T
            m = columns.shape[1]
            self._grams[name] = torch.zeros(m, m, dtype=columns.dtype, device=columns.device)
            add_square(self._grams[name], columns)
            mirror(self._grams[name])
        return self._grams[name]

    def moment(self, pair: Pair, order: NDArray[np.intp] | None = None) -> float:
        """‖CᵀC'‖²_F = Σ_ij K_ij K'_ij, with the images of the second name in this order."""
        a, b = (self.centred[name] for name in pair)
        m = len(self.images)
        if order is None:
            order = np.arange(m)
        if a.device == CPU and a.shape[1] * b.shape[1] > DIMENSIONS_PER_IMAGE * m:
            return _permuted_sum(self.gram(pair[0]).numpy(), self.gram(pair[1]).numpy(), order)
        product = a.T @ b[torch.from_numpy(order).to(b.device)]
        return float(torch.linalg.vecdot(product.ravel(), product.ravel()))

    def subsets(self, pairs: Sequence[Pair], drawn: NDArray[np.intp]) -> Iterator[Table]:
        """What `moments_of` would find for subsets of the images, for each of them in turn.

        drawn (draws, size) has the places of the images within the sample.
        """
        # Let r = K w and s = wᵀ K w for a subset w of b images. Their own mean is still to be
        # subtracted from the features, which gives, with sums over the subset,
        #   ‖CᵀC'‖² = Σ_ij K_ij K'_ij - 2/b Σ_i r_i r'_i + s s'/b²,   q_i = K_ii - 2/b r_i + s/b².
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        pairs = list(dict.fromkeys([*((name, name) for name in names), *pairs]))
        draws, size = drawn.shape
        member = np.zeros((len(self.images), draws))
        member[drawn, np.arange(draws)[:, None]] = 1
        w = torch.from_numpy(member).to(self.centred[names[0]].device)
        sums = {name: (self.gram(name) @ w).cpu().numpy() for name in names}
        whole = {
            (a, b): (w * ((self.gram(a) * self.gram(b)) @ w)).sum(dim=0).tolist() for a, b in pairs
        }
        diagonal = {name: self.gram(name).diagonal().cpu().numpy() for name in names}
        for draw, images in enumerate(drawn):
            r = {name: sums[name][images, draw] for name in names}
            rows = {}
            for name, own in r.items():
                spread = diagonal[name][images] - 2 / size * own + own.sum() / size**2
                # Images that coincide, while others of the sample do not, leave rounding errors.
                if spread.sum() <= 1e-14 * diagonal[name][images].sum():
                    spread = np.zeros(size)
                rows[name] = Rows(self.rows[name].square[images], spread)
            norms = {
                (a, b): whole[a, b][draw] - 2 / size * float(r[a] @ r[b])
                + float(r[a].sum() * r[b].sum()) / size**2
                for a, b in pairs
            }  # fmt: skip
            yield Table(rows, norms)


def sample_of(
    features: Mapping[str, RowSource],
    images: NDArray[np.intp],
    cosine: bool,
    device: torch.device = CPU,
) -> Sample:
    """The features (N, d) of these images; with `cosine`, their rows are divided by their norms.

    Raises ValueError for NaN, infinity or numbers whose squares overflow.
    """
    rows, centred = {}, {}
    for name, x in features.items():
        c = take(x, images, device)
        square = squares(name, c)
        if cosine:
            c = c * inverse_norms(square)[:, None]
            square = (square > 0).to(square)
        c = c - c.mean(dim=0)
        rows[name] = Rows(square.cpu().numpy(), torch.linalg.vecdot(c, c).cpu().numpy())
        centred[name] = c
    return Sample(images, rows, centred)


def _permuted_sum(
    k: NDArray[np.float64], other: NDArray[np.float64], order: NDArray[np.intp]
) -> float:
    """Σ_ij K_ij K'_ij with the rows and columns of K' in this order, both being symmetric."""
    total = 0.0
    for start in range(0, len(k), ROWS):
        rows = slice(start, start + ROWS)
        permuted = other[order[rows]].take(order[start:], axis=1)
        own = permuted[:, :ROWS]  # has each pair twice; the others are here once
        total += 2 * np.einsum("ij,ij->", permuted, k[rows, start:])
        total -= np.einsum("ij,ij->", own, k[rows, rows])
    return float(total)

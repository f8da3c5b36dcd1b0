"""The contrastive losses of a whole data set, as the papers define them, from one matrix product.

P1 (arXiv 2506.04411) and P2 (2510.08852) state their theorems for losses over all N images. These
are not the means of the losses of batches. With z_i^l the embedding of view l of image i,

    DCL  = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j≠i}       e^{z_i^l1·z_j^l3/τ} ]
    NSCL = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j:y_j≠y_i} e^{z_i^l1·z_j^l3/τ} ]

where l1 ≠ l2. P1's formula also has l1 = l2, which pairs a view with itself and lowers both losses
by the same amount.

The KN×KN similarities are computed in tiles, the upper half only, once for both losses and all τ.
Two groups of images at most are in memory; only sums over images have N entries.
"""  # noqa: E501

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cltools.maths.blocks import CPU, RowSource, blocks_of, is_float64, read
from cltools.maths.sphere import Views, as_views

GROUP_BYTES = 256 << 20  # of the views of images whose similarities are computed together
SMALLEST_TAU = 0.003  # the smallest possible term, e^(-2/τ), is still a normal float64


class WholeSetLosses(NamedTuple):
    """Losses in nats."""

    dcl: float
    nscl: float


@torch.no_grad()
def whole_set_losses(
    z: Views,
    labels: Tensor,
    taus: Sequence[float],
    tile: int | None = None,
    device: torch.device | None = None,
) -> dict[float, WholeSetLosses]:
    """DCL and NSCL of a whole data set, at several temperatures at once.

    Args:
        z: K ≥ 2 views of N images: (K, N, d), or K sources (N, d) that are read from a file. Rows
            have norm 1, to 1e-2: they may have been stored in half precision. A row of zeros has
            similarity 0 with all rows, as in training.
        labels: (N,) integer classes.
        taus: temperatures, at least 0.003.
        tile: rows and columns of one piece of the similarity matrix. Default 512 on a CPU, so that
            a piece stays in the cache, and 8192 on a GPU.
        device: where the products are computed; by default that of z.

    Returns:
        τ -> losses. The products are in z's precision, or in float64 where float32 would
        underflow; sums over tiles are in float64. `nscl` is NaN with a single class, since no
        anchor has a negative then. Both losses are NaN when N = 1.

    Raises:
        ValueError: shapes that do not fit, rows that are not normalized, a τ that is too small, or
            K = 1.
    """
    device = device or (z.device if isinstance(z, Tensor) else CPU)
    views, labels = as_views("z", z), torch.as_tensor(labels)
    n, d = views[0].shape
    if labels.shape != (n,):
        raise ValueError(
            f"z {(len(views), n, d)} and labels {tuple(labels.shape)} must be (K, N, d) and (N,)"
        )
    if not all(tau >= SMALLEST_TAU for tau in taus):
        raise ValueError(f"temperatures must be at least {SMALLEST_TAU}, not {list(taus)}")
    underflow = any(2 / tau > 80 for tau in taus)
    double = underflow or is_float64(views[0])
    groups = [
        _Group(views, labels, part, device, torch.float64 if double else torch.float32)
        for part in blocks_of(n, len(views) * d, GROUP_BYTES * (1 if double else 2))
    ]
    positive, same, other = _sums(groups, taus, tile or (512 if device.type == "cpu" else 8192))

    losses = {}
    one_class = bool((labels == labels[0]).all())
    for tau, s, o in zip(taus, same, other, strict=True):
        # e^(1/τ) was left out of every term of the sums.
        dcl, nscl = ((1 - positive) / tau + part.log().mean().item() for part in (s + o, o))
        nan = float("nan")
        losses[tau] = WholeSetLosses(dcl if n > 1 else nan, nan if one_class else nscl)
    return losses


class _Group:
    """Some images, sorted by class so that each class is one block of rows, and views by image."""

    def __init__(
        self,
        views: Sequence[RowSource],
        labels: Tensor,
        part: slice,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._views, self._part, self._device, self._dtype = views, part, device, dtype
        self.count = len(views)
        self.labels, self._order = torch.sort(labels[part].to(device), stable=True)
        self.rows = slice(part.start * self.count, part.stop * self.count)

    def read(self) -> Tensor:
        """(n, K, d); raises ValueError unless rows have norm 1 or 0."""
        each = [read(view, self._part, self._device, self._dtype) for view in self._views]
        z = torch.stack(each, dim=1)[self._order]
        norms = z.norm(dim=2)
        if not (((norms - 1).abs() < 1e-2) | (norms == 0)).all():
            raise ValueError("rows of z must have norm 1: pass the L2-normalized projector output")
        return z


def _sums(
    groups: Sequence[_Group], taus: Sequence[float], tile: int
) -> tuple[float, Tensor, Tensor]:
    """Mean similarity of two views of one image, and the partition sums of `_add_tiles`.

    The sums (taus, N K) are over other images of the class, and over other classes.
    """
    first = groups[0].read()
    same = first.new_zeros(len(taus), groups[-1].rows.stop, dtype=torch.float64)
    other = torch.zeros_like(same)
    positive = 0.0
    for i, group in enumerate(groups):
        left = group.read() if i else first
        positive += _positives(left)
        for j, across in enumerate(groups[i:], start=i):
            right = left if i == j else across.read()
            a, b = (_Rows(z, g.labels, g.rows) for z, g in ((left, group), (right, across)))
            _add_tiles(a, b, taus, tile, same, other)
    count = groups[0].count
    return positive / (groups[-1].rows.stop * (count - 1)), same, other


def _positives(z: Tensor) -> float:
    """Sum of the similarities of two different views of one image; z is (n, K, d)."""
    total = z.sum(dim=1, dtype=torch.float64).square().sum()  # Σ_i Σ_{l1,l2} z_i^l1·z_i^l2
    return (total - z.double().square().sum()).item()


class _Rows:
    """The views of a group as rows (n K, d), their labels, and their place among all rows."""

    def __init__(self, z: Tensor, labels: Tensor, place: slice) -> None:
        self.views = z.shape[1]
        self.z = z.flatten(0, 1)
        self.labels = labels.repeat_interleave(self.views)
        self.place = place

    def tiles(self, size: int) -> list["_Tile"]:
        n, at, labels = len(self.z), self.place.start, self.labels.tolist()
        size = max(size // self.views, 1) * self.views  # the views of an image share a tile
        parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        return [
            _Tile(p, slice(p.start + at, p.stop + at), labels[p.start], labels[p.stop - 1])
            for p in parts
        ]


class _Tile(NamedTuple):
    """Rows of a group, their place among all, and the labels at its ends.

    The labels say whether a tile needs a mask. They are read beforehand, so that no tile waits for
    the device.
    """

    rows: slice
    place: slice
    first: int
    last: int


def _add_tiles(
    a: _Rows, b: _Rows, taus: Sequence[float], tile: int, same: Tensor, other: Tensor
) -> None:
    """Add Σ e^((sim - 1)/τ) over pairs of rows of a and b, to both rows of each pair.

    A log-sum-exp would subtract the maximum of each row. Cosines do not exceed 1, so 1 is
    subtracted instead and no maximum is needed. Labels ascend within a and within b; if a is b, the
    upper half is computed, and the lower is its mirror.
    """
    within = a.place == b.place
    columns = b.tiles(tile)
    for i, left in enumerate(a.tiles(tile)):
        for right in columns[i if within else 0 :]:
            sim = (a.z[left.rows] @ b.z[right.rows].T).sub_(1)
            mirrored = left.place == right.place
            if mirrored:  # no image is its own negative
                image = torch.arange(len(sim), device=sim.device) // a.views
                sim.masked_fill_(image[:, None] == image, -torch.inf)
            all_same = left.first == left.last == right.first == right.last
            none_same = left.last < right.first or right.last < left.first
            mask = None
            if not (all_same or none_same):
                mask = a.labels[left.rows, None] == b.labels[right.rows]
            for t, tau in enumerate(taus):
                # The last temperature may overwrite the similarities. torch computes 2^x in 0.4 of
                # the time of e^x (version 2.14, AMD EPYC), and as exactly.
                scale = math.log2(math.e) / tau
                terms = (sim.mul_(scale) if t == len(taus) - 1 else sim * scale).exp2_()
                if mask is None:
                    parts = [(same if all_same else other, terms)]
                else:
                    parts = [
                        (same, terms.masked_fill(~mask, 0)),
                        (other, terms.masked_fill(mask, 0)),
                    ]
                for sums, part in parts:
                    sums[t, left.place] += part.sum(dim=1)
                    if not mirrored:
                        sums[t, right.place] += part.sum(dim=0)

"""The contrastive losses of a whole data set, as the papers define them, from one matrix product.

P1 (arXiv 2506.04411) and P2 (2510.08852) state their theorems for losses over all N images. These
are not the means of the losses of batches. With z_i^l the embedding of view l of image i,

    DCL  = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j≠i}       e^{z_i^l1·z_j^l3/τ} ]
    NSCL = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j:y_j≠y_i} e^{z_i^l1·z_j^l3/τ} ]

where l1 ≠ l2. P1's formula also has l1 = l2, which pairs a view with itself and lowers both losses
by the same amount.

The KN×KN similarities are computed in tiles, the upper half only, once for both losses and all τ.
"""  # noqa: E501

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_TAU = 0.003  # the smallest possible term, e^(-2/τ), is still a normal float64


class WholeSetLosses(NamedTuple):
    """Losses in nats."""

    dcl: float
    nscl: float


@torch.no_grad()
def whole_set_losses(
    z: Tensor,
    labels: Tensor,
    taus: Sequence[float],
    tile: int | None = None,
) -> dict[float, WholeSetLosses]:
    """DCL and NSCL of a whole data set, at several temperatures at once.

    Args:
        z: (K, N, d), K ≥ 2 views of N images. Rows have norm 1, to 1e-2: they may have been stored
            in half precision. A row of zeros has similarity 0 with all rows, as in training.
        labels: (N,) integer classes.
        taus: temperatures, at least 0.003.
        tile: rows and columns of one piece of the similarity matrix. Default 512 on a CPU, so that
            a piece stays in the cache, and 8192 on a GPU.

    Returns:
        τ -> losses. The products are in z's precision, or in float64 where float32 would
        underflow; sums over tiles are in float64. `nscl` is NaN with a single class, since no
        anchor has a negative then. Both losses are NaN when N = 1.

    Raises:
        ValueError: shapes that do not fit, rows that are not normalized, a τ that is too small, or
            K = 1.
    """
    z, labels = torch.as_tensor(z), torch.as_tensor(labels)
    if z.ndim != 3 or z.numel() == 0 or labels.shape != z.shape[1:2]:
        raise ValueError(
            f"z {tuple(z.shape)} and labels {tuple(labels.shape)} must be (K, N, d) and (N,)"
        )
    views, n, _ = z.shape
    if views < 2:
        raise ValueError("one view per image has no positives: z needs K ≥ 2 views")
    if not all(tau >= SMALLEST_TAU for tau in taus):
        raise ValueError(f"temperatures must be at least {SMALLEST_TAU}, not {list(taus)}")
    underflow = any(2 / tau > 80 for tau in taus)
    z = z.to(torch.float64 if underflow or z.dtype == torch.float64 else torch.float32)
    norms = z.norm(dim=2)
    if not (((norms - 1).abs() < 1e-2) | (norms == 0)).all():
        raise ValueError("rows of z must have norm 1: pass the L2-normalized projector output")

    # Images are sorted by class and views by image, so that each class is one block of rows.
    labels, order = torch.sort(labels.to(z.device), stable=True)
    z = z[:, order].transpose(0, 1)
    positive = _mean_positive(z)
    same, other = _partition_sums(
        z, labels, taus, tile or (512 if z.device.type == "cpu" else 8192)
    )

    losses = {}
    for tau, s, o in zip(taus, same, other, strict=True):
        # e^(1/τ) was left out of every term of the sums.
        dcl, nscl = ((1 - positive) / tau + part.log().mean().item() for part in (s + o, o))
        nan = float("nan")
        one_class = bool(labels[0] == labels[-1])
        losses[tau] = WholeSetLosses(dcl if n > 1 else nan, nan if one_class else nscl)
    return losses


def _mean_positive(z: Tensor) -> float:
    """Mean similarity of two different views of one image; z is (N, K, d)."""
    n, views, _ = z.shape
    total = z.sum(dim=1, dtype=torch.float64).square().sum()  # Σ_i Σ_{l1,l2} z_i^l1·z_i^l2
    own = z.double().square().sum()
    return ((total - own) / (n * views * (views - 1))).item()


def _partition_sums(
    z: Tensor, labels: Tensor, taus: Sequence[float], tile: int
) -> tuple[Tensor, Tensor]:
    """Σ e^((sim - 1)/τ) over other images of the class, and over other classes: (taus, N K) each.

    z is (N, K, d) with `labels` in ascending order. A log-sum-exp would subtract the maximum of
    each row. Cosines do not exceed 1, so 1 is subtracted instead and no maximum is needed.
    """
    n, views, d = z.shape
    z = z.reshape(n * views, d)
    labels = labels.repeat_interleave(views)
    same = z.new_zeros(len(taus), n * views, dtype=torch.float64)
    other = torch.zeros_like(same)
    tile = max(tile // views, 1) * views  # the views of an image share a tile
    tiles = [slice(i, min(i + tile, n * views)) for i in range(0, n * views, tile)]
    # The labels at the ends of a tile say whether it needs a mask. They are read beforehand, so
    # that no tile waits for the device.
    ends = [(labels[t.start].item(), labels[t.stop - 1].item()) for t in tiles]

    for i, rows in enumerate(tiles):
        for j in range(i, len(tiles)):
            columns = tiles[j]
            sim = (z[rows] @ z[columns].T).sub_(1)
            if i == j:  # no image is its own negative
                image = torch.arange(len(sim), device=z.device) // views
                sim.masked_fill_(image[:, None] == image, -torch.inf)
            all_same = ends[i][0] == ends[j][1]
            none_same = i != j and ends[i][1] != ends[j][0]
            mask = None
            if not (all_same or none_same):
                mask = labels[rows, None] == labels[columns]
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
                    sums[t, rows] += part.sum(dim=1)
                    if i != j:  # the lower half is the mirror of the upper
                        sums[t, columns] += part.sum(dim=0)
    return same, other

"""The contrastive losses of a whole data set, as the papers define them, from one matrix product.

P1 (arXiv 2506.04411) and P2 (2510.08852) state their theorems for losses over all N images, which
differ from the mean over batches. With z_i^l the embedding of view l of image i,

    DCL  = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j≠i}       e^{z_i^l1·z_j^l3/τ} ]
    NSCL = mean over (i, l1, l2) of  -log[ e^{z_i^l1·z_i^l2/τ} / Σ_{l3} Σ_{j:y_j≠y_i} e^{z_i^l1·z_j^l3/τ} ]

The KN×KN similarities are made tile by tile, upper half only, and serve both losses and all τ.
"""  # noqa: E501

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SMALLEST_TAU = 0.003  # e^(-2/τ), the smallest term there can be, still is a float64


class WholeSetLosses(NamedTuple):
    """Losses in nats."""

    dcl: float
    nscl: float


@torch.no_grad()
def whole_set_losses(
    z: Tensor,
    labels: Tensor,
    taus: Sequence[float],
    pairs: Literal["cross", "all"] = "cross",
    tile: int | None = None,
) -> dict[float, WholeSetLosses]:
    """DCL and NSCL of a whole data set, at several temperatures at once.

    Args:
        z: (K, N, d), K views of N images, rows of norm 1 (to 1e-2, half precision may be stored).
        labels: (N,) integer classes.
        taus: temperatures, at least 0.003.
        pairs: which positives the mean is over: "cross" takes l1 ≠ l2 and needs K ≥ 2; "all" is
            P1's formula, in which a view is also its own positive (l1 = l2). Denominators hold all
            K views of the other images either way.
        tile: rows and columns of one piece of the similarity matrix; default 512 on a CPU, where
            it then stays in the cache, and 8192 on a GPU.

    Returns:
        τ -> losses. Arithmetic is in z's precision (float64 where float32 would underflow), sums
        over tiles are float64. `nscl` is NaN when an anchor has no negative of another class, that
        is with a single class; both are NaN when N = 1.

    Raises:
        ValueError: shapes that do not fit, rows that are not normalized, a τ that is too small, or
            K = 1 with "cross".
    """
    z, labels = torch.as_tensor(z), torch.as_tensor(labels)
    if z.ndim != 3 or z.numel() == 0 or labels.shape != z.shape[1:2]:
        raise ValueError(
            f"z {tuple(z.shape)} and labels {tuple(labels.shape)} must be (K, N, d) and (N,)"
        )
    if pairs not in ("cross", "all"):
        raise ValueError(f"pairs must be 'cross' or 'all', not {pairs!r}")
    views, n, _ = z.shape
    if pairs == "cross" and views < 2:
        raise ValueError("one view per image has no cross-view positives: use pairs='all'")
    if not all(tau >= SMALLEST_TAU for tau in taus):
        raise ValueError(f"temperatures must be at least {SMALLEST_TAU}, not {list(taus)}")
    underflow = any(2 / tau > 80 for tau in taus)
    z = z.to(torch.float64 if underflow or z.dtype == torch.float64 else torch.float32)
    if not ((z.norm(dim=2) - 1).abs() < 1e-2).all():
        raise ValueError("rows of z must have norm 1: pass the L2-normalized projector output")

    # Sorted by class, image by image: same-class similarities are contiguous, own views adjacent.
    labels, order = torch.sort(labels.to(z.device), stable=True)
    z = z[:, order].transpose(0, 1)
    positive = _mean_positive(z, pairs)
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


def _mean_positive(z: Tensor, pairs: str) -> float:
    """Mean similarity of the views of one image; z is (N, K, d)."""
    n, views, _ = z.shape
    total = z.sum(dim=1, dtype=torch.float64).square().sum()  # Σ_i Σ_{l1,l2} z_i^l1·z_i^l2
    if pairs == "all":
        return (total / (n * views**2)).item()
    own = z.double().square().sum()
    return ((total - own) / (n * views * (views - 1))).item()


def _partition_sums(
    z: Tensor, labels: Tensor, taus: Sequence[float], tile: int
) -> tuple[Tensor, Tensor]:
    """Σ e^((sim - 1)/τ) over same-class other images, and over other classes: (taus, N K) each.

    z is (N, K, d) with `labels` in ascending order. Cosines do not exceed 1, so 1 takes the place
    of the row maximum that a log-sum-exp would have to look for.
    """
    n, views, d = z.shape
    z = z.reshape(n * views, d)
    labels = labels.repeat_interleave(views)
    same = z.new_zeros(len(taus), n * views, dtype=torch.float64)
    other = torch.zeros_like(same)
    tile = max(tile // views, 1) * views  # the views of an image share a tile
    tiles = [slice(i, min(i + tile, n * views)) for i in range(0, n * views, tile)]
    # Labels decide on the host which tiles need a mask, without a wait for the device per tile.
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
                # The last temperature may overwrite the similarities. 2^x takes torch 0.4 of the
                # time of e^x (2.14, AMD EPYC), and is as exact.
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

"""Losses averaged over batches, as the papers' code evaluates them.

NSCL is the negatives-only supervised contrastive loss, see `cltools.maths.objectives`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cltools.maths.blocks import CPU, RowSource, blocks_of, is_float64, take
from cltools.maths.bounds import gap_bound
from cltools.maths.objectives import contrastive_loss, pair_masks, similarity_logits
from cltools.maths.sphere import Views, as_views


@torch.no_grad()
def batch_losses(
    names: Sequence[str],
    z: Views,
    labels: Tensor,
    tau: float,
    batch_size: int,
    seed: int = 0,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Mean of contrastive losses over batches; all batches have the same weight.

    The images are split into batches at random. If the batch size does not divide their number,
    the last batch is smaller, as in the authors' evaluation (understanding-ssl, losses_eval.py).
    Its loss is lower because it has fewer negatives.

    Args:
        names: contrastive objectives.
        z: K ≥ 2 views of N images, rows of norm 1: (K, N, d), or K sources (N, d) that are read
            from a file. float64 stays so, everything else becomes float32.
        labels: (N,) integers 0..C-1.
        tau: temperature, above 0.
        batch_size: B in images, 2 or more.
        seed: decides how the images are split.
        device: where the losses are computed.

    Returns:
        name -> loss in nats, and "gap_bound" -> the mean of the bounds of the batches. Batches of
        one class are left out, since NSCL is undefined on them, and so is a last batch of one
        image. NaN when no batch remains.

    Raises:
        ValueError: batch_size below 2, or arguments that the losses do not accept.
    """
    if batch_size < 2:
        raise ValueError(f"a batch holds two images or more, not {batch_size}")
    views = as_views("z", z)
    order = np.random.default_rng(seed).permutation(len(labels))
    found: dict[str, list[float]] = {name: [] for name in (*names, "gap_bound")}
    for chosen, embedded in _batches(views, order, batch_size, device):
        own = labels[torch.from_numpy(chosen)]
        counts = torch.bincount(own)
        if (counts > 0).sum() < 2:
            continue
        logits = similarity_logits(embedded, tau)
        masks = pair_masks(own.to(device), len(views))
        for name in names:
            found[name].append(contrastive_loss(name, logits, masks).item())
        found["gap_bound"].append(gap_bound(int(counts.max()), len(chosen), tau))
    return {name: float(np.mean(v)) if v else float("nan") for name, v in found.items()}


def _batches(
    views: Sequence[RowSource], order: NDArray[np.intp], size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """The images (n,) of each batch in turn, and their views (K, n, d).

    Rows of a file are read for as many batches at once as fit into `blocks.BLOCK_BYTES`.
    """
    double = is_float64(views[0])
    dtype = torch.float64 if double else torch.float32
    together = blocks_of(len(order), len(views) * views[0].shape[1])[0].stop
    together = max(together // size, 1) * size
    for start in range(0, len(order), together):
        some = order[start : start + together]
        rows = np.sort(some)
        held = torch.stack([take(view, rows, device, dtype) for view in views])
        for first in range(0, len(some), size):
            chosen = some[first : first + size]
            yield chosen, held[:, torch.from_numpy(np.searchsorted(rows, chosen)).to(device)]

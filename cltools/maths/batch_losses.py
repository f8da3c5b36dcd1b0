"""Losses averaged over batches: the form in which the papers' code evaluates them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cltools.maths.bounds import gap_bound
from cltools.maths.objectives import contrastive_loss, pair_masks, similarity_logits


@torch.no_grad()
def batch_losses(
    names: Sequence[str], z: Tensor, labels: Tensor, tau: float, batch_size: int, seed: int = 0
) -> dict[str, float]:
    """Mean over batches of contrastive losses, every batch counting alike.

    The batches are a random partition of the images. Where a remainder is left, the last batch is
    smaller, as in the authors' evaluation (understanding-ssl, losses_eval.py); its loss is lower,
    since there are fewer negatives.

    Args:
        names: of contrastive objectives.
        z: (K, N, d), K ≥ 2 views of N images, rows of norm 1.
        labels: (N,) integers 0..C-1.
        tau: temperature, above 0.
        batch_size: B in images, 2 or more.
        seed: draws the partition.

    Returns:
        name -> loss in nats, and "gap_bound" -> the mean of the batches' own bounds. Batches of one
        class, on which NSCL is undefined, and a remainder of one image are left out; NaN when no
        batch is left.

    Raises:
        ValueError: batch_size below 2, or what the losses refuse.
    """
    if batch_size < 2:
        raise ValueError(f"a batch holds two images or more, not {batch_size}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    found: dict[str, list[float]] = {name: [] for name in (*names, "gap_bound")}
    for chosen in order.split(batch_size):
        counts = torch.bincount(labels[chosen])
        if (counts > 0).sum() < 2:
            continue
        logits = similarity_logits(z[:, chosen], tau)
        masks = pair_masks(labels[chosen], len(z))
        for name in names:
            found[name].append(contrastive_loss(name, logits, masks).item())
        found["gap_bound"].append(gap_bound(int(counts.max()), len(chosen), tau))
    return {name: float(np.mean(v)) if v else float("nan") for name, v in found.items()}

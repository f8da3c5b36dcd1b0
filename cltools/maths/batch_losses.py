"""Losses averaged over batches, as the papers' code evaluates them.

NSCL is the negatives-only supervised contrastive loss, see `cltools.maths.objectives`.
"""

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
    """Mean of contrastive losses over batches; all batches have the same weight.

    The images are split into batches at random. If the batch size does not divide their number,
    the last batch is smaller, as in the authors' evaluation (understanding-ssl, losses_eval.py).
    Its loss is lower because it has fewer negatives.

    Args:
        names: contrastive objectives.
        z: (K, N, d), K ≥ 2 views of N images, rows of norm 1.
        labels: (N,) integers 0..C-1.
        tau: temperature, above 0.
        batch_size: B in images, 2 or more.
        seed: decides how the images are split.

    Returns:
        name -> loss in nats, and "gap_bound" -> the mean of the bounds of the batches. Batches of
        one class are left out, since NSCL is undefined on them, and so is a last batch of one
        image. NaN when no batch remains.

    Raises:
        ValueError: batch_size below 2, or arguments that the losses do not accept.
    """
    if batch_size < 2:
        raise ValueError(f"a batch holds two images or more, not {batch_size}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    found: dict[str, list[float]] = {name: [] for name in (*names, "gap_bound")}
    for chosen in torch.split(order, batch_size):
        counts = torch.bincount(labels[chosen])
        if (counts > 0).sum() < 2:
            continue
        logits = similarity_logits(z[:, chosen], tau)
        masks = pair_masks(labels[chosen], len(z))
        for name in names:
            found[name].append(contrastive_loss(name, logits, masks).item())
        found["gap_bound"].append(gap_bound(int(counts.max()), len(chosen), tau))
    return {name: float(np.mean(v)) if v else float("nan") for name, v in found.items()}

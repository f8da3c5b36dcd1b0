"""How far the projections of a batch have collapsed, by two cheap numbers.

What is measured at checkpoints is more (see `collapse.effective_rank` and `sphere.uniformity`).
These are for every step of training.
"""

import torch
from torch import Tensor


@torch.no_grad()
def spread(z: Tensor) -> tuple[Tensor, Tensor]:
    """How far unit vectors spread, and over how many dimensions.

    Args:
        z: (n, d), rows of unit norm, n ≥ 2.

    Returns:
        std: sqrt(d) times the mean over dimensions of the standard deviation over rows, in [0, 1].
            0 if all rows are equal, about 1 if they point everywhere alike (Chen & He 2021,
            arXiv 2011.10566, Section 4.1).
        rank: participation ratio of the covariance, (sum of eigenvalues)² / sum of their squares,
            in [1, d]. 1 if all rows lie on a line. NaN if they are equal.
    """
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / len(z)
    variances = covariance.diagonal()
    std = variances.clamp_min(0).sqrt().mean() * z.shape[1] ** 0.5
    return std, variances.sum() ** 2 / covariance.square().sum()

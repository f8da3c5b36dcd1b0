"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from functools import partial
from typing import TYPE_CHECKING

from cltools.objectives.declared import Objective, Outputs, Setting, over_pairs

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-5  # added to variances, as BatchNorm does, which the authors' code uses


def barlow_twins(a: "Tensor", b: "Tensor", redundancy: float) -> "Tensor":
    """The loss of two views (B, d), not normalized (Eq. 1 of the paper).

    With the correlations C (d, d) of the dimensions of one view with those of the other, over the
    batch: sum of (1 - C_ii)² + redundancy · sum of C_ij² over i ≠ j.
    """
    correlations = _standardized(a).T @ _standardized(b) / len(a)
    diagonal = correlations.diagonal()
    others = correlations.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * others


def _standardized(x: "Tensor") -> "Tensor":
    variance = x.var(dim=0, correction=0)
    return (x - x.mean(dim=0)) / (variance + EPSILON).sqrt()


def loss(outputs: Outputs, redundancy: float, scale: float) -> "Tensor":
    """`scale` times `barlow_twins`, the mean over pairs of views."""
    return scale * over_pairs(partial(barlow_twins, redundancy=redundancy), outputs.projections)


OBJECTIVE = Objective(
    name="barlow_twins",
    loss=loss,
    label="Barlow Twins",
    color="#B8860B",
    marker=">",
    projections=True,
    # λ of Section 3.2 of the paper, for d = 8192. The authors' code has a scale, their paper none.
    settings={"redundancy": Setting(5e-3), "scale": Setting(1.0)},
)

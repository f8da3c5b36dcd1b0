"""VICReg: variance, invariance and covariance (Bardes, Ponce & LeCun 2022, arXiv 2105.04906)."""

from functools import partial
from typing import TYPE_CHECKING

from cltools.objectives.declared import Objective, Outputs, Setting, over_pairs

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-4  # this and the divisors below are those of the authors' code (main_vicreg.py)


def vicreg(
    a: "Tensor", b: "Tensor", invariance: float, variance: float, covariance: float
) -> "Tensor":
    """The loss of two views (B, d), not normalized, of B ≥ 2 images.

    invariance · mean squared difference + variance · half of both views' mean over dimensions of
    max(0, 1 - standard deviation) + covariance · both views' sum of squared covariances of two
    dimensions, divided by d.
    """
    apart = (a - b).square().mean()
    spread = _variance(a) + _variance(b)
    redundant = _covariance(a) + _covariance(b)
    return invariance * apart + variance * spread + covariance * redundant


def _variance(x: "Tensor") -> "Tensor":
    return (1 - (x.var(dim=0) + EPSILON).sqrt()).relu().mean() / 2


def _covariance(x: "Tensor") -> "Tensor":
    count, dimension = x.shape
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred / (count - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / dimension


def loss(outputs: Outputs, invariance: float, variance: float, covariance: float) -> "Tensor":
    """`vicreg`, the mean over pairs of views."""
    one = partial(vicreg, invariance=invariance, variance=variance, covariance=covariance)
    return over_pairs(one, outputs.projections)


OBJECTIVE = Objective(
    name="vicreg",
    loss=loss,
    label="VICReg",
    color="#117733",
    marker="<",
    projections=True,
    # Section 4.2 of the paper.
    settings={
        "invariance": Setting(25.0),
        "variance": Setting(25.0),
        "covariance": Setting(1.0),
    },
)

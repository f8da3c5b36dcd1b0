"""VICReg: variance, invariance and covariance (Bardes, Ponce & LeCun 2022, arXiv 2105.04906)."""

from typing import TYPE_CHECKING

from cltools.objectives.declared import Objective, Outputs, over_pairs

if TYPE_CHECKING:
    from torch import Tensor

# Section 4.2 of the paper; ε and the two divisors below as in the authors' code (main_vicreg.py).
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
EPSILON = 1e-4


def vicreg(a: "Tensor", b: "Tensor") -> "Tensor":
    """The loss of two views (B, d), not normalized, of B ≥ 2 images.

    25 · mean squared difference + 25 · half of both views' mean of max(0, 1 - standard deviation)
    over dimensions + both views' sum of squared covariances of two dimensions, divided by d.
    """
    invariance = (a - b).square().mean()
    variance = _variance(a) + _variance(b)
    covariance = _covariance(a) + _covariance(b)
    return INVARIANCE * invariance + VARIANCE * variance + COVARIANCE * covariance


def _variance(x: "Tensor") -> "Tensor":
    return (1 - (x.var(dim=0) + EPSILON).sqrt()).relu().mean() / 2


def _covariance(x: "Tensor") -> "Tensor":
    count, dimension = x.shape
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred / (count - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / dimension


def loss(outputs: Outputs) -> "Tensor":
    """`vicreg`, the mean over pairs of views."""
    return over_pairs(vicreg, outputs.projections)


OBJECTIVE = Objective(
    name="vicreg",
    loss=loss,
    label="VICReg",
    color="#117733",
    marker="<",
    projections=True,
)

"""BYOL: a predictor and a momentum network (Grill et al. 2020, arXiv 2006.07733)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cltools.objectives.declared import MOMENTUM, Objective, Outputs, Setting, across_views, cosines

if TYPE_CHECKING:
    from torch import Tensor


def byol(predictions: "Tensor", targets: "Tensor") -> "Tensor":
    """2 - 2 · mean cosine of predictions with another view's targets, (B, d) each (Eq. 2)."""
    return 2 - 2 * cosines(predictions, targets).mean()


def loss(outputs: Outputs) -> "Tensor":
    """Twice the mean of `byol` over ordered pairs of views: with two, the sum of both."""
    return 2 * across_views(byol, outputs.predictions, outputs.targets)


def hidden(cell: Mapping[str, Any]) -> int:
    """The hidden width of the predictor: that of the projector (Section 3.2), or else of z."""
    width: int = cell["projector_hidden"]
    return width


OBJECTIVE = Objective(
    name="byol",
    loss=loss,
    label="BYOL",
    color="#661100",
    marker="d",
    predictor=hidden,
    target=True,
    settings={MOMENTUM: Setting(0.996, below=1)},  # Section 3.2
)

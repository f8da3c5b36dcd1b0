"""SimSiam: a predictor and a stopped gradient (Chen & He 2021, arXiv 2011.10566)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cltools.objectives.declared import Objective, Outputs, across_views, cosines

if TYPE_CHECKING:
    from torch import Tensor


def simsiam(predictions: "Tensor", projections: "Tensor") -> "Tensor":
    """Minus the mean cosine of predictions with another view's projections, (B, d) each.

    No gradient reaches the projections (Eq. 3 of the paper).
    """
    return -cosines(predictions, projections.detach()).mean()


def loss(outputs: Outputs) -> "Tensor":
    """`simsiam`, the mean over ordered pairs of views (Eq. 4)."""
    return across_views(simsiam, outputs.predictions, outputs.projections)


def hidden(cell: Mapping[str, Any]) -> int:
    """The bottleneck of the predictor: a quarter of its input (Section 3, "Baseline settings")."""
    inputs: int = cell["projector_dim"]
    return max(1, inputs // 4)


OBJECTIVE = Objective(
    name="simsiam",
    loss=loss,
    label="SimSiam",
    color="#8A63C9",
    marker="h",
    predictor=hidden,
)

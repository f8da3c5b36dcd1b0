"""Cross-entropy of a linear head on the normalized projections."""

from typing import TYPE_CHECKING

from cltools.objectives.declared import Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor


def loss(outputs: Outputs) -> "Tensor":
    """CE, the mean over all views and images, in nats."""
    from cltools.maths.objectives import cross_entropy

    return cross_entropy(outputs.class_logits, outputs.labels)


OBJECTIVE = Objective(
    name="ce",
    loss=loss,
    label="CE",
    color="#CC79A7",
    marker="D",
    labels=True,
    classifier=True,
)

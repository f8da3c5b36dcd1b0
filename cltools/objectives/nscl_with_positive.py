"""NSCL with the positive in the denominator, as the authors' code has it."""

from cltools.objectives.declared import Objective, of_the_papers, with_queue

OBJECTIVE = Objective(
    name="nscl_with_positive",
    loss=of_the_papers("nscl_with_positive"),
    label="NSCL with positive",
    color="#E69F00",
    marker="P",
    labels=True,
    two_classes=True,
    contrastive=True,
    queue=with_queue("nscl_with_positive"),
)

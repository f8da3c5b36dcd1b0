"""NSCL: DCL without the negatives of the anchor's own class."""

from cltools.objectives.declared import Objective, of_the_papers, with_queue

OBJECTIVE = Objective(
    name="nscl",
    loss=of_the_papers("nscl"),
    label="NSCL",
    color="#D55E00",
    marker="s",
    labels=True,
    two_classes=True,
    contrastive=True,
    queue=with_queue("nscl"),
)

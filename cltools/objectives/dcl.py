"""DCL: contrastive learning as the papers write it, decoupled."""

from cltools.objectives.declared import Objective, of_the_papers, with_queue

OBJECTIVE = Objective(
    name="dcl",
    loss=of_the_papers("dcl"),
    label="DCL",
    color="#0072B2",
    marker="o",
    contrastive=True,
    queue=with_queue("dcl"),
)

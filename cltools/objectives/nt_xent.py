"""NT-Xent of SimCLR: DCL with the positive in the denominator."""

from cltools.objectives.declared import Objective, of_the_papers, with_queue

OBJECTIVE = Objective(
    name="nt_xent",
    loss=of_the_papers("nt_xent"),
    label="NT-Xent",
    color="#56B4E9",
    marker="v",
    contrastive=True,
    queue=with_queue("nt_xent"),
)

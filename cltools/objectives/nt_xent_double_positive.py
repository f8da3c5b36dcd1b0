"""NT-Xent with the positive twice in the denominator, as the authors' code has it."""

from cltools.objectives.declared import Objective, of_the_papers, with_queue

OBJECTIVE = Objective(
    name="nt_xent_double_positive",
    loss=of_the_papers("nt_xent_double_positive"),
    label="NT-Xent, positive twice",
    color="#332288",
    marker="*",
    contrastive=True,
    queue=with_queue("nt_xent_double_positive"),
)

"""SCL: SupCon of Khosla et al. 2020, with the mean over positives outside the logarithm."""

from cltools.objectives.declared import Objective, of_the_papers

OBJECTIVE = Objective(
    name="scl",
    loss=of_the_papers("scl"),
    label="SCL",
    color="#009E73",
    marker="^",
    labels=True,
    contrastive=True,
)

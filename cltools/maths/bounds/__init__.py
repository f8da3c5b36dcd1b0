"""All bounds of the two papers: P1 is arXiv 2506.04411, P2 arXiv 2510.08852."""

from cltools.maths.bounds.common import Bound, Sides
from cltools.maths.bounds.drift import (
    batch_class_counts,
    batch_composition_deviation,
    delta_pi,
    drift_bound,
    epsilon,
    gradient_gap_bound,
    lipschitz_constant,
    lipschitz_sides,
    reweighting_sides,
    step_bound,
    vacuous_orders,
)
from cltools.maths.bounds.few_shot import few_shot_bound, few_shot_bound_displayed
from cltools.maths.bounds.loss_gap import gap_bound
from cltools.maths.bounds.similarity import cka_lower_bound, cosine_lower_bound, rsa_lower_bound
from cltools.maths.bounds.weight_drift import weight_bound

__all__ = [
    "Bound", "Sides", "batch_class_counts", "batch_composition_deviation", "cka_lower_bound",
    "cosine_lower_bound", "delta_pi", "drift_bound", "epsilon", "few_shot_bound",
    "few_shot_bound_displayed", "gap_bound", "gradient_gap_bound", "lipschitz_constant",
    "lipschitz_sides", "reweighting_sides", "rsa_lower_bound", "step_bound", "vacuous_orders",
    "weight_bound",
]  # fmt: skip

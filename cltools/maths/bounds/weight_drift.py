"""The form of P2's Theorem 2, on how far weights drift apart (arXiv 2510.08852)."""

import numpy as np

from cltools.maths.bounds.common import Bound, bound_from_log, check_tau


def weight_bound(
    gradient_bound: float, smoothness: float, tau: float, classes: int, sum_lr: float
) -> Bound:
    """The form of P2 Theorem 2: ‖w^CL - w^NSCL‖ ≲ (G e^(2/τ)/(β τ C)) (exp(β Ση) - 1).

    This is the form of an estimate, not a bound. The source (the first version of the authors'
    blog) leaves constants out and only names G and β, and the β of a network is unknown. So only
    the way in which it depends on τ, C and Ση means something.

    Args:
        gradient_bound: G, above 0.
        smoothness: β of the loss in the weights, above 0.
        tau: temperature, above 0.
        classes: C, balanced, 1 or more.
        sum_lr: Ση, 0 or above.

    Returns:
        The estimate; 0 (log10 -inf) at Ση = 0.

    Raises:
        ValueError: arguments outside these ranges.
    """
    check_tau(tau)
    if not (gradient_bound > 0 and smoothness > 0 and classes >= 1 and sum_lr >= 0):
        raise ValueError("need gradient_bound, smoothness > 0, classes ≥ 1 and sum_lr ≥ 0")
    growth = smoothness * sum_lr
    with np.errstate(divide="ignore"):
        log_expm1 = growth + np.log(-np.expm1(-growth))  # does not overflow
    return bound_from_log(
        log_expm1 + 2 / tau + np.log(gradient_bound / (smoothness * tau * classes))
    )

"""Bound on the gap between the CL and the NSCL loss (P1, arXiv 2506.04411)."""

import numpy as np


def gap_bound(n_max: int, n_total: int, tau: float) -> float:
    """Largest possible DCL - NSCL: log(1 + n_max e^(2/tau) / (N - n_max)), in nats.

    P1, Theorem 1, extended from tau = 1 to any temperature. It holds for any encoder and any
    labels. At tau = 0.1 it is so large that it says nothing, but does not overflow.

    Args:
        n_max: images in the largest class, 1 ≤ n_max ≤ n_total.
        n_total: images in all classes, N.
        tau: temperature, above 0.

    Returns:
        The bound, above 0; NaN with a single class, where NSCL is undefined.

    Raises:
        ValueError: arguments outside these ranges.
    """
    _check_counts(n_max, n_total)
    if not tau > 0:
        raise ValueError(f"tau must be above 0, not {tau}")
    if n_max == n_total:
        return float("nan")
    return float(np.logaddexp(0.0, 2 / tau + np.log(n_max) - np.log(n_total - n_max)))


def _check_counts(n_class: int, n_total: int) -> None:
    if not 1 <= n_class <= n_total:
        raise ValueError(f"a class of {n_class} images does not fit into {n_total} images")

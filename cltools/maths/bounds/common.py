"""What the bounds have in common: their values, and checks of their arguments."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = np.float64 | NDArray[np.float64]  # a scalar for scalars, else as the arguments broadcast


class Bound(NamedTuple):
    """A bound and its decimal logarithm; the value is inf where it exceeds a float64."""

    log10: Values
    value: Values


class Sides(NamedTuple):
    """Both sides of an inequality, left ≤ right."""

    left: float
    right: float


def bound_from_log(log: ArrayLike) -> Bound:
    """From a natural logarithm."""
    log = np.asarray(log, dtype=np.float64)
    with np.errstate(over="ignore"):
        return Bound((log / np.log(10))[()], np.exp(log)[()])


def check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be above 0, not {tau}")

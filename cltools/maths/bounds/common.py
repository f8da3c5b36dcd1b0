"""What the bounds have in common: their values, and checks of their arguments."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = np.float64 | NDArray[np.float64]  # a scalar for scalars, otherwise an array


class Bound(NamedTuple):
    """A bound and its decimal logarithm. The value is inf where it exceeds the largest float64."""

    log10: Values
    value: Values


class Sides(NamedTuple):
    """Both sides of an inequality, left ≤ right."""

    left: float
    right: float


def bound_from_log(log: ArrayLike) -> Bound:
    """The bound with this natural logarithm."""
    log = np.asarray(log, dtype=np.float64)
    with np.errstate(over="ignore"):
        return Bound((log / np.log(10))[()], np.exp(log)[()])


def check_tau(tau: float) -> None:
    """Raise ValueError unless the temperature is above 0."""
    if not tau > 0:
        raise ValueError(f"tau must be above 0, not {tau}")

"""Formulas that tests set beside what the package computes."""

import math


def gap_at_initialization(n_per_class: int, n_total: int) -> float:
    """DCL - NSCL when all similarities are equal: log((N - 1) / (N - n)), in nats.

    For balanced classes of n images out of N, at any temperature; it tends to log(C / (C - 1)).
    """
    return math.log1p((n_per_class - 1) / (n_total - n_per_class))

"""P2's bounds on how far CL and NSCL drift apart (arXiv 2510.08852).

Σ are the cosine similarities of a fixed reference set, and D_t = ‖Σ_t^CL - Σ_t^NSCL‖_F after t
steps of "similarity descent" (see `cltools.maths.surrogate`) on batches of B images. For an anchor,
p and q are the softmaxes of similarities / τ, for CL over all other images, for NSCL over those of
other classes. All bounds follow from three facts, which are tested one by one:

    ‖p - q‖₁ ≤ Δ                                       reweighting
    ‖G(Σ) - G(Σ')‖_F ≤ ‖Σ - Σ'‖_F / (2 τ² B)            smoothness of a batch's mean loss
    ‖HΣH‖_F ≤ ‖Σ‖_F,  H = I - 11ᵀ/N                    centering contracts

At the learning rates of LARS the bounds are too large for a float64: hence the logarithms.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.bounds.common import Bound, Sides, Values, bound_from_log, check_tau


def epsilon(steps: int, batch_size: int, delta: float) -> float:
    """ε = sqrt(log(T B / δ) / (2 B)), P2 before Theorem 1 and Corollary 3.

    With probability at least 1 - δ, no class fraction in T batches exceeds its expectation by more
    than this, for the class of any anchor (Hoeffding's inequality and a union bound over T B
    anchors). P2 states it for deviations of either sign, which would need 2TB instead of TB.
    Theorem 1 only needs deviations upward.

    Args:
        steps: T, 1 or more.
        batch_size: B in images, 1 or more.
        delta: probability δ, in (0, 1), that a deviation is larger.

    Returns:
        ε, above 0. It falls as 1/sqrt(B) but grows with T: 0.10 at B = 1024 and T = 57,600.

    Raises:
        ValueError: arguments outside these ranges.
    """
    if steps < 1 or batch_size < 1 or not 0 < delta < 1:
        raise ValueError(
            f"need steps ≥ 1, batch_size ≥ 1 and 0 < delta < 1, not {steps}, {batch_size}, {delta}"
        )
    return float(np.sqrt(np.log(steps * batch_size / delta) / (2 * batch_size)))


def delta_pi(tau: float, pi_max: ArrayLike, epsilon: float = 0.0) -> Values:
    """Δ = 2 e^(2/τ) (π_max + ε) / (1 - π_max - ε), P2 Theorem 1: a bound on ‖p - q‖₁.

    Valid for similarities in [-1, 1] only. ‖p - q‖₁ never exceeds 2, so Δ > 2 says nothing.

    Args:
        tau: temperature, above 0.
        pi_max: fraction of the largest class, in (0, 1]: in the population, with ε from `epsilon`,
            or in a given batch, with ε = 0.
        epsilon: ε, 0 or above.

    Returns:
        Δ, of pi_max's shape; inf where π_max + ε ≥ 1, since the paper's formula is negative there.

    Raises:
        ValueError: arguments outside these ranges.
    """
    check_tau(tau)
    pi_max = np.asarray(pi_max, dtype=np.float64)
    if not ((pi_max > 0) & (pi_max <= 1)).all() or not epsilon >= 0:
        raise ValueError(f"need 0 < pi_max ≤ 1 and epsilon ≥ 0, not {pi_max} and {epsilon}")
    fraction = pi_max + epsilon
    with np.errstate(over="ignore", divide="ignore"):
        odds = np.where(fraction < 1, fraction / np.maximum(1 - fraction, 0), np.inf)
        bound: Values = (2 * np.exp(2 / tau) * odds)[()]
    return bound


def gradient_gap_bound(
    distance: ArrayLike, tau: float, batch_size: int, delta_pi: ArrayLike
) -> Values:
    """Largest ‖G^CL - G^NSCL‖_F of one batch: Δ/(τ sqrt B) + D/(2 τ² B), P2's proof of Theorem 1.

    Args:
        distance: D = ‖Σ^CL - Σ^NSCL‖_F at which the two gradients are taken, 0 or above.
        tau: temperature, above 0.
        batch_size: B, number of images and so of anchors in the batch, 1 or more.
        delta_pi: Δ, as `delta_pi` computes it, 0 or above.

    Returns:
        The bound, as distance and delta_pi broadcast.

    Raises:
        ValueError: arguments outside these ranges.
    """
    check_tau(tau)
    distance, delta_pi = np.asarray(distance), np.asarray(delta_pi)
    if batch_size < 1 or not (distance >= 0).all() or not (delta_pi >= 0).all():
        raise ValueError("need batch_size ≥ 1, distance ≥ 0 and delta_pi ≥ 0")
    noise = delta_pi / (tau * np.sqrt(batch_size))
    bound: Values = noise + lipschitz_constant(tau, batch_size) * distance
    return bound


def step_bound(
    distance: ArrayLike, lr: ArrayLike, tau: float, batch_size: int, delta_pi: ArrayLike
) -> Values:
    """Largest D_{t+1} after D_t: (1 + η/(2τ²B)) D_t + η Δ/(τ sqrt B), P2's recurrence.

    Arguments and errors as for `gradient_gap_bound`; lr is η_t, 0 or above.
    """
    distance, lr = np.asarray(distance), np.asarray(lr)
    if not (lr >= 0).all():
        raise ValueError("learning rates must be 0 or above")
    gap = gradient_gap_bound(distance, tau, batch_size, delta_pi)
    with np.errstate(invalid="ignore"):  # η = 0 moves nothing, even at Δ = inf
        bound: Values = distance + np.where(lr > 0, lr * gap, 0)
    return bound


def drift_bound(tau: float, batch_size: int, sum_lr: ArrayLike, delta_pi: ArrayLike) -> Bound:
    """P2 Theorem 1: D_T ≤ exp(Ση/(2τ²B)) · Ση Δ/(τ sqrt B), by Grönwall from `step_bound`.

    Args:
        tau: temperature, above 0.
        batch_size: B, 1 or more.
        sum_lr: Ση, the sum of the learning rates of all steps, 0 or above.
        delta_pi: the largest Δ of all steps, 0 or above.

    Returns:
        The bound, as sum_lr and delta_pi broadcast; 0 (log10 -inf) before the first step.

    Raises:
        ValueError: arguments outside these ranges.
    """
    sum_lr = np.asarray(sum_lr, dtype=np.float64)
    if not (sum_lr >= 0).all():
        raise ValueError("sum_lr must be 0 or above")
    per_lr = gradient_gap_bound(0.0, tau, batch_size, delta_pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = sum_lr * lipschitz_constant(tau, batch_size) + np.log(sum_lr) + np.log(per_lr)
    return bound_from_log(np.where(sum_lr > 0, log, -np.inf))


def lipschitz_constant(tau: float, batch_size: int) -> float:
    """1/(2τ²B): Lipschitz constant of a batch's gradient in Σ (P2's proof of Theorem 1).

    The Hessian of log-sum-exp has norm at most 1/2. The chain rule gives 1/τ², the mean 1/B.
    """
    return 1 / (2 * tau**2 * batch_size)


def batch_class_counts(labels_per_batch: ArrayLike, classes: int) -> NDArray[np.int64]:
    """How many images of each class are in each batch: (T, C) from labels (T, B) in 0..C-1."""
    labels = np.asarray(labels_per_batch)
    steps = len(labels)
    flat = (labels + np.arange(steps)[:, None] * classes).ravel()
    return np.bincount(flat, minlength=steps * classes).reshape(steps, classes)


def batch_composition_deviation(labels_per_batch: ArrayLike, class_fractions: ArrayLike) -> float:
    """Left side of P2's Corollary 3: max over batches and anchors of |fraction in batch - π_c|.

    By the corollary it is at most `epsilon(T, B, δ)` with probability at least 1 - δ.

    Args:
        labels_per_batch: (T, B) integer classes 0..C-1, one batch per row.
        class_fractions: (C,) π_c in the population that batches are drawn from, with sum 1.

    Returns:
        The deviation in [0, 1]. Classes that are not in a batch do not count in it, since they have
        no anchor there.

    Raises:
        ValueError: shapes that do not fit, labels outside 0..C-1.
    """
    labels = np.asarray(labels_per_batch)
    fractions = np.asarray(class_fractions, dtype=np.float64)
    if labels.ndim != 2 or labels.size == 0 or fractions.ndim != 1:
        raise ValueError(
            f"labels {labels.shape} and fractions {fractions.shape} must be (T, B) and (C,)"
        )
    if labels.min() < 0 or labels.max() >= len(fractions):
        raise ValueError(f"labels must lie in 0..{len(fractions) - 1}")
    counts = batch_class_counts(labels, len(fractions))
    deviation = np.abs(counts / labels.shape[1] - fractions)
    return float(deviation[counts > 0].max())


def reweighting_sides(similarities: ArrayLike, same_class: ArrayLike, tau: float) -> Sides:
    """‖p - q‖₁ of one anchor, and Δ for the classes of its negatives (ε = 0).

    q is p restricted to other classes and divided by its sum, so that ‖p - q‖₁ = 2 p(class), twice
    the total variation distance.

    Args:
        similarities: (M,) of the anchor to its negatives in CL, in [-1, 1].
        same_class: (M,) bool, which negatives are of the anchor's class; not all may be.
        tau: temperature, above 0.

    Returns:
        The two sides; Δ is 0 where no negative is of the anchor's class.

    Raises:
        ValueError: tau ≤ 0, shapes that differ, or no negative of another class.
    """
    check_tau(tau)
    similarities, same_class = np.asarray(similarities), np.asarray(same_class, dtype=bool)
    if similarities.ndim != 1 or similarities.shape != same_class.shape or same_class.all():
        raise ValueError("need (M,) similarities and same_class, not all of one class")
    weights = np.exp((similarities - similarities.max()) / tau)
    p = weights / weights.sum()
    q = np.where(same_class, 0, weights) / weights[~same_class].sum()
    fraction = same_class.mean()
    right = delta_pi(tau, fraction) if fraction > 0 else 0.0
    return Sides(float(np.abs(p - q).sum()), float(right))


def lipschitz_sides(
    gradient: ArrayLike,
    other_gradient: ArrayLike,
    sigma: ArrayLike,
    other_sigma: ArrayLike,
    tau: float,
    batch_size: int,
) -> Sides:
    """‖G(Σ) - G(Σ')‖_F and ‖Σ - Σ'‖_F/(2τ²B), for one batch and one objective.

    Σ and Σ' are two points, and G the gradients there, for instance those that
    `cltools.maths.surrogate.batch_gradient` computes. All four arrays have the same shape.
    """
    gap = np.linalg.norm(np.subtract(gradient, other_gradient))
    distance = np.linalg.norm(np.subtract(sigma, other_sigma))
    return Sides(float(gap), float(lipschitz_constant(tau, batch_size) * distance))


def vacuous_orders(log10_bound: ArrayLike, entries: int) -> Values:
    """Orders of magnitude by which a drift bound exceeds the largest possible drift.

    That is 2 sqrt(entries), the largest ‖Σ - Σ'‖_F of two matrices with `entries` similarities in
    [-1, 1]; 2N for N×N. Above 0 the bound says nothing. Below 0 it is smaller than the largest
    possible drift by so many orders of magnitude.

    Raises ValueError for fewer than 1 entry.
    """
    if entries < 1:
        raise ValueError(f"a matrix has at least 1 entry, not {entries}")
    orders: Values = np.asarray(log10_bound, dtype=np.float64)[()] - np.log10(2 * np.sqrt(entries))
    return orders

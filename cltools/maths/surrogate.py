"""Similarity descent, the surrogate dynamics of P2's Theorem 1 (arXiv 2510.08852, eq. 1).

There is no network: the similarities Σ themselves are trained. Σ_{t+1} = Σ_t - η_t G_t, where G_t
is the gradient of the batch's mean loss with respect to the entries of Σ that the batch uses. CL
and NSCL start from the same Σ and see the same batches.

Shape of Σ. P2 writes Σ as N×N, but its loss of an anchor compares the first view of image i with
both views of the other images:

    ℓ_i = -Σ_{i,i'}/τ + log Σ_{t≠i} (e^{Σ_{i,t}/τ} + e^{Σ_{i,t'}/τ})      (NSCL: t of other classes)

So Σ is (N, 2N) here. Row i has the similarities of anchor i to the N first views, then to the N
second views. All entries are independent variables: Σ_{i,t} and Σ_{t,i} do not stay equal. P2's
constants are for this case (one row of norm Δ/(τB) per anchor). Making the gradient symmetric would
be a projection of it, so that the same bounds would hold.

Clipping. Without it, entries leave [-1, 1], where no cosine lies and the proof of Δ does not hold.
So entries are clipped to [-1, 1] after each step. This is a projection onto a convex set,
which never moves two points further apart, so that P2's inequalities still hold.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.bounds import delta_pi, drift_bound, epsilon, gradient_gap_bound, step_bound

Array = NDArray[np.float64]
Integers = NDArray[np.integer]


class Descent(NamedTuple):
    """A record of T steps, arrays of shape (T,). D is ‖Σ^CL - Σ^NSCL‖_F.

    distance: D after the step.
    step_bound: P2's bound on it, from D before the step and the class fractions of the batch.
    gradient_gap: ‖G^CL - G^NSCL‖_F.
    gradient_gap_bound: P2's bound on it, with the class fractions of the batch.
    largest_fraction: share of the batch's largest class.
    sum_lr: Ση up to this step, included.
    log10_bound: Theorem 1 at Ση as P2 states it, with π_max + ε. It holds with probability 1 - δ,
        and is inf where π_max + ε ≥ 1.
    log10_bound_realised: Theorem 1 with the largest fraction of the batches so far instead of
        π_max + ε. It always holds, and is smaller.
    """

    distance: Array
    step_bound: Array
    gradient_gap: Array
    gradient_gap_bound: Array
    largest_fraction: Array
    sum_lr: Array
    log10_bound: Array
    log10_bound_realised: Array


class State(NamedTuple):
    """Σ^CL and Σ^NSCL after a step, (N, 2N) each, and ‖G^CL - G^NSCL‖_F of the step."""

    cl: Array
    nscl: Array
    gradient_gap: float


def similarities_of_views(z: ArrayLike) -> Array:
    """The Σ (N, 2N) of two views z (2, N, d) of N images, float64; rows are normalized here.

    Raises ValueError for another shape or a row of norm 0.
    """
    views = np.asarray(z, dtype=np.float64)
    if views.ndim != 3 or views.shape[0] != 2:
        raise ValueError(f"expected two views of shape (2, N, d), got {views.shape}")
    norms = np.linalg.norm(views, axis=2, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("an embedding of norm 0 has no cosine")
    first, second = views / norms
    sigma: Array = np.clip(np.hstack([first @ first.T, first @ second.T]), -1, 1)
    return sigma


def batch_gradient(block: Array, negatives: NDArray[np.bool_], tau: float) -> Array:
    """Gradient of the mean of P2's ℓ_i over a batch's anchors, for the entries that it uses.

    Args:
        block: (B, 2B) similarities of the anchors with the batch's first and second views.
        negatives: (B, 2B) bool, those in the denominator; at least one in each row.
        tau: temperature, above 0.

    Returns:
        (B, 2B): (softmax over the negatives - 1 at the positive) / (τ B).
    """
    logits = np.where(negatives, block / tau, -np.inf)
    gradient = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient /= gradient.sum(axis=1, keepdims=True)
    anchors = np.arange(len(block))
    gradient[anchors, len(block) + anchors] -= 1
    mean: Array = gradient / (tau * len(block))
    return mean


def similarity_descent(
    initial: ArrayLike,
    labels: ArrayLike,
    batches: ArrayLike,
    lrs: ArrayLike,
    tau: float,
    delta: float = 0.05,
) -> Descent:
    """Run CL and NSCL on the same batches, and compute P2's bounds for every step.

    Args:
        initial: Σ_0, (N, 2N) in [-1, 1], as `similarities_of_views` makes it.
        labels: (N,) integer classes.
        batches: (T, B) image indices, B ≥ 2, none twice in a batch.
        lrs: (T,) learning rates η_t, 0 or above.
        tau: temperature, above 0.
        delta: probability δ, in (0, 1), that `log10_bound` fails.

    Raises:
        ValueError: arguments outside these shapes and ranges, or a batch of one class, for which
            NSCL is undefined.
    """
    initial, labels = np.asarray(initial, dtype=np.float64), np.asarray(labels)
    batches, lrs = np.asarray(batches), np.asarray(lrs, dtype=np.float64)
    counts = _checked_counts(initial, labels, batches, lrs)
    images = len(labels)
    steps, size = batches.shape
    fraction = counts / size
    sum_lr = np.cumsum(lrs)
    per_batch = delta_pi(tau, fraction)
    population = np.unique(labels, return_counts=True)[1].max() / images
    stated = delta_pi(tau, population, epsilon(steps, size, delta))

    gradient_gap, distance = np.empty(steps), np.zeros(steps + 1)
    for t, state in enumerate(similarity_steps(initial, labels, batches, lrs, tau)):
        gradient_gap[t] = state.gradient_gap
        distance[t + 1] = np.linalg.norm(state.cl - state.nscl)

    largest_so_far = np.maximum.accumulate(per_batch)
    before, after = distance[:-1], distance[1:]
    return Descent(
        distance=after,
        step_bound=np.asarray(step_bound(before, lrs, tau, size, per_batch)),
        gradient_gap=gradient_gap,
        gradient_gap_bound=np.asarray(gradient_gap_bound(before, tau, size, per_batch)),
        largest_fraction=fraction,
        sum_lr=sum_lr,
        log10_bound=np.asarray(drift_bound(tau, size, sum_lr, stated).log10),
        log10_bound_realised=np.asarray(drift_bound(tau, size, sum_lr, largest_so_far).log10),
    )


def similarity_steps(
    initial: Array, labels: Integers, batches: Integers, lrs: Array, tau: float
) -> Iterator[State]:
    """The state after every step. Arguments as for `similarity_descent`; they are not checked.

    All states share the same two arrays, which the next step changes: copy what you want to keep.
    """
    cl, nscl = initial.copy(), initial.copy()
    for batch, lr in zip(batches, lrs, strict=True):
        entries = touched_entries(batch, len(labels))
        gradients = []
        for sigma, negatives in zip((cl, nscl), batch_negatives(labels[batch]), strict=True):
            block = sigma[entries]
            gradients.append(batch_gradient(block, negatives, tau))
            sigma[entries] = np.clip(block - lr * gradients[-1], -1, 1)
        yield State(cl, nscl, float(np.linalg.norm(gradients[0] - gradients[1])))


def touched_entries(batch: Integers, images: int) -> tuple[Integers, ...]:
    """Index of the (B, 2B) block of Σ (N, 2N) that a batch (B,) of image indices uses."""
    return np.ix_(batch, np.concatenate([batch, batch + images]))


def batch_negatives(labels: Integers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The negatives (B, 2B) of CL and of NSCL, from the labels (B,) of a batch."""
    other_image = ~np.eye(len(labels), dtype=bool)
    return np.tile(other_image, 2), np.tile(labels[:, None] != labels, 2)


def _checked_counts(
    initial: Array, labels: Integers, batches: Integers, lrs: Array
) -> NDArray[np.int64]:
    """Images of the largest class in each batch, (T,); raises as `similarity_descent` says."""
    images = labels.shape[0] if labels.ndim == 1 else -1
    if initial.shape != (images, 2 * images):
        raise ValueError(f"Σ {initial.shape} and labels {labels.shape} must be (N, 2N) and (N,)")
    if not (np.abs(initial) <= 1).all():
        raise ValueError("similarities must lie in [-1, 1]")
    if batches.ndim != 2 or lrs.shape != batches.shape[:1] or not lrs.size:
        raise ValueError(f"batches {batches.shape} and lrs {lrs.shape} must be (T, B) and (T,)")
    if not (lrs >= 0).all():
        raise ValueError("learning rates must be 0 or above")
    if batches.shape[1] < 2 or batches.min() < 0 or batches.max() >= images:
        raise ValueError(f"batches must hold at least two of the {images} images")
    if (np.diff(np.sort(batches, axis=1), axis=1) == 0).any():
        raise ValueError("a batch holds an image twice")
    counts = np.array([np.unique(labels[b], return_counts=True)[1].max() for b in batches])
    one_class = np.flatnonzero(counts == batches.shape[1])
    if one_class.size:
        raise ValueError(f"batch {one_class[0]} is of one class: NSCL is undefined on it")
    return counts

"""Free embeddings: what the objectives look like at their minimum, without a network.

P1, Theorem 2 (arXiv 2506.04411): with balanced classes and d ≥ C - 1, all global minimizers of
NSCL have equal views, equal images within a class, and class means that form a simplex
equiangular tight frame (ETF). Here the embeddings themselves are the unknowns ("unconstrained
features"), on the unit sphere, and the whole set is one batch of `cltools.maths.objectives`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cltools.maths.collapse import (
    class_statistics,
    etf_deviation,
    view_distance,
    within_class_spread,
)
from cltools.maths.objectives import (
    OBJECTIVES,
    PairMasks,
    checked_contrastive_loss,
    contrastive_loss,
    pair_masks,
    similarity_logits,
)

GRADIENT_TOLERANCE = 1e-10
LEAST_GAIN = 1e-9  # nats; an L-BFGS call that gains less is the last


class Minimum(NamedTuple):
    """The final embeddings z (K, N, d), and the trajectory, arrays of one length.

    Time is that of gradient descent, the sum of its learning rates; NaN after L-BFGS calls. The
    loss is in nats (CE without its penalty). The others are P1's three conditions, 0 at the
    optimum, by the functions of `cltools.maths.collapse`: `etf_deviation`, `within_class_spread`
    and `view_distance`, the first of its numbers. The first entry is the start, then one per
    descent step and per L-BFGS call.
    """

    z: Tensor
    time: NDArray[np.float64]
    loss: NDArray[np.float64]
    etf_deviation: NDArray[np.float64]
    within_class_spread: NDArray[np.float64]
    view_distance: NDArray[np.float64]


def nscl_minimum(per_class: int, classes: int, tau: float, views: int = 2) -> float:
    """NSCL at the minimizers of P1's Theorem 2: log(K n (C - 1)) - C/((C - 1) τ), in nats.

    All positives at 1 and all negatives at -1/(C - 1), for C balanced classes of n images.

    Raises:
        ValueError: per_class < 1, classes < 2, tau ≤ 0 or views < 1.
    """
    if per_class < 1 or classes < 2 or not tau > 0 or views < 1:
        raise ValueError("need per_class ≥ 1, classes ≥ 2, tau > 0 and views ≥ 1")
    return float(np.log(views * per_class * (classes - 1)) - classes / ((classes - 1) * tau))


def minimise(
    objective: str,
    labels: Tensor,
    dimension: int,
    tau: float,
    seed: int,
    views: int = 2,
    descent_steps: int = 100,
    descent_lr: float = 0.2,
    newton_calls: int = 15,
    head_penalty: float = 1e-3,
) -> Minimum:
    """Minimize one objective over embeddings on the sphere, from a random start, in float64.

    Gradient descent first, in steps small enough to show what moves when, then L-BFGS with strong
    Wolfe line search until it gains nothing more. z = u/‖u‖ with u free.

    The losses are not convex on the sphere, and from some seeds NSCL ends in local minima, the more
    the lower τ and d are: of 20 seeds at C = 4 and 5 images per class, at d = C none for τ = 0.5
    and 1 but 10 for τ = 0.1, and at d = C - 1 as many as 5, 15 and 19 for τ = 1, 0.5 and 0.1.
    Compare the loss with `nscl_minimum`, and try other seeds. The loss also tells what
    `etf_deviation` cannot, which centers the means first: two classes are always an ETF to it, as
    are means that share an offset.

    Args:
        objective: one of `objectives.OBJECTIVES`. CE also minimizes over a linear head with bias;
            without `head_penalty` it would have no minimum.
        labels: (N,) integers 0..C-1, C ≥ 2, each occurring.
        dimension: d, 1 or more. At d = 1 the sphere is two points, and nothing moves.
        tau: temperature, above 0; CE does not use it.
        seed: of the start, which is the same for all objectives and temperatures.
        views: K, 2 or more.
        descent_steps: of gradient descent, 0 or more.
        descent_lr: its learning rate, above 0. For the embeddings it is times K N, since the losses
            are means. For all objectives but CE it is times τ min(τ, 1), the inverse of the order
            of their curvature: compare times, not iterations. CE's time depends on its head, too,
            which starts small and moves at the rate as given.
        newton_calls: L-BFGS calls at most, of 25 iterations each.
        head_penalty: factor of the head's squared norm (weights and bias), CE only, above 0.

    Returns:
        Final embeddings and the trajectory.

    Raises:
        ValueError: an unknown objective, arguments out of range, labels that are not 0..C-1.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}: use one of {OBJECTIVES}")
    if dimension < 1 or views < 2 or not head_penalty > 0 or not descent_lr > 0:
        raise ValueError("need dimension ≥ 1, views ≥ 2, head_penalty > 0 and descent_lr > 0")
    free = _start(objective, labels, dimension, tau, seed, views, head_penalty)
    lr = descent_lr if objective == "ce" else descent_lr * (tau * min(tau, 1))
    trajectory = [*_descend(free, descent_steps, lr), *_polish(free, newton_calls)]
    return Minimum(free.z.detach(), *np.array(trajectory).T)


@dataclass
class _Free:
    """Free embeddings (K, N, d), for CE a head (C, d + 1) beside them, and the loss of both."""

    objective: str
    tau: float
    head_penalty: float
    embeddings: Tensor
    labels: Tensor  # (K N,)
    masks: PairMasks | None = None  # None for CE
    head: Tensor | None = None

    @property
    def z(self) -> Tensor:
        return F.normalize(self.embeddings, dim=2)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.embeddings] if self.head is None else [self.embeddings, self.head]

    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss, and what is minimized."""
        if self.masks is not None:
            loss = contrastive_loss(self.objective, similarity_logits(self.z, self.tau), self.masks)
            return loss, loss
        assert self.head is not None
        # Not `objectives.cross_entropy`, which is float32.
        class_logits = self.z @ self.head[:, :-1].T + self.head[:, -1]
        loss = F.cross_entropy(class_logits.flatten(0, 1), self.labels)
        return loss, loss + self.head_penalty * self.head.square().sum()

    def record(self, time: float, loss: Tensor) -> tuple[float, ...]:
        """An entry of the trajectory."""
        z = self.z.detach().numpy()
        statistics = class_statistics(z.reshape(-1, z.shape[2]), self.labels.numpy())
        return (
            time,
            loss.item(),
            etf_deviation(statistics),
            within_class_spread(statistics),
            view_distance(z)[0],
        )


def _start(
    objective: str,
    labels: Tensor,
    dimension: int,
    tau: float,
    seed: int,
    views: int,
    head_penalty: float,
) -> _Free:
    """The embeddings that a seed begins from, whatever the objective, and CE's head."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    embeddings = F.normalize(draw((views, len(labels), dimension)), dim=2)
    classes = int(labels.max()) + 1
    if classes < 2 or not torch.equal(torch.unique(labels), torch.arange(classes)):
        raise ValueError("labels must be 0..C-1, with images in each of at least two classes")
    masks = head = None
    if objective == "ce":
        head = draw((classes, dimension + 1)).mul_(0.1).requires_grad_()
    else:
        checked_contrastive_loss(objective, embeddings, labels, tau)
        masks = pair_masks(labels, views)
    embeddings.requires_grad_()
    return _Free(objective, tau, head_penalty, embeddings, labels.repeat(views), masks, head)


def _descend(free: _Free, steps: int, lr: float) -> Iterator[tuple[float, ...]]:
    """Gradient descent: the trajectory from the start on."""
    views, images, _ = free.embeddings.shape
    for step in range(steps + 1):
        loss, value = free.losses()
        yield free.record(step * lr, loss)
        if step == steps:
            return
        gradients = torch.autograd.grad(value, free.parameters)
        with torch.no_grad():
            free.embeddings -= lr * views * images * gradients[0]
            free.embeddings.div_(free.embeddings.norm(dim=2, keepdim=True))
            if free.head is not None:
                free.head -= lr * gradients[1]


def _polish(free: _Free, calls: int) -> Iterator[tuple[float, ...]]:
    """L-BFGS until it gains nothing more: the trajectory, an entry a call."""
    optimizer = torch.optim.LBFGS(
        free.parameters,
        max_iter=25,
        history_size=10,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = free.losses()[1]
        torch.autograd.backward(value)
        return value

    for _ in range(calls):
        before = optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch gives it no types
        with torch.no_grad():
            loss, value = free.losses()
        yield free.record(np.nan, loss)
        if not before - value >= LEAST_GAIN:
            return

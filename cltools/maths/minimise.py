"""Free embeddings: the objectives are minimized over the embeddings themselves, without a network.

P1, Theorem 2 (arXiv 2506.04411): with balanced classes and d ≥ C - 1, at all global minima of NSCL
the views of an image coincide, the images of a class coincide, and the class means form a simplex
equiangular tight frame (ETF). Here the embeddings are the unknowns ("unconstrained features"). They
lie on the unit sphere, and all images are one batch of `cltools.maths.objectives`.
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
from cltools.maths.sphere import view_distance

GRADIENT_TOLERANCE = 1e-10
LEAST_GAIN = 1e-9  # nats; an L-BFGS call that gains less is the last


class Minimum(NamedTuple):
    """The final embeddings z (K, N, d), and the way there as arrays of equal length.

    The first entry of these arrays is the start. One follows for each step of gradient descent,
    then one for each L-BFGS call.

    time: sum of the learning rates of gradient descent so far; NaN after L-BFGS calls.
    loss: in nats, for CE without the penalty.
    etf_deviation, within_class_spread, view_distance: how far each of P1's three conditions is from
        being met, 0 at the optimum. The functions of these names in `cltools.maths.collapse`
        and `sphere` compute them; of `view_distance` this is the first value.
    """

    z: Tensor
    time: NDArray[np.float64]
    loss: NDArray[np.float64]
    etf_deviation: NDArray[np.float64]
    within_class_spread: NDArray[np.float64]
    view_distance: NDArray[np.float64]


def nscl_minimum(per_class: int, classes: int, tau: float, views: int = 2) -> float:
    """NSCL at the minima of P1's Theorem 2: log(K n (C - 1)) - C/((C - 1) τ), in nats.

    There, positives have cosine 1 and negatives -1/(C - 1), for C balanced classes of n images.

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

    Gradient descent comes first, in steps small enough to show the order in which things happen.
    Then L-BFGS with a strong Wolfe line search runs until it gains nothing more. z = u/‖u‖, where u
    is free.

    The losses are not convex on the sphere, and NSCL can end in a local minimum. That is more
    frequent at low τ and d. Of 20 seeds at C = 4 with 5 images per class, so many did:

        d = C        0 at τ = 1,    0 at τ = 0.5,   10 at τ = 0.1
        d = C - 1    5 at τ = 1,   15 at τ = 0.5,   19 at τ = 0.1

    So compare the loss with `nscl_minimum`, and try other seeds. `etf_deviation` does not always
    show it, since it subtracts the average of the class means: its value is 0 for any two classes,
    and for an ETF that is shifted.

    Args:
        objective: one of `objectives.OBJECTIVES`. CE also minimizes over a linear head with bias;
            without `head_penalty` CE would have no minimum.
        labels: (N,) integers 0..C-1, C ≥ 2, each occurring.
        dimension: d, 1 or more. At d = 1 the sphere is two points, and nothing can move.
        tau: temperature, above 0; CE does not use it.
        seed: draws the start, which is the same for all objectives and temperatures.
        views: K, 2 or more.
        descent_steps: steps of gradient descent, 0 or more.
        descent_lr: learning rate of gradient descent, above 0. Embeddings move at K N times this
            rate, since the losses are means. For all objectives but CE the rate is also multiplied
            by τ min(τ, 1), since their curvature is of the order of the inverse; so compare times,
            not iterations. How fast CE goes also depends on its head, which starts small and moves
            at the rate as given.
        newton_calls: most calls of L-BFGS, of 25 iterations each.
        head_penalty: factor of the head's squared norm (weights and bias), CE only, above 0.

    Returns:
        The final embeddings and the way there.

    Raises:
        ValueError: an unknown objective, arguments out of range, labels that are not 0..C-1.
    """
    if not descent_lr > 0:
        raise ValueError("need descent_lr > 0")
    free = _start(objective, labels, dimension, tau, seed, views, head_penalty)
    lr = _rate(objective, tau, descent_lr)
    trajectory = [*_descend(free, descent_steps, lr), *_polish(free, newton_calls)]
    return Minimum(free.z.detach(), *np.array(trajectory).T)


def descent(
    objective: str,
    labels: Tensor,
    dimension: int,
    tau: float,
    seed: int,
    steps: int = 100,
    views: int = 2,
) -> Minimum:
    """The gradient descent of `minimise`, with the embeddings of every step.

    Arguments are as for `minimise`, whose other settings have their defaults. Unlike there, `z` of
    the result has shape (steps + 1, K, N, d).

    Raises:
        ValueError: as `minimise` does.

    Examples:
        >>> found = descent("nscl", torch.arange(8) % 2, dimension=3, tau=1.0, seed=0, steps=5)
        >>> found.z.shape
        torch.Size([6, 2, 8, 3])
    """
    free = _start(objective, labels, dimension, tau, seed, views)
    way = [(free.z.detach(), one) for one in _descend(free, steps, _rate(objective, tau))]
    z, trajectory = zip(*way, strict=True)
    return Minimum(torch.stack(z), *np.array(trajectory).T)


def _rate(objective: str, tau: float, lr: float = 0.2) -> float:
    """The learning rate for embeddings, see `minimise`."""
    return lr if objective == "ce" else lr * (tau * min(tau, 1))


@dataclass
class _Free:
    """Free embeddings (K, N, d), for CE also a head (C, d + 1), and their loss."""

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
        """The loss, and what is minimized: for CE the penalty is added."""
        if self.masks is not None:
            loss = contrastive_loss(self.objective, similarity_logits(self.z, self.tau), self.masks)
            return loss, loss
        assert self.head is not None
        # `objectives.cross_entropy` would compute in float32.
        class_logits = self.z @ self.head[:, :-1].T + self.head[:, -1]
        loss = F.cross_entropy(class_logits.flatten(0, 1), self.labels)
        return loss, loss + self.head_penalty * self.head.square().sum()

    def record(self, time: float, loss: Tensor) -> tuple[float, ...]:
        """One entry of each array of `Minimum`."""
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
    head_penalty: float = 1e-3,
) -> _Free:
    """The embeddings at the start, the same for all objectives, and the head if it is CE."""
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}: use one of {OBJECTIVES}")
    if dimension < 1 or views < 2 or not head_penalty > 0:
        raise ValueError("need dimension ≥ 1, views ≥ 2 and head_penalty > 0")
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
    """Gradient descent; yields an entry for the start and for each step."""
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
    """L-BFGS until it gains nothing more; yields an entry for each call."""
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

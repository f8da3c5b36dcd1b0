"""Free embeddings: what the objectives look like at their minimum, without a network.

P1, Theorem 2 (arXiv 2506.04411): with balanced classes and d ≥ C - 1, all global minimisers of
NSCL have equal views, equal images within a class, and class means that form a simplex
equiangular tight frame (ETF). Here the embeddings themselves are the unknowns ("unconstrained
features"), on the unit sphere, and the whole set is one batch of `cltools.maths.objectives`.
"""

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
    """NSCL at the minimisers of P1's Theorem 2: log(K n (C - 1)) - C/((C - 1) τ), in nats.

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
    """Minimise one objective over embeddings on the sphere, from a random start, in float64.

    Gradient descent first, in steps small enough to show what moves when, then L-BFGS with strong
    Wolfe line search until it gains nothing more. z = u/‖u‖ with u free.

    The losses are not convex on the sphere, and from some seeds NSCL ends in local minima, the more
    the lower τ and d are: of 20 seeds at C = 4 and 5 images per class, at d = C none for τ = 0.5
    and 1 but 10 for τ = 0.1, and at d = C - 1 as many as 5, 15 and 19 for τ = 1, 0.5 and 0.1.
    Compare the loss with `nscl_minimum`, and try other seeds. The loss also tells what
    `etf_deviation` cannot, which centres the means first: two classes are always an ETF to it, as
    are means that share an offset.

    Args:
        objective: one of `objectives.OBJECTIVES`. CE also minimises over a linear head with bias;
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
    generator = torch.Generator().manual_seed(seed)
    start = {"generator": generator, "dtype": torch.float64}
    free = F.normalize(torch.randn(views, len(labels), dimension, **start), dim=2)
    classes = int(labels.max()) + 1
    if classes < 2 or not torch.equal(labels.unique(), torch.arange(classes)):
        raise ValueError("labels must be 0..C-1, with images in each of at least two classes")
    every_label = labels.repeat(views)
    parameters = [free.requires_grad_()]
    lr = descent_lr
    if objective == "ce":
        head = torch.randn(classes, dimension + 1, **start).mul_(0.1).requires_grad_()
        parameters.append(head)
    else:
        checked_contrastive_loss(objective, free.detach(), labels, tau)
        masks = pair_masks(labels, views)
        lr *= tau * min(tau, 1)

    def losses() -> tuple[Tensor, Tensor]:
        """The loss, and what is minimised."""
        z = F.normalize(free, dim=2)
        if objective != "ce":
            loss = contrastive_loss(objective, similarity_logits(z, tau), masks)
            return loss, loss
        # Not `objectives.cross_entropy`, which is float32.
        class_logits = z @ head[:, :-1].T + head[:, -1]
        loss = F.cross_entropy(class_logits.flatten(0, 1), every_label)
        return loss, loss + head_penalty * head.square().sum()

    trajectory: list[tuple[float, ...]] = []

    def record(time: float, loss: Tensor) -> None:
        z = F.normalize(free.detach(), dim=2).numpy()
        statistics = class_statistics(z.reshape(-1, dimension), every_label.numpy())
        trajectory.append(
            (
                time,
                loss.item(),
                etf_deviation(statistics),
                within_class_spread(statistics),
                view_distance(z)[0],
            )
        )

    for step in range(descent_steps + 1):
        loss, value = losses()
        record(step * lr, loss)
        if step == descent_steps:
            break
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            free -= lr * views * len(labels) * gradients[0]
            free.div_(free.norm(dim=2, keepdim=True))
            if objective == "ce":
                head -= lr * gradients[1]

    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=25,
        history_size=10,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = losses()[1]
        value.backward()
        return value

    for _ in range(newton_calls):
        before = optimiser.step(closure)
        with torch.no_grad():
            loss, value = losses()
        record(np.nan, loss)
        if not before - value >= LEAST_GAIN:
            break
    columns = np.array(trajectory).T
    return Minimum(F.normalize(free.detach(), dim=2), *columns)
